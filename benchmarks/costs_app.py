"""The app of the cost table: one task for each way in which a job goes."""

from __future__ import annotations

import time
from typing import Any

from celery import Celery

from gwi_celery import ReliableTask, setup

app = Celery("bench-costs")
setup(app)


@app.task
def plain() -> str:
    return "done"


@app.task(base=ReliableTask)
def reliable(*, tenant_id: str, run_id: str, seconds: float = 0.0) -> str:
    time.sleep(seconds)
    return "done"


@app.task(base=ReliableTask, bind=True)
def stepping(self: Any, *, tenant_id: str, run_id: str) -> str:
    for name in ("one", "two", "three"):
        self.step(name, str, name)
    return "done"


@app.task(base=ReliableTask, bind=True, max_retries=1)
def retried(self: Any, *, tenant_id: str, run_id: str) -> str:
    if not self.request.retries:
        raise self.retry(countdown=1)  # at once, it could meet its own lock
    return "done"
