"""Ends a stopping worker in time, whatever its jobs and its broker do.

Celery waits for its jobs and its broker indefinitely, but a platform such as Cloud Run only for ten
seconds. A separate thread counts the time from the signal on, whatever the worker is doing:

- Jobs have ``worker_grace`` seconds; 0: as long as they take. But if the broker doesn't answer, jobs
  have ``shutdown_grace`` seconds: their ends can't be reported, so their messages are redelivered anyway.
- Without a job the worker has a few seconds to give back its messages and to close.

The pool's processes are killed first, so that the rest of the worker can end in order; if it doesn't,
the process exits here. Leases of messages and locks then run out, and nothing is lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from celery import bootsteps, signals
from celery.worker import state

from gwi_celery import shield
from gwi_celery.errors import GwiError
from gwi_celery.exits import end_now
from gwi_celery.integration import broker_for, displaced, settings_for
from gwi_celery.worker.pools import pool_processes

logger = logging.getLogger(__name__)

#: Seconds to close within if no job runs.
_CLOSING = 6.0
#: Seconds for the rest of the worker once the pool's processes were killed.
_REST = 1.0
#: Seconds between two probes of the broker while waiting for jobs; seconds without an answer after
#: which it counts as unavailable.
_ASK_EVERY, _SILENCE = 1.0, 6.0
_LOOK_EVERY = 0.1


class ShutdownGrace(bootsteps.StartStopStep):
    """Worker bootstep. It listens from the worker's creation on: even its start may have to be ended."""

    label = "Grace"

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        settings = settings_for(worker.app)
        self._worker = worker
        self._grace = settings.worker_grace
        self._without_broker = settings.shutdown_grace
        self._begun = False
        #: Whether the process belongs to this worker alone, rather than to a test or script.
        self._own_process = True
        self._broker = _Broker(worker.app)
        signals.worker_shutting_down.connect(self._begin)
        shield.on_held_stop(self._begin)

    def start(self, worker: Any) -> None:
        self._own_process = threading.current_thread() is threading.main_thread()

    def close(self, worker: Any) -> None:
        self._begin()  # control shutdown sends no signal

    def terminate(self, worker: Any) -> None:
        self._begin()

    def _begin(self, **kwargs: Any) -> None:
        if not self._begun and self._own_process:
            self._begun = True
            start_thread, self._sleep = _native()
            start_thread(self._watch, ())

    def _watch(self) -> None:
        began = closing_since = time.monotonic()
        while True:
            self._sleep(_LOOK_EVERY)
            now = time.monotonic()
            if self._grace and now - began > self._grace:
                return self._end(f"the grace of {self._grace:g} s has passed")
            if not self._waits_for_jobs():
                if now - closing_since > _CLOSING:
                    return self._end(f"no job runs, and it did not close in {_CLOSING:g} s")
                continue
            closing_since = now
            if not self._grace and self._broker.fails() and now - began > self._without_broker:
                return self._end(
                    f"the broker does not answer, and a job did not end in {self._without_broker:g} s"
                )

    def _waits_for_jobs(self) -> bool:
        """Whether Celery waits for jobs, rather than for a broker while it closes."""
        if not state.active_requests:
            return False
        consumer = getattr(self._worker, "consumer", None)
        closed = consumer is None or consumer.blueprint.state != bootsteps.RUN
        # In other pools the main thread sees the stop flag at once, unless the broker blocks it. In
        # solo it is in the job itself.
        return closed or self._worker.pool.__module__.endswith(".solo")

    def _end(self, why: str) -> None:
        # Logging may block on a thread that waits for the broker.
        _native()[0](self._exit_soon, ())
        processes = pool_processes(self._worker.pool)
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        logger.warning("this worker is ended (%s): its messages are redelivered", why)

    def _exit_soon(self) -> None:
        self._sleep(_REST if pool_processes(self._worker.pool) else _LOOK_EVERY)
        # An error that ended the worker has told only the worker so.
        code = state.should_stop if self._worker.exitcode is None else self._worker.exitcode
        end_now(1 if isinstance(code, str) else int(code or 0))


class _Broker:
    """Probes the broker in the background, at intervals."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._asking: threading.Thread | None = None
        self._answered_at = 0.0

    def fails(self) -> bool:
        """Whether it hasn't answered for ``_SILENCE`` seconds. The first call starts the probes."""
        if self._asking is None:
            self._answered_at = time.monotonic()
            self._asking = threading.Thread(target=self._ask, name="gwi-grace", daemon=True)
            self._asking.start()
        return time.monotonic() - self._answered_at > _SILENCE

    def _ask(self) -> None:
        broker = broker_for(self._app)
        while True:
            with contextlib.suppress(GwiError, OSError):
                if displaced(self._app) is not None:
                    return  # connecting would create another file
                broker.connect()
                self._answered_at = time.monotonic()
            time.sleep(_ASK_EVERY)


def _native() -> tuple[Callable[..., object], Callable[[float], object]]:
    """The system's functions to start a thread and to sleep, even where gevent has replaced them."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        import _thread

        return _thread.start_new_thread, time.sleep
    return monkey.get_original("_thread", "start_new_thread"), monkey.get_original("time", "sleep")
