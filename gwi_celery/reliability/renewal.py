"""Renews the leases of running jobs in the background: one thread per process.

It is woken for the earliest lease that needs it, renews at a third of the TTL, and survives any
error: what could not be renewed is tried again until the lease is surely over.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Protocol

from gwi_celery import forks

logger = logging.getLogger(__name__)


class Renewable(Protocol):
    """A running job, as the renewer sees it."""

    def renew_due(self) -> float:
        """Monotonic time of the next renewal; infinity once none is needed any more."""

    def renew_now(self) -> None:
        """Renew. Keeps what went wrong to itself, for the job to find at its next boundary."""


class Renewer:
    def __init__(self) -> None:
        self._jobs: set[Renewable] = set()
        self._changed = forks.condition()
        self._thread: threading.Thread | None = None
        self._next = float("inf")

    def add(self, job: Renewable) -> None:
        with self._changed:
            self._jobs.add(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="gwi-renewer", daemon=True)
                self._thread.start()
            elif job.renew_due() < self._next:
                self._changed.notify()

    def remove(self, job: Renewable) -> None:
        with self._changed:
            self._jobs.discard(job)

    def _run(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                due = [job for job in self._jobs if job.renew_due() <= now]
                if not due:
                    self._next = min((j.renew_due() for j in self._jobs), default=float("inf"))
                    wait = self._next - now
                    self._changed.wait(None if wait == float("inf") else wait)
                    continue
            for job in due:
                try:
                    job.renew_now()
                except Exception:
                    logger.exception("renewing a job's lease failed")


_renewer = Renewer()


def renewer() -> Renewer:
    """This process's renewer."""
    return _renewer


def _after_fork() -> None:
    global _renewer  # noqa: PLW0603 the parent's has no thread here
    _renewer = Renewer()


os.register_at_fork(after_in_child=_after_fork)
