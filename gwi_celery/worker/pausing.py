"""Workers on Pub/Sub take nothing from a paused queue: they ask the store every few seconds."""

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

#: Seconds between two questions: one read of the store each.
ASK_EVERY: Final = 10.0


class PauseWatch(bootsteps.StartStopStep):
    """Worker bootstep: asks before the first message is taken, and from then on."""

    label = "Pauses"
    #: Its children are forked before the store is asked for the first time.
    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._pauses = integration(worker.app).authority.pauses
        self._ticker = Ticker("gwi-pauses", self._ask)

    def include_if(self, worker: Any) -> bool:
        """The embedded broker pauses a queue itself."""
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
                logger.warning("queues that are paused: %s", named)
        except GwiError as exc:  # its jobs wait for the store, too
            logger.warning("which queues are paused is not known now: %s", exc)
        return time.monotonic() + ASK_EVERY
