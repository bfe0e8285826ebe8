"""Places of limits in a database: each is a document, named by its number, only while it is taken.

A claim takes a place by a precondition of its own commit, as it takes its lock: the document must not
exist; or, if the place's time is over, must be at the version just read. So no document is written by two
jobs at a time, and a free place costs no round trip. A process guesses which place is free from what it
has read, taken and freed. A wrong guess is refused, and then places are read: all, if they are few.

A place of ``max_running`` names its lock's document and that lock's nonce. It counts while the lock is
held, and renewals don't write it. A claim that takes it from an expired lock frees that lock in the same
commit, so that its former holder, if alive, has lost its lease. Whoever frees a lock deletes its places.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gwi_celery import forks
from gwi_celery.firestore import documents
from gwi_celery.firestore.client import Client
from gwi_celery.firestore.documents import Document, Micros, Query, Write
from gwi_celery.stores.base import ClaimRequest, Limited, PlaceRecord
from gwi_celery.stores.firestore.paths import DAY, LIMIT_PLACES, SECOND, Paths
from gwi_celery.stores.firestore.reads import Seen
from gwi_celery.stores.firestore.records import Lock, lock_of
from gwi_celery.stores.firestore.tries import Tries
from gwi_celery.stores.history import dump_place, load_place
from gwi_celery.stores.limits import LimitRef, LimitSetting

#: Places of a limit that a claim reads at most; of more, it reads a random choice.
_READ: Final = 16
#: Limits, and free places of each, that a process remembers.
_LIMITS_KNOWN, _FREE_KNOWN = 1000, 64
#: Seconds until an operator's change holds in every process.
_SETTINGS_KEPT: Final = 10.0
#: When the TTL policy deletes a place whose worker vanished: later than any job runs.
_RUNNING_KEPT: Final = 60 * DAY
#: Documents in one query, or one read.
_BATCH: Final = 300

_random = random.SystemRandom()


@dataclass(frozen=True)
class Pick:
    """A place to be taken."""

    limit: LimitRef
    number: int
    #: Version of the existing document; None: there is none.
    version: int | None = None

    @property
    def place(self) -> str:
        """As the lock's document has it."""
        return f"{self.limit.id}/{self.number}"


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


class Keeper:
    """One store's limits in this process."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._mutex = forks.lock()
        self._known: dict[str, _Known] = {}
        self._settings: dict[str, LimitSetting] = {}
        self._settings_until = 0.0

    # --- a claim ------------------------------------------------------------------------------

    def guess(self, limits: Sequence[LimitRef]) -> Taking | None:
        """Places that are probably free; None: unknown, so read first."""
        picks: list[Pick] = []
        with self._mutex:
            for limit in limits:
                pick = self._guess(limit)
                if pick is None:
                    return None
                picks.append(pick)
        return Taking(picks)

    def _guess(self, limit: LimitRef) -> Pick | None:
        if limit.before > limit.places:
            return None  # the jobs that run must be counted
        known = self._known.get(limit.id)
        if known is None:
            return Pick(limit, _random.randrange(limit.places))
        now = time.monotonic()
        for _ in range(len(known.free)):
            number, version, when = known.free.popleft()
            if number < limit.places and when <= now:
                return Pick(limit, number, version)
            if number < limit.places:
                known.free.append((number, version, when))
        if known.crowded or limit.period is not None:
            return None
        numbers: Sequence[int] = range(limit.places)
        if limit.places <= _FREE_KNOWN:
            numbers = [number for number in numbers if number not in known.mine]
        return Pick(limit, _random.choice(numbers)) if numbers else None

    def sample(self, limits: Sequence[LimitRef]) -> dict[str, Pick]:
        """The places to read, by their documents' names: all of a limit, or some."""
        found: dict[str, Pick] = {}
        for limit in limits:
            numbers: Sequence[int] = range(max(limit.places, limit.before))
            if len(numbers) > _READ:
                numbers = _random.sample(range(limit.places), min(_READ, limit.places))
            picks = [Pick(limit, number) for number in numbers]
            found.update({self._paths.place(pick.place): pick for pick in picks})
        return found

    def choose(
        self,
        client: Client,
        request: ClaimRequest,
        sample: Mapping[str, Pick],
        seen: Seen,
        other: Lock | None,
    ) -> Taking | Limited:
        """What a claim takes if nothing else stands against it; or the limit that has no free place.

        Args:
            sample: The places that were read.
            seen: What the read has found.
            other: The other lock of the job's last attempt.
        """
        there = {document.name: document for document in seen.others if document.name in sample}
        by_limit: dict[str, list[tuple[str, Pick]]] = {}
        for name, pick in sample.items():
            by_limit.setdefault(pick.limit.id, []).append((name, pick))
        ours = [lock for lock in (seen.lock, other) if lock is not None]
        own = {(self._paths.lock(lock.ref), lock.nonce) for lock in ours}
        picks: list[Pick] = []
        silent: dict[str, Lock] = {}
        for some in by_limit.values():
            looked = _Look(client, some[0][1].limit, some, there, own, seen.now)
            chosen = looked.choose()
            with self._mutex:
                known = self._known_of(looked.limit)
                known.crowded = 2 * len(looked.free) <= len(some)
                known.free.clear()
                left = [pick for pick in looked.free if pick is not chosen]
                known.free.extend((pick.number, pick.version, 0.0) for pick in left)
            if isinstance(chosen, Limited):
                return chosen
            picks.append(chosen)
            if (lock := looked.silent.get(chosen.number)) is not None:
                silent[self._paths.lock(lock.ref)] = lock
        silent.pop(self._paths.lock(request.lock), None)
        return Taking(picks, list(silent.values()))

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
                else:  # a little later, as this machine's clock may be fast beside the server's
                    again = now + pick.limit.period * 1.01 + 0.05
                    known.free.append((pick.number, version, again))

    def _known_of(self, limit: LimitRef) -> _Known:
        known = self._known.get(limit.id)
        if known is None:
            while len(self._known) >= _LIMITS_KNOWN:
                del self._known[next(iter(self._known))]
            known = self._known[limit.id] = _Known()
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

    # --- what operators set -------------------------------------------------------------------

    def settings(self, client: Client) -> dict[str, LimitSetting]:
        """As they were at most 10 seconds ago."""
        if self._settings_until <= time.monotonic():
            self._settings, _ = self._read_settings(client)
            self._settings_until = time.monotonic() + _SETTINGS_KEPT
        return self._settings

    def read_settings(self, client: Client) -> dict[str, LimitSetting]:
        """As they are now."""
        return self._read_settings(client)[0]

    def change(self, client: Client, id: str, setting: LimitSetting | None) -> bool:
        """Change the setting, or with None delete it. Returns whether there was one."""
        tries = Tries("change a limit")
        there = False
        for _ in tries:
            known, version = self._read_settings(client)
            there = there or id in known
            if known.get(id) == setting:
                return there
            known.pop(id, None)
            if setting is not None:
                known[id] = setting
            data = {each: known[each].dumps() for each in known}
            with tries.once():
                name = self._paths.limit_settings
                client.commit([documents.replace(name, {"data": data}, version)])
                self._settings_until = 0.0
                return there
        raise AssertionError

    def _read_settings(self, client: Client) -> tuple[dict[str, LimitSetting], int | None]:
        name = self._paths.limit_settings
        document = client.read([name]).documents.get(name)
        if document is None:
            return {}, None
        data = document.fields["data"]
        return {id: LimitSetting.loads(text) for id, text in data.items()}, document.update_time


