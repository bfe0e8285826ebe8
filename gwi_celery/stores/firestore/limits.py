"""Places of limits in a database: each is a document, named by its number, only while it is taken.

A claim takes a place by a precondition of its own commit, as it takes its lock: the document must not
exist; or, if the place's time is over, must be at the version just read. So no document is written by two
jobs at a time, and a free place costs no round trip. A process guesses which place is free from what it
has read, taken and freed. A wrong guess is refused, and then places are read: all, if they are few. Of
a limit that was lowered, claims list the places that are taken, and use the first ones: see ``lowered``.

A place of ``max_running`` names its lock's document and that lock's nonce. It counts while the lock is
held, and renewals don't write it. A claim that takes it from an expired lock frees that lock in the same
commit, so that its former holder, if alive, has lost its lease. Whoever frees a lock deletes its places.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from gwi_celery import forks
from gwi_celery.firestore import documents
from gwi_celery.firestore.client import Client
from gwi_celery.firestore.documents import Document, Micros, Query, Write
from gwi_celery.stores.base import ClaimRequest, Limited, PlaceRecord
from gwi_celery.stores.firestore.limit_settings import REMEMBERED, Settings
from gwi_celery.stores.firestore.lowered import SETTLED, Lowered, choose_of_all
from gwi_celery.stores.firestore.paths import DAY, LIMIT_PLACES, SECOND, Paths
from gwi_celery.stores.firestore.places import Chosen, Look, Pick, look_at_all, pages
from gwi_celery.stores.firestore.reads import Seen
from gwi_celery.stores.firestore.records import Lock, lock_of
from gwi_celery.stores.history import dump_place, load_place
from gwi_celery.stores.limits import LimitRef

#: Places of a limit that a claim reads at most; of more, it reads a random choice.
_READ: Final = 16
#: Limits, and free places of each, that a process remembers.
_LIMITS_KNOWN, _FREE_KNOWN = 1000, 64
#: Expired locks that a commit frees.
_FREED: Final = 100
#: When the TTL policy deletes a place whose worker vanished: later than any job runs.
_RUNNING_KEPT: Final = 60 * DAY

_random = random.SystemRandom()


@dataclass(frozen=True)
class Taking:
    """What a claim takes with its lock."""

    picks: Sequence[Pick] = ()
    #: Expired locks, which it frees to take their places.
    silent: Sequence[Lock] = ()


NOTHING: Final = Taking()


@dataclass
class _Known:
    """What a process knows of one limit's places. It may be out of date; the commit decides."""

    #: (number, its document's version, monotonic time from which it is free).
    free: deque[tuple[int, int | None, float]] = field(
        default_factory=lambda: deque(maxlen=_FREE_KNOWN)
    )
    #: Numbers of the places that this process holds.
    mine: set[int] = field(default_factory=set)
    #: Whether at least half of the places read last were taken.
    crowded: bool = False
    #: The limit's, when that was last used.
    period: float | None = None


