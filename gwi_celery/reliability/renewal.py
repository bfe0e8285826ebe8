"""Renews the leases of running jobs in the background: one thread per process.

It wakes for the earliest due lease, renews at a third of the TTL, and survives any error: a failed
renewal is retried until the lease has certainly run out.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Protocol

from gwi_celery import forks
from gwi_celery.background import NEVER, Ticker

logger = logging.getLogger(__name__)


class Renewable(Protocol):
    """A running job, as the renewer sees it."""

    def renew_due(self) -> float:
        """Monotonic time of the next renewal; infinity if no more are needed."""

    def renew_if_idle(self) -> None:
        """Renew the lease, unless a save is doing so: a save that stalls must not delay other jobs.

        An error is kept: the job raises it at its next boundary.
        """


class Renewer:
    def __init__(self) -> None:
        self._jobs: set[Renewable] = set()
        self._lock = forks.lock()
        self._ticker = Ticker("gwi-renewer", self._renew_due)

    def add(self, job: Renewable) -> None:
        with self._lock:
            self._jobs.add(job)
        self._ticker.wake(job.renew_due())

    def remove(self, job: Renewable) -> None:
        with self._lock:
            self._jobs.discard(job)

    def _renew_due(self) -> float:
        now = time.monotonic()
        with self._lock:
            due = [job for job in self._jobs if job.renew_due() <= now]
        for job in due:
            try:
                job.renew_if_idle()
            except Exception:
                logger.exception("renewing a job's lease failed")
        with self._lock:
            return min((job.renew_due() for job in self._jobs), default=NEVER)


_renewer = Renewer()


def renewer() -> Renewer:
    """This process's renewer."""
    return _renewer


def _after_fork() -> None:
    global _renewer  # noqa: PLW0603 the parent's has no thread here
    _renewer = Renewer()


os.register_at_fork(after_in_child=_after_fork)
