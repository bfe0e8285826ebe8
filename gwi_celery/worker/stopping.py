"""Tells jobs when their worker begins to stop, and stops a worker whose embedded files are gone."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any

from celery import bootsteps, signals
from celery.worker import state

from gwi_celery import shield
from gwi_celery.background import NEVER, Ticker
from gwi_celery.errors import StoreError
from gwi_celery.integration import displaced, store_for
from gwi_celery.reliability.stopping import lower_flag, raise_flag
from gwi_celery.stores.sqlite import SqliteStore

logger = logging.getLogger(__name__)

#: Seconds between two checks of the embedded files.
_LOOK_EVERY = 1.0


class StopFlag(bootsteps.StartStopStep):
    """Worker bootstep: clears the flag at start, and sets it as soon as the worker begins to stop.

    From its start on, the process holds back signals while library code runs.
    """

    def start(self, worker: Any) -> None:
        lower_flag()
        shield.arm()

    def close(self, worker: Any) -> None:
        raise_flag()

    def terminate(self, worker: Any) -> None:
        raise_flag()


def _check_store(app: Any) -> None:
    """Log an embedded store that can't be used: every job would wait for it."""
    store = store_for(app)
    if isinstance(store, SqliteStore):
        try:
            with store.database.read():
                pass
        except StoreError as exc:
            logger.error("jobs will wait, as their store can't be used: %s", exc)


class FolderWatch(bootsteps.StartStopStep):
    """Worker bootstep: ends the worker, with exit code 1, once one of its files is gone.

    Nothing would wake the worker any more: later publishers create, or find, another file.
    """

    label = "Folder"

    def start(self, worker: Any) -> None:
        _check_store(worker.app)
        self._ticker = Ticker("gwi-folder", partial(self._look, worker))
        self._ticker.wake()

    def stop(self, worker: Any) -> None:
        self._ticker.stop(0.0)

    def terminate(self, worker: Any) -> None:
        self._ticker.stop(0.0)

    def _look(self, worker: Any) -> float:
        """End the worker if a file is gone; returns the monotonic time of the next look."""
        problem = displaced(worker.app)
        if problem is None:
            return time.monotonic() + _LOOK_EVERY
        logger.critical("this worker stops: %s", problem)
        # Stop as at SIGTERM, except for the exit code.
        state.should_stop = 1
        signals.worker_shutting_down.send(
            sender=worker.hostname, sig="SIGTERM", how="Warm", exitcode=1
        )
        return NEVER