class Keeper:
    """One store's limits in this process."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._mutex = forks.lock()
        self._known: dict[str, _Known] = {}
        #: Limits that were lowered, by their ids.
        self._lowered: dict[str, Lowered] = {}
        #: What operators have set.
        self.settings = Settings(paths)

    # --- a claim ------------------------------------------------------------------------------

    def begin(self, client: Client, limits: Sequence[LimitRef]) -> None:
        """Before a claim of these limits, as they are in force: note which of them were lowered."""
        now = client.about_now()
        with self._mutex:
            for limit in limits:
                change = self.settings.last_change(limit)
                # By then nobody holds a place that was taken by the former number.
                over = REMEMBERED if limit.period is None else limit.period * SECOND
                lowered = self._lowered.get(limit.id)
                if change.places <= limit.places or change.at + over + SETTLED <= now:
                    self._lowered.pop(limit.id, None)
                elif lowered is None or not lowered.is_of(limit, change.at):
                    _make_room(self._lowered)
                    self._lowered[limit.id] = Lowered(limit, change.at)
                known = self._known.get(limit.id)
                if known is not None and known.period != limit.period:
                    known.free.clear()
                    known.period = limit.period

    def guess(self, client: Client, limits: Sequence[LimitRef]) -> Taking | None:
        """Places that are probably free; None: unknown, so read first."""
        picks: list[Pick] = []
        now = client.about_now()
        with self._mutex:
            for limit in limits:
                pick = self._guess(limit, self._first(limit, now))
                if pick is None:
                    return None
                picks.append(pick)
        return Taking(picks)

    def _guess(self, limit: LimitRef, first: int | None) -> Pick | None:
        if not first:
            return None
        known = self._known.get(limit.id)
        if known is None:
            return Pick(limit, _random.randrange(first))
        now = time.monotonic()
        for _ in range(len(known.free)):
            number, version, when = known.free.popleft()
            if number < first and when <= now:
                return Pick(limit, number, version)
            if number < limit.places:
                known.free.append((number, version, when))
        if known.crowded or limit.period is not None:
            return None
        numbers: Sequence[int] = range(first)
        if first <= _FREE_KNOWN:
            numbers = [number for number in numbers if number not in known.mine]
        return Pick(limit, _random.choice(numbers)) if numbers else None

    def _first(self, limit: LimitRef, now: int) -> int | None:
        """How many places claims may use, from the first on; None: the places must be listed."""
        lowered = self._lowered.get(limit.id)
        first = limit.places if lowered is None else lowered.first(now)
        return None if first is None else min(first, limit.places)

    def sample(self, client: Client, limits: Sequence[LimitRef]) -> dict[str, Pick]:
        """The places to read, by their documents' names: all of a limit, or some."""
        found: dict[str, Pick] = {}
        now = client.about_now()
        for limit in limits:
            with self._mutex:
                numbers: Sequence[int] = range(self._first(limit, now) or 0)
            if len(numbers) > _READ:
                numbers = _random.sample(numbers, _READ)
            picks = [Pick(limit, number) for number in numbers]
            found.update({self._paths.place(pick.place): pick for pick in picks})
        return found

    def choose(
        self,
        client: Client,
        request: ClaimRequest,
        limits: Sequence[LimitRef],
        sample: Mapping[str, Pick],
        seen: Seen,
        other: Lock | None,
    ) -> Taking | Limited:
        """What a claim takes if nothing else stands against it; or the limit that has no free place.

        Args:
            limits: As they are in force.
            sample: Their places that were read.
            seen: What the read has found.
            other: The other lock of the job's last attempt.
        """
        read = {document.name: document for document in seen.others if document.name in sample}
        by_limit: dict[str, list[tuple[str, Pick]]] = {}
        for name, pick in sample.items():
            by_limit.setdefault(pick.limit.id, []).append((name, pick))
        ours = [lock for lock in (seen.lock, other) if lock is not None]
        own = self._holders(ours)
        picks: list[Pick] = []
        silent: dict[str, Lock] = {}
        for limit in limits:
            looked = Look(client, limit, by_limit.get(limit.id, []), read, own, seen.now)
            chosen = looked.choose()
            if looked.size:
                self._saw(limit, looked.free, looked.size, chosen)
            if isinstance(chosen, Limited):
                chosen = self._look_further(client, request, looked, chosen, ours)
            if isinstance(chosen, Limited):
                return chosen
            picks.append(chosen.pick)
            silent.update({self._paths.lock(lock.ref): lock for lock in chosen.silent})
        silent.pop(self._paths.lock(request.lock), None)
        return Taking(picks, list(silent.values()))

    def _look_further(
        self,
        client: Client,
        request: ClaimRequest,
        looked: Look,
        limited: Limited,
        ours: Sequence[Lock],
    ) -> Chosen | Limited:
        """Look once more if the limit was lowered; ``limited``: the sample had no free place."""
        limit, now = limited.limit, looked.now
        with self._mutex:
            lowered = self._lowered.get(limit.id)
            if lowered is None:
                return limited
            first, wait = lowered.first(now), lowered.next_free(now)
            # More places may have become free since the sample was chosen.
            sampled = first is not None and looked.size >= min(first, _READ)
            if sampled and lowered.over(now):
                return limited
            loose, leases_until = lowered.loose, lowered.leases_until
        if first is not None and limit.period is None:
            if now <= leases_until:  # so no holder has fallen silent since they were listed
                taken = client.count(Query(self._paths.limit(limit.id), LIMIT_PLACES)) - loose
                own = [p for lock in ours for p in lock.places if p.startswith(f"{limit.id}/")]
                if taken - len(own) >= limit.places:
                    return Limited(limit, taken, retry_after=request.lease_ttl)
        elif sampled:
            least = limited.retry_after
            return replace(limited, retry_after=min(wait, least) if least else wait)
        settled = lowered.settled(client.about_now())
        looked = look_at_all(client, self._paths, limit, self._holders(ours))
        with self._mutex:
            first = lowered.listed(looked, settled=settled)
        chosen = choose_of_all(looked)
        self._saw(limit, looked.free_before(first), min(first, _FREE_KNOWN), chosen)
        if isinstance(chosen, Limited):
            return chosen
        silent = list(chosen.silent)
        while len(silent) > _FREED:
            some, silent = silent[:_FREED], silent[_FREED:]
            client.commit([write for lock in some for write in self._ending(lock)])
        return Chosen(chosen.pick, silent)

    def _holders(self, locks: Sequence[Lock]) -> set[tuple[str, str]]:
        """(Document, nonce) of each lock, as places name it."""
        return {(self._paths.lock(lock.ref), lock.nonce) for lock in locks}

    def _ending(self, lock: Lock) -> list[Write]:
        """The writes that free an expired lock, and its places."""
        name = self._paths.lock(lock.ref)
        return [documents.delete(name, lock.version), *freeing(self._paths, lock)]

    def writes(
        self, client: Client, request: ClaimRequest, taking: Taking, replaced: Sequence[Lock]
    ) -> list[Write]:
        """The writes that take the picks; then those that free the silent locks, and all places of these
        and of the ``replaced`` locks.
        """
        lock_name = self._paths.lock(request.lock)
        made: dict[str, Write] = {}
        for pick in taking.picks:
            limit, period = pick.limit, pick.limit.period
            kept = _RUNNING_KEPT if period is None else round(period * SECOND) + DAY
            fields = {
                "gc_at": Micros(client.about_now() + kept),
                "data": {
                    "about": dump_place(limit, request),
                    "lock": lock_name if period is None else "",
                    "nonce": request.nonce,
                    "ttl": float(request.lease_ttl if period is None else period),
                },
            }
            name = self._paths.place(pick.place)
            made[name] = documents.replace(name, fields, pick.version)
        writes = list(made.values())
        for lock in taking.silent:
            writes.append(documents.delete(self._paths.lock(lock.ref), lock.version))
        for lock in (*taking.silent, *replaced):
            for write in freeing(self._paths, lock):
                if write.name not in made:
                    made[write.name] = write
                    writes.append(write)
        return writes

    def taken(self, taking: Taking, versions: Sequence[int]) -> None:
        """Remember what a claim has taken. ``versions`` are those of the picks' documents now."""
        now = time.monotonic()
        with self._mutex:
            for pick, version in zip(taking.picks, versions, strict=False):
                known = self._known_of(pick.limit)
                if pick.limit.period is None:
                    known.mine.add(pick.number)
                else:  # a little later: this machine's clock may run faster than the server's
                    again = now + pick.limit.period * 1.01 + 0.05
                    known.free.append((pick.number, version, again))

    def _saw(
        self, limit: LimitRef, free: Sequence[Pick], of: int, chosen: Chosen | Limited
    ) -> None:
        """Remember which places are free, of so many; all but the chosen one."""
        number = None if isinstance(chosen, Limited) else chosen.pick.number
        left = [(pick.number, pick.version, 0.0) for pick in free if pick.number != number]
        with self._mutex:
            known = self._known_of(limit)
            known.crowded = 2 * len(free) <= of
            known.free.clear()
            known.free.extend(left)

    def _known_of(self, limit: LimitRef) -> _Known:
        known = self._known.get(limit.id)
        if known is None:
            _make_room(self._known)
            known = self._known[limit.id] = _Known(period=limit.period)
        return known

    def freed(self, places: Sequence[str]) -> None:
        """Remember that these places are free: their documents are deleted."""
        with self._mutex:
            for place in places:
                limit_id, _, number = place.partition("/")
                known = self._known.get(limit_id)
                if known is not None and int(number) in known.mine:
                    known.mine.discard(int(number))
                    known.free.append((int(number), None, 0.0))