class _Look:
    """One limit's places, as they were read."""

    def __init__(
        self,
        client: Client,
        limit: LimitRef,
        some: Sequence[tuple[str, Pick]],
        there: Mapping[str, Document],
        own: set[tuple[str, str]],
        now: int,
    ) -> None:
        self.limit = limit
        self._client = client
        self._now = now
        self.free: list[Pick] = []
        #: Number -> the expired lock that holds it.
        self.silent: dict[int, Lock] = {}
        self._late: list[Pick] = []
        self._own: list[Pick] = []
        #: When the places that are taken become free, microseconds by the server's clock.
        self._until: list[int] = []
        #: Taken for longer than the first lease of its lock: whether it is free depends on the lock.
        self._unsure: list[tuple[Pick, Mapping[str, Any]]] = []
        for name, pick in some:
            self._sort(pick, there.get(name), own)

    def _sort(self, pick: Pick, document: Document | None, own: set[tuple[str, str]]) -> None:
        if document is None:
            self._add(self.free, pick)
            return
        data = document.fields["data"]
        until = document.update_time + round(data["ttl"] * SECOND)
        pick = Pick(pick.limit, pick.number, document.update_time)
        if data["lock"] and (data["lock"], data["nonce"]) in own:
            self._add(self._own, pick)
        elif until > self._now:
            self._until.append(until)
        elif data["lock"]:
            self._unsure.append((pick, data))
        else:
            self._add(self.free, pick)

    def _add(self, picks: list[Pick], pick: Pick) -> None:
        if pick.number < self.limit.places:
            picks.append(pick)

    def choose(self) -> Pick | Limited:
        counted = self.limit.before > self.limit.places
        if counted or not (self._own or self.free):
            self._look_at_locks()
        full = counted and len(self._until) >= self.limit.places
        if not full:
            for picks in (self._own, self.free, self._late):
                if picks:
                    return _random.choice(picks)
        # Of a sample in which all are taken, the others count as taken too.
        held = max(len(self._until), self.limit.places)
        left = (min(self._until, default=self._now) - self._now) / SECOND
        return Limited(self.limit, held, retry_after=max(left, 0.0))

    def _look_at_locks(self) -> None:
        if not self._unsure:
            return
        names = list(dict.fromkeys(data["lock"] for _, data in self._unsure))
        read = self._client.read(names)
        for pick, data in self._unsure:
            document = read.documents.get(data["lock"])
            lock = None if document is None else lock_of(document)
            if lock is None or lock.nonce != data["nonce"]:
                self._add(self.free, pick)
            elif lock.expired(read.read_time):
                self.silent[pick.number] = lock
                self._add(self._late, pick)
            else:
                self._until.append(lock.expires)


def freeing(paths: Paths, lock: Lock) -> list[Write]:
    """The writes that free a lock's places, for a commit that deletes or replaces it at its version.

    They need no other precondition: whoever took one of the places meanwhile has deleted the lock.
    """
    return [documents.delete(paths.place(place)) for place in lock.places]


# --- lists ----------------------------------------------------------------------------------------


def listed(client: Client, paths: Paths, limit_id: str | None, most: int) -> list[PlaceRecord]:
    """Up to ``most`` places that are taken, of one limit or of all."""
    found: list[PlaceRecord] = []
    for page, now in _pages(client, paths, limit_id):
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


def _pages(
    client: Client, paths: Paths, limit_id: str | None
) -> Iterator[tuple[list[Document], int]]:
    parent = "" if limit_id is None else paths.limit(limit_id)
    after: Sequence[Any] | None = None
    while True:
        read = client.query(
            Query(parent, LIMIT_PLACES, descendants=limit_id is None, after=after, limit=_BATCH)
        )
        page = list(read.documents.values())
        yield [d for d in page if d.name.startswith(f"{paths.base}/")], read.read_time
        if len(page) < _BATCH:
            return
        after = [page[-1].name]
