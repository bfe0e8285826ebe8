"""The app that every side runs, with the same settings: only broker and results differ.

``BENCH_BROKER`` and ``BENCH_RESULTS`` say where; ``BENCH_MARK`` is a file to which the signalling task
appends the time at which it started.
"""

from __future__ import annotations

import os
import time

from celery import Celery

from gwi_celery import ReliableTask, setup

app = Celery("bench")
BROKER = os.environ["BENCH_BROKER"]

if BROKER.startswith("embedded:"):
    setup(app, broker_url=BROKER, store_url=os.environ["BENCH_RESULTS"])
else:
    app.conf.update(
        broker_url=BROKER,
        result_backend=os.environ["BENCH_RESULTS"],
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
    )


@app.task
def noop() -> None:
    """Nothing: what is measured is the way to it and back."""


@app.task(ignore_result=True)
def mark(sent: float) -> None:
    """Append the seconds from the call to here."""
    line = f"{time.time() - sent}\n".encode()
    fd = os.open(os.environ["BENCH_MARK"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, line)
    finally:
        os.close(fd)


@app.task(base=ReliableTask)
def reliable(*, tenant_id: str, run_id: str) -> None:
    """The same nothing, as a reliable job."""