def _make_room(known: dict[str, Any]) -> None:
    """For one more limit."""
    while len(known) >= _LIMITS_KNOWN:
        del known[next(iter(known))]


def freeing(paths: Paths, lock: Lock) -> list[Write]:
    """The writes that free a lock's places, for a commit that deletes or replaces it at its version.

    They need no other precondition: whoever took one of the places meanwhile has deleted the lock.
    """
    return [documents.delete(paths.place(place)) for place in lock.places]


# --- lists ----------------------------------------------------------------------------------------


def listed(client: Client, paths: Paths, limit_id: str | None, most: int) -> list[PlaceRecord]:
    """Up to ``most`` places that are taken, of one limit or of all."""
    found: list[PlaceRecord] = []
    for page, now in pages(client, paths, limit_id):
        names = {document.fields["data"]["lock"] for document in page} - {""}
        locks = client.read(list(names)).documents if names else {}
        for document in page:
            record = _record(document, locks)
            if record.free_at * SECOND > now and len(found) < most:
                found.append(record)
        if len(found) >= most:
            break
    return found


def _record(document: Document, locks: Mapping[str, Document]) -> PlaceRecord:
    data = document.fields["data"]
    taken, until = document.update_time, document.update_time + round(data["ttl"] * SECOND)
    if data["lock"]:
        held = locks.get(data["lock"])
        lock = None if held is None else lock_of(held)
        until = 0 if lock is None or lock.nonce != data["nonce"] else lock.expires
    return load_place(
        data["about"],
        limit_id=document.name.rpartition(f"/{LIMIT_PLACES}/")[0].rpartition("/")[2],
        of_rate=not data["lock"],
        taken_at=taken / SECOND,
        free_at=until / SECOND,
    )
