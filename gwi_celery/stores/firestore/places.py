"""A look at places of one limit: which are free, which are taken, and by whom."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from gwi_celery.firestore.client import Client
from gwi_celery.firestore.documents import Document, Query
from gwi_celery.stores.base import Limited
from gwi_celery.stores.firestore.paths import LIMIT_PLACES, SECOND, Paths
from gwi_celery.stores.firestore.records import Lock, lock_of
from gwi_celery.stores.limits import LimitRef

#: Documents in one query, or one read.
_BATCH: Final = 300
#: Free places that are named of those without a document.
_SOME: Final = 64

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
        """The place as a lock's document names it."""
        return f"{self.limit.id}/{self.number}"


class Chosen(NamedTuple):
    """What a claim takes of one limit."""

    pick: Pick
    #: Expired locks, which it frees as the limit has no other place for its job.
    silent: Sequence[Lock] = ()


class Look:
    """One limit's places, as they were read: some, or all that have a document.

    Args:
        some: The places that were read, with their documents' names.
        documents: The documents that exist.
        own: (lock, nonce) of the locks that the claim replaces.
        now: The server's time of the read.
    """

    def __init__(
        self,
        client: Client,
        limit: LimitRef,
        some: Sequence[tuple[str, Pick]],
        documents: Mapping[str, Document],
        own: set[tuple[str, str]],
        now: int,
    ) -> None:
        self.limit = limit
        self.now = now
        self.free: list[Pick] = []
        self.own: list[Pick] = []
        #: Those of expired locks, which look_at_locks() finds.
        self.late: list[Pick] = []
        #: Number -> when it becomes free, microseconds by the server's clock.
        self.taken: dict[int, int] = {}
        self._client = client
        self._numbers = {pick.number for _, pick in some}
        self._silent: dict[int, Lock] = {}
        #: Taken for longer than the first lease of its lock: whether it is free depends on the lock.
        self._unsure: list[tuple[Pick, Mapping[str, Any]]] = []
        for name, pick in some:
            self._sort(pick, documents.get(name), own)

    @property
    def size(self) -> int:
        """How many places were looked at."""
        return len(self._numbers)

    def _sort(self, pick: Pick, document: Document | None, own: set[tuple[str, str]]) -> None:
        if document is None:
            self.free.append(pick)
            return
        data = document.fields["data"]
        period = self.limit.period  # it may have been another when the place was taken
        ttl = data["ttl"] if period is None else period
        until = document.update_time + round(ttl * SECOND)
        pick = Pick(pick.limit, pick.number, document.update_time)
        if data["lock"] and (data["lock"], data["nonce"]) in own:
            self.own.append(pick)
        elif until > self.now:
            self.taken[pick.number] = until
        elif data["lock"]:
            self._unsure.append((pick, data))
        else:
            self.free.append(pick)

    def choose(self) -> Chosen | Limited:
        """One of the places that were looked at."""
        if not (self.own or self.free):
            self.look_at_locks()
        for picks in (self.own, self.free, self.late):
            if picks:
                pick = _random.choice(picks)
                return Chosen(pick, self.silent_of([pick]))
        # Of a sample in which all are taken, the others count as taken too.
        held = max(len(self.taken), self.limit.places)
        left = (min(self.taken.values(), default=self.now) - self.now) / SECOND
        return Limited(self.limit, held, retry_after=max(left, 0.0))

    def look_at_locks(self) -> None:
        """Sort those whose first lease is over."""
        for start in range(0, len(self._unsure), _BATCH):
            some = self._unsure[start : start + _BATCH]
            read = self._client.read(list(dict.fromkeys(data["lock"] for _, data in some)))
            for pick, data in some:
                document = read.documents.get(data["lock"])
                lock = None if document is None else lock_of(document)
                if lock is None or lock.nonce != data["nonce"]:
                    self.free.append(pick)
                elif lock.expired(read.read_time):
                    self._silent[pick.number] = lock
                    self.late.append(pick)
                else:
                    self.taken[pick.number] = lock.expires
        self._unsure.clear()

    def silent_of(self, picks: Sequence[Pick]) -> list[Lock]:
        """The expired locks that hold these places."""
        return [self._silent[pick.number] for pick in picks if pick.number in self._silent]

    def free_before(self, first: int) -> list[Pick]:
        """After a look at all places: free ones among the first, but only some if there are many."""
        found = [pick for pick in self.free if pick.number < first]
        missing = [number for number in range(first) if number not in self._numbers]
        some = _random.sample(missing, min(len(missing), _SOME))
        return [*found, *(Pick(self.limit, number) for number in some)]


def look_at_all(client: Client, paths: Paths, limit: LimitRef, own: set[tuple[str, str]]) -> Look:
    """All places of a limit that have a document, those beyond its number too."""
    documents: dict[str, Document] = {}
    now = 0
    for page, read_time in pages(client, paths, limit.id):
        documents.update({document.name: document for document in page})
        now = now or read_time
    some = [(name, Pick(limit, int(name.rpartition("/")[2]))) for name in documents]
    looked = Look(client, limit, some, documents, own, now)
    looked.look_at_locks()
    return looked


def pages(
    client: Client, paths: Paths, limit_id: str | None
) -> Iterator[tuple[list[Document], int]]:
    """All places that have a document, of one limit or of all, with the server's time of each read."""
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
