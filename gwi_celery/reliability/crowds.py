"""Counts the jobs that wait for one lock or limit, as far as this process has seen them claim it.

Few jobs may claim often, so that a free lock is taken soon. Of many jobs, one is always about to claim.
"""

from __future__ import annotations

import time
from typing import Final

from gwi_celery import forks

#: Time between two claims of one lock or limit by all its waiting jobs, in units of the first wait.
_BETWEEN: Final = 2.0
#: Most locks and limits that are counted, and most jobs of each.
_MOST_IDS, _MOST_JOBS = 1000, 100


class Crowds:
    """The crowds of one process. Safe to use from any thread, and after a fork."""

    def __init__(self) -> None:
        self._lock = forks.lock()
        #: Id of a lock or limit -> job -> monotonic time of the job's last claim; the latest is last.
        self._seen: dict[str, dict[str, float]] = {}

    def longest_wait(self, behind: str, job: str, first: float, most: float) -> float:
        """Seconds for which ``job``, whose claim just failed, waits at most before the next.

        The more jobs wait, the longer: together they claim once in two ``first`` waits.

        Args:
            behind: Id of the lock or limit that it waits for.
            first: Seconds of a job's first wait.
            most: Upper bound of the answer, seconds.
        """
        now = time.monotonic()
        with self._lock:
            seen = self._seen.pop(behind, {})
            seen.pop(job, None)
            seen[job] = now
            # A job that has not claimed for so long has run, or is gone.
            recent = {job: at for job, at in seen.items() if now - at <= 2 * most}
            for _ in range(len(recent) - _MOST_JOBS):
                del recent[next(iter(recent))]
            self._seen[behind] = recent
            while len(self._seen) > _MOST_IDS:
                del self._seen[next(iter(self._seen))]
            return min(_BETWEEN * first * len(recent), most)
