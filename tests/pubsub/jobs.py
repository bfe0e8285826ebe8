"""A plain Celery app on Pub/Sub, whose tasks leave an audit trail in ``PUBSUB_FOLDER``."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import Any

from celery import Celery

import gwi_celery

FOLDER = Path(os.environ.get("PUBSUB_FOLDER", "."))

app = Celery("pubsub_jobs")
app.conf.update(
    broker_url=os.environ.get("PUBSUB_URL", "pubsub://unset"),
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        "lease_seconds": float(os.environ.get("PUBSUB_LEASE", "10")),
        "publisher_confirms": os.environ.get("PUBSUB_CONFIRMS", "1") == "1",
        "max_lease_seconds": float(os.environ.get("PUBSUB_MAX_LEASE", "0")) or None,
    },
    worker_prefetch_multiplier=1,
    task_acks_late=os.environ.get("PUBSUB_ACKS_LATE", "1") == "1",
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_max_tasks_per_child=int(os.environ.get("PUBSUB_TASKS_PER_CHILD", "0")) or None,
)


def audit(name: str, *words: object) -> None:
    """One line, appended atomically."""
    line = " ".join(map(str, words)) + "\n"
    fd = os.open(FOLDER / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def trail(folder: Path, name: str) -> list[str]:
    path = folder / name
    return path.read_text().splitlines() if path.exists() else []


@app.task(shared=False, name="mark")
def mark(label: Any, pause: float = 0.0) -> None:
    audit("marks", label)
    time.sleep(pause)


@app.task(shared=False, name="began")
def began(label: Any, seconds: float) -> None:
    audit("began", label)
    time.sleep(seconds)
    audit("ended", label)


@app.task(shared=False, name="held")
def held(label: Any) -> None:
    """Until the file ``go`` is there."""
    audit("began", label)
    while not (FOLDER / "go").exists():
        time.sleep(0.02)
    audit("ended", label)


@app.task(shared=False, name="busy")
def busy(label: Any, seconds: float) -> None:
    """Holds the interpreter all the time, as work does; it keeps its lock without keeping a CPU."""
    audit("began", label)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ctypes.PyDLL(None).usleep(500_000)
    audit("ended", label)


@app.task(shared=False, name="watchful", bind=True)
def watchful(self: Any, seconds: float) -> None:
    """Looks whether its message is still its worker's."""
    audit("began", "watchful")
    end = time.monotonic() + seconds
    while time.monotonic() < end and not gwi_celery.message_lease_lost(self.request):
        time.sleep(0.05)
    audit("ended", gwi_celery.message_lease_lost(self.request))


@app.task(shared=False, name="relay")
def relay(label: Any) -> None:
    """Publishes from a pool child."""
    mark.delay(label)


@app.task(shared=False, name="redelivered", bind=True)
def redelivered(self: Any, label: Any) -> None:
    info = self.request.delivery_info
    audit("deliveries", label, info["redelivered"])
    if not info["redelivered"]:
        os.kill(os.getpid(), 9)
