"""Workers on Pub/Sub take nothing from a paused queue: they read the pauses from the store."""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from celery import bootsteps

from gwi_celery.background import Ticker
from gwi_celery.brokers.embedded import EmbeddedBroker
from gwi_celery.errors import GwiError
from gwi_celery.integration import broker_for, integration

logger = logging.getLogger(__name__)

#: Seconds between two reads; each costs one read of the store.
ASK_EVERY: Final = 10.0


class PauseWatch(bootsteps.StartStopStep):
    """Worker bootstep: reads the pauses before the first message is taken, and from then on."""

    label = "Pauses"
    #: The pool forks its children before the first read opens a connection.
    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._pauses = integration(worker.app).authority.pauses
        self._ticker = Ticker("gwi-pauses", self._ask)

    def include_if(self, worker: Any) -> bool:
        """Not with the embedded broker, which pauses a queue itself."""
        try:
            return not isinstance(broker_for(worker.app), EmbeddedBroker)
        except GwiError:
            return False  # another package's broker

    def start(self, worker: Any) -> None:
        self._ticker.wake(self._ask())

    def stop(self, worker: Any) -> None:
        self._ticker.stop(0.0)

    def terminate(self, worker: Any) -> None:
        self._ticker.stop(0.0)

    def _ask(self) -> float:
        try:
            if self._pauses.refresh():
                named = ", ".join(map(repr, sorted(self._pauses.queues))) or "none"
                logger.warning("paused queues: %s", named)
        except GwiError as exc:  # the jobs that it takes meanwhile wait for the store, too
            logger.warning("could not read which queues are paused: %s", exc)
        return time.monotonic() + ASK_EVERY
