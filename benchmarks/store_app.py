"""The app of the store benchmark."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery

from gwi_celery import ReliableTask, setup

app = Celery("bench-store")
app.conf.update(task_ignore_result=True, result_backend="disabled://")
setup(app)

_COUNT = int(os.environ["BENCH_COUNT"])
_seen = 0


def _count() -> None:
    """Note the times at which the first and the last task ran."""
    global _seen  # noqa: PLW0603 the worker runs one task at a time
    _seen += 1
    if _seen in (1, _COUNT):
        with open(os.environ["BENCH_MARK"], "a") as file:
            file.write(f"{time.time()}\n")


@app.task
def plain() -> None:
    _count()


@app.task(base=ReliableTask)
def reliable(*, tenant_id: str, run_id: str) -> None:
    _count()


@app.task(base=ReliableTask, bind=True)
def stepping(self: Any, *, tenant_id: str, run_id: str) -> None:
    for name in ("one", "two", "three"):
        self.step(name, str, name)
    _count()


def submit(kind: str, count: int) -> None:
    """A backlog of one kind of task."""
    for number in range(count):
        if kind == "plain":
            plain.delay()
        else:
            task = stepping if "steps" in kind else reliable
            task.delay(tenant_id="bench", run_id=f"r{number}")
