"""A limit that was lowered while jobs held places beyond its new number.

Those places count too, so claims use only the first places of such a limit: the first M, where M is the
largest number for which M and the taken places after the first M are no more than the limit allows. Of
these, just as many are free as the limit has left. No claim takes a place after the first M, so those
only become fewer, and M only grows, up to the limit itself. An M that was found a while ago is too small
at worst: claims that know different ones never exceed the limit together, and none waits for another.

So a process lists all places once, and again when it finds none free among the first M. It forgets the
list once M is the limit itself.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping
from typing import Final

from gwi_celery.stores.base import Limited
from gwi_celery.stores.firestore.limit_settings import KEPT
from gwi_celery.stores.firestore.paths import SECOND
from gwi_celery.stores.firestore.places import Chosen, Look
from gwi_celery.stores.limits import LimitRef

#: Microseconds after an operator's change from which no claim takes a place by the former number.
SETTLED: Final = round(2 * KEPT * SECOND)
#: For how long a list holds that was read before that, microseconds.
_UNSETTLED_KEPT: Final = 5 * SECOND

_random = random.SystemRandom()


def first_places(allowed: int, taken: Collection[int]) -> int:
    """How many places claims may use, from the first on, given those that are taken."""
    first, beyond = allowed, sum(number >= allowed for number in taken)
    while first and first + beyond > allowed:
        first -= 1
        beyond += first in taken
    return first


class Lowered:
    """What a process knows of such a limit. Not safe to use from two threads at a time.

    Times are the server's, in microseconds; ``now`` may be a little late.
    """

    def __init__(self, limit: LimitRef, changed_at: int) -> None:
        self._limit = limit
        self._changed_at = changed_at
        #: Place -> when it becomes free, or infinity.
        self._taken: Mapping[int, float] = {}
        self._first = 0
        #: Times until which ``_taken`` and ``_first`` are right.
        self._taken_until = self._first_until = -math.inf
        #: When the first of the listed leases expires.
        self.leases_until = 0
        #: How many of the listed places may be taken although they have a document.
        self.loose = 0

    def is_of(self, limit: LimitRef, changed_at: int) -> bool:
        """Whether the limit has not been changed since."""
        wanted = limit.places, limit.period, changed_at
        return (self._limit.places, self._limit.period, self._changed_at) == wanted

    def settled(self, now: int) -> bool:
        """Whether no claim takes a place by the limit's former number any more."""
        return now - self._changed_at > SETTLED

    def over(self, now: int) -> bool:
        """Whether no place beyond the limit is taken, nor will be."""
        return self._taken_until == math.inf and self.first(now) == self._limit.places

    def first(self, now: int) -> int | None:
        """How many places claims may use, from the first on; None: the places must be listed."""
        if now >= self._taken_until:
            return None
        if now >= self._first_until:
            self._count(now)
        return self._first

    def listed(self, looked: Look, *, settled: bool) -> int:
        """Remember a look at all places. Returns how many claims may use, from the first on.

        Args:
            settled: What :meth:`settled` returned before the look.
        """
        self._taken = looked.taken
        if self._limit.period is None:
            silent = [*looked.late, *looked.own]  # they count until a commit frees them
            numbers = [*looked.taken, *(pick.number for pick in silent)]
            self._taken = dict.fromkeys(numbers, math.inf)
            self.leases_until = min(looked.taken.values(), default=0)
            self.loose = len(looked.late) + len(looked.free)
        self._taken_until = math.inf if settled else looked.now + _UNSETTLED_KEPT
        self._count(looked.now)
        return self._first

    def next_free(self, now: int) -> float:
        """Seconds until fewer of the listed places are taken than the limit allows, or than now."""
        times = sorted(self._taken.values())
        if not times:
            return 0.0
        return max(times[max(len(times) - self._limit.places, 0)] - now, 0.0) / SECOND

    def _count(self, now: int) -> None:
        self._taken = {number: until for number, until in self._taken.items() if until > now}
        self._first = first_places(self._limit.places, self._taken)
        self._first_until = min(self._taken.values(), default=math.inf)


def choose_of_all(looked: Look) -> Chosen | Limited:
    """A place among the first ones."""
    limit, taken = looked.limit, looked.taken
    late = sorted(looked.late, key=lambda pick: looked.silent_of([pick])[0].expires)
    needed = max(len(taken) + len(late) + 1 - limit.places, 0)
    if needed > len(late):
        free_at = sorted(taken.values())[len(taken) - limit.places]
        return Limited(limit, len(taken), retry_after=max(free_at - looked.now, 0) / SECOND)
    freed, kept = late[:needed], late[needed:]
    first = first_places(limit.places, {*taken, *(pick.number for pick in kept)})
    for picks in (looked.own, looked.free_before(first), freed):
        usable = [pick for pick in picks if pick.number < first]
        if usable:
            return Chosen(_random.choice(usable), looked.silent_of(freed))
    raise AssertionError  # fewer are taken than the limit allows
