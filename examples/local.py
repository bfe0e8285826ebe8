"""A worker in a thread of this process, so that an example is one command. Real ones: `celery worker`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery.contrib.testing.worker import start_worker


@contextmanager
def worker(app: Any, concurrency: int = 4) -> Iterator[None]:
    with start_worker(
        app,
        pool="threads",
        concurrency=concurrency,
        perform_ping_check=False,
        loglevel="ERROR",
        shutdown_timeout=30,
    ):
        yield
