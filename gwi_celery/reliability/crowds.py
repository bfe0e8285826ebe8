"""How many jobs wait for one lock or limit, as far as this process has seen them ask for it.

Few may ask often: then what is freed is taken soon. Of many one is always about to ask.
"""

from __future__ import annotations

import time
from typing import Final

from gwi_celery import forks

#: Seconds between two questions that are asked for one thing, in units of the first wait.
_BETWEEN: Final = 2.0
#: Things and jobs of each that are counted.
_THINGS, _JOBS = 1000, 100


class Crowds:
    """Of one process. Safe to use from any thread, and after a fork."""

    def __init__(self) -> None:
        self._lock = forks.lock()
        #: Thing -> job -> monotonic time at which it asked last; by when they asked, latest last.
        self._seen: dict[str, dict[str, float]] = {}

    def longest_wait(self, thing: str, job: str, first: float, most: float) -> float:
        """Seconds that ``job`` waits at most for ``thing``, for which it has just asked in vain.

        The more wait, the longer: all together ask once in two ``first`` waits. At most ``most``.
        """
        now = time.monotonic()
        with self._lock:
            seen = self._seen.pop(thing, {})
            seen.pop(job, None)
            seen[job] = now
            # Who has not asked for so long has got it, or has gone.
            recent = {job: at for job, at in seen.items() if now - at <= 2 * most}
            for _ in range(len(recent) - _JOBS):
                del recent[next(iter(recent))]
            self._seen[thing] = recent
            while len(self._seen) > _THINGS:
                del self._seen[next(iter(self._seen))]
            return min(_BETWEEN * first * len(recent), most)
