"""The app that Pub/Sub tests run in real workers; ``JOBS_*`` in the environment say how."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from celery import Celery, signals
from celery.exceptions import Reject

from gwi_celery import ReliableTask, setup
from gwi_celery.brokers.pubsub.client import Client

#: This module, for ``celery -A``.
APP = "tests.pubsub.features.jobs"
FOLDER = Path(os.environ.get("JOBS_FOLDER", "."))

app = Celery("pubsub-jobs")
app.conf.broker_url = os.environ.get("JOBS_BROKER_URL", "pubsub://unused")
app.conf.broker_transport_options = json.loads(os.environ.get("JOBS_OPTIONS", "{}"))
app.conf.worker_deduplicate_successful_tasks = True
setup(app, folder=str(FOLDER / "gwi"), lease_seconds=10, lock_ttl=2)


def note(text: str) -> None:
    """One line more in the test's file of notes, in one write."""
    with (FOLDER / "notes").open("a") as file:
        file.write(text + "\n")


def notes(folder: Path) -> list[str]:
    path = folder / "notes"
    return path.read_text().splitlines() if path.exists() else []


if os.environ.get("JOBS_COUNT"):
    called = Client._stub

    def count(self: Client, rpc: str) -> Any:
        note(f"rpc {rpc}")
        return called(self, rpc)

    Client._stub = count  # type: ignore[method-assign]


@app.task(shared=False, name="add")
def add(a: int, b: int) -> int:
    note(f"add {a} {b}")
    return a + b


@app.task(shared=False, name="fails")
def fails() -> None:
    raise ValueError("on purpose")


@app.task(shared=False, name="shop.invoice", base=ReliableTask, bind=True)
def invoice(self: Any, *, tenant_id: str, run_id: str, order: int) -> dict[str, Any]:
    self.step("number", note, f"invoice {tenant_id} {run_id} {order}")
    return {"order": order}


@app.task(shared=False, name="once", bind=True)
def once(self: Any) -> str:
    note(f"once redelivered={self.request.delivery_info['redelivered']}")
    return "done"


@signals.task_success.connect(sender=once)
def killed_before_the_ack(**kwargs: Any) -> None:
    """The result is kept by now, and the message is not acked."""
    if "once redelivered=False" in notes(FOLDER):
        os.killpg(os.getpgid(0), signal.SIGKILL)


@app.task(shared=False, name="requeued", bind=True)
def requeued(self: Any) -> None:
    info = self.request.delivery_info
    note(f"requeued redelivered={info['redelivered']}")
    if not info["redelivered"]:
        raise Reject("once more", requeue=True)
