"""The app that a soak's workers run: a few of everything, and a tenth that fails.

``SOAK_BROKER``, ``SOAK_STORE`` and ``SOAK_TTL`` say where, and how long outcomes are kept;
``SOAK_JOURNAL`` is a file to which each step that really runs appends its name.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from gwi_celery import Reliable, ReliableTask, setup

app = Celery("soak")
TTL = float(os.environ["SOAK_TTL"])
app.conf.update(
    result_expires=int(TTL),
    result_backend=os.environ["SOAK_STORE"],
    task_track_started=False,
)
if os.environ["SOAK_BROKER"].startswith("embedded:"):
    app.conf.broker_transport_options = {"retention": TTL}
setup(
    app,
    broker_url=os.environ["SOAK_BROKER"],
    store_url=os.environ["SOAK_STORE"],
    result_ttl=TTL,
    contention_delay=0.5,
)


class Refused(Exception):
    """What a job that is meant to fail raises."""


def journal(line: str) -> str:
    fd = os.open(os.environ["SOAK_JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)
    return line


@app.task(base=ReliableTask, bind=True)
def steps(self: Any, *, tenant_id: str, run_id: str) -> str:
    """Three recorded steps, one of them of 20 KB."""
    self.step("first", journal, f"{run_id} first")
    self.step("large", lambda: journal(f"{run_id} large") * 1000)
    self.step("last", journal, f"{run_id} last")
    return run_id


@app.task(base=ReliableTask, bind=True)
def cursors(self: Any, *, tenant_id: str, run_id: str) -> str:
    """A loop whose place is saved."""
    with self.cursor("scan", start=0, save_every=0.01) as cursor:
        for n in range(cursor.value, 20):
            cursor.advance(n + 1)
    self.step("scanned", journal, f"{run_id} scanned")
    return run_id


@app.task(base=ReliableTask, bind=True, max_retries=3)
def retries(self: Any, *, tenant_id: str, run_id: str) -> str:
    """Raises twice, then succeeds; its step runs once all the same."""
    self.step("tried", journal, f"{run_id} tried")
    if self.request.retries < 2:
        raise self.retry(exc=Refused(f"try {self.request.retries}"), countdown=0.1)
    return run_id


@app.task(
    base=ReliableTask,
    bind=True,
    reliable=Reliable(idempotency=lambda arguments: f"{arguments['run_id']} {arguments['half']}"),
)
def contends(self: Any, *, tenant_id: str, run_id: str, half: int) -> str:
    """One of two jobs that want the same lock."""
    self.step(f"half {half}", journal, f"{run_id} half{half}")
    return run_id


@app.task(base=ReliableTask, bind=True)
def fails(self: Any, *, tenant_id: str, run_id: str) -> str:
    """Fails some calls deep, with something in its frames, and a cause."""
    self.step("before", journal, f"{run_id} before")
    ballast = list(range(10_000))
    return _dig(20, ballast, run_id)


def _dig(depth: int, ballast: list[int], run_id: str) -> str:
    if depth:
        return _dig(depth - 1, ballast, run_id)
    try:
        raise KeyError(len(ballast))
    except KeyError as exc:
        raise Refused(f"{run_id} is meant to fail") from exc


@app.task
def plain(n: int) -> int:
    return n


@app.task
def plain_fails(n: int) -> int:
    raise Refused(f"{n} is meant to fail")


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)
