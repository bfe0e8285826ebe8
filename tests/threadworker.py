"""A worker in a thread of the test's own process: quick to start, for what needs no process."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery.contrib.testing.worker import TestWorkController, start_worker
from celery.platforms import EX_OK
from celery.worker import state

from tests.machine import PATIENCE

_NAME = "worker in a thread"


class _Controller(TestWorkController):  # type: ignore[misc]
    """Celery's own leaves a test waiting for ever for a worker that ends while it starts."""

    ready = False
    why_it_ended: BaseException | None = None

    def on_consumer_ready(self, consumer: Any) -> None:
        self.ready = True
        super().on_consumer_ready(consumer)

    def stop(self, *args: Any, **kwargs: Any) -> None:
        if not self.ready:
            self.why_it_ended = sys.exc_info()[1]
        super().stop(*args, **kwargs)

    def start(self) -> None:
        threading.current_thread().name = _NAME
        try:
            super().start()
        finally:
            self._on_started.set()


@contextmanager
def worker_in_thread(app: Any, **options: Any) -> Iterator[Any]:
    """A worker of that app, solo by default, that is ready. Raises what ends it while it starts.

    One at a time: what stops a worker in a thread is Celery's flag for its whole process.
    """
    assert not any(thread.name == _NAME for thread in threading.enumerate()), "one runs already"
    options = {"pool": "solo", "perform_ping_check": False, **options}
    with start_worker(
        app, WorkController=_Controller, shutdown_timeout=PATIENCE, **options
    ) as started:
        if not started.ready:
            raise RuntimeError("the worker ended while it started") from started.why_it_ended
        yield started
        # Celery waits for its loop to look, which may sleep for ten seconds.
        state.should_terminate = EX_OK
        connection = getattr(started.consumer, "connection", None)
        wake = getattr(getattr(connection, "transport", None), "wake", None)
        if wake is not None:
            wake()
