"""Renews the leases of running jobs in the background, at a third of their TTL.

Each renewal is a request to the store, which may be slow or stall, and a process may have hundreds of
jobs. So there are several lanes, each with a thread of its own: while one renews a lease, the next is
on watch, and renews what would be late otherwise. A process with one job needs one thread, and so does
one whose store answers at once: the second only watches.

It survives any error: a failed renewal is retried until the lease has certainly run out.
"""

from __future__ import annotations

import heapq
import logging
import os
import time
from functools import partial
from typing import Protocol

from gwi_celery import forks
from gwi_celery.background import NEVER, Ticker

logger = logging.getLogger(__name__)

#: Renewals in flight at a time: at 50 ms each 320 per second. 500 jobs with a TTL of 30 s need 50.
_LANES = 16
#: Seconds for which a due renewal is left to the first lane before another one starts it.
_LATE = 0.1


class Renewable(Protocol):
    """A running job, as the renewer sees it."""

    def renew_due(self) -> float:
        """Monotonic time of the next renewal; infinity if no more are needed."""

    def renew_if_idle(self) -> None:
        """Renew the lease, unless a save is doing so: a save that stalls must not occupy a lane.

        An error is kept: the job raises it at its next boundary.
        """


class Renewer:
    def __init__(self) -> None:
        self._jobs: set[Renewable] = set()
        #: Lane -> the job whose lease it is renewing. The lowest of the other lanes is on watch.
        self._busy: dict[int, Renewable] = {}
        self._lock = forks.lock()
        self._lanes = [
            Ticker("gwi-renewer" if lane == 0 else f"gwi-renewer-{lane}", partial(self._tick, lane))
            for lane in range(_LANES)
        ]

    def add(self, job: Renewable) -> None:
        with self._lock:
            self._jobs.add(job)
        self._watch_for(job.renew_due())

    def remove(self, job: Renewable) -> None:
        with self._lock:
            self._jobs.discard(job)

    def _tick(self, lane: int) -> float:
        """Renew the lease that is due first, if this lane is on watch; the next lane takes over."""
        with self._lock:
            if lane != self._on_watch():
                return NEVER
            waiting = self._jobs.difference(self._busy.values())
            first = heapq.nsmallest(2, ((job.renew_due(), id(job), job) for job in waiting))
            if not first:
                return NEVER
            due, _, job = first[0]
            if _taken_at(lane, due) > time.monotonic():
                return _taken_at(lane, due)
            self._busy[lane] = job
        if len(first) > 1:
            self._watch_for(first[1][0])
        try:
            job.renew_if_idle()
        except Exception:
            logger.exception("renewing a job's lease failed")
        finally:
            with self._lock:
                del self._busy[lane]
        self._watch_for(job.renew_due())  # the lane on watch may have looked meanwhile
        return 0.0

    def _watch_for(self, due: float) -> None:
        """Have the lane on watch look at that time. Without one, the next that gets free looks."""
        with self._lock:
            lane = self._on_watch()
        if lane is not None and due < NEVER:
            self._lanes[lane].wake(_taken_at(lane, due))

    def _on_watch(self) -> int | None:
        return next((lane for lane in range(_LANES) if lane not in self._busy), None)


def _taken_at(lane: int, due: float) -> float:
    """When a lane takes a renewal: the first is about to be free again, unless the store is slow."""
    return due if lane == 0 else due + _LATE


_renewer = Renewer()


def renewer() -> Renewer:
    """This process's renewer."""
    return _renewer


def _after_fork() -> None:
    global _renewer  # noqa: PLW0603 the parent's has no thread here
    _renewer = Renewer()


os.register_at_fork(after_in_child=_after_fork)
