"""Records of dead letters and of paused queues, in a database.

A record that has ended keeps no field that queries use, so that none finds it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any, Final

from gwi_celery.brokers.letters import DeadLetter
from gwi_celery.firestore import documents
from gwi_celery.firestore.client import Client
from gwi_celery.firestore.documents import Filter, Micros, Query, Write
from gwi_celery.ids import digest
from gwi_celery.stores.firestore.paths import SECOND, Paths
from gwi_celery.stores.firestore.records import get_text, put_text
from gwi_celery.stores.paging import check_limit, place_of, token_after
from gwi_celery.stores.queues import (
    LEFT_OVER,
    LetterFilter,
    LetterPage,
    QueueRecords,
    kept_until,
    listed_until,
)

LETTERS: Final = "gwi_letters"
QUEUES: Final = "gwi_queues"
DIED: Final = "died"
EXPIRES: Final = "expires"
#: Documents in one query, read or commit.
_BATCH: Final = 300
_TRIES: Final = 3


class FirestoreQueues(QueueRecords):
    """The records in one database."""

    def __init__(self, client: Client, paths: Paths) -> None:
        self._client = client
        self._paths = paths

    def keep(self, letter: DeadLetter) -> None:
        fields = {
            "reason": put_text(letter.reason),
            "queue": digest("queue", letter.queue),
            "task": digest("task", letter.task),
            "tenant": digest("tenant", letter.tenant),
            "error": digest("error", letter.error_class),
            "call": digest("call", letter.task_id),
            DIED: Micros.at(letter.died_at),
            EXPIRES: Micros.at(listed_until(letter)),
            "gc_at": Micros.at(kept_until(letter)),
            "data": letter.dumps(),
        }
        self._client.commit_surely([Write(self._name(letter.id), fields)], tries=_TRIES)

    def end(self, ids: Collection[str]) -> None:
        client, every = self._client, list(ids)
        gc_at = Micros(client.about_now() + round(LEFT_OVER * SECOND))
        for start in range(0, len(every), _BATCH):
            batch = every[start : start + _BATCH]
            ended = [Write(self._name(id), {"gc_at": gc_at}) for id in batch]
            client.commit_surely(ended, tries=_TRIES)

    def known(self, ids: Collection[str]) -> dict[str, bool]:
        client, every = self._client, list(ids)
        found: dict[str, bool] = {}
        for start in range(0, len(every), _BATCH):
            names = {self._name(id): id for id in every[start : start + _BATCH]}
            read = client.read(list(names), mask=[DIED]).documents
            found |= {names[name]: DIED in document.fields for name, document in read.items()}
        return found

    def get(self, id: str) -> DeadLetter | None:
        name = self._name(id)
        read = self._client.read([name])
        document = read.documents.get(name)
        if document is None or document.fields.get(EXPIRES, 0) <= read.read_time:
            return None
        return DeadLetter.loads(document.fields["data"])

    def find(
        self, wanted: LetterFilter, *, limit: int = 100, token: str | None = None
    ) -> LetterPage:
        check_limit(limit)
        after = None
        if token is not None:
            moment, id = place_of(token, wanted.id)
            after = [Micros.at(moment), self._name(id)]
        found: list[tuple[int, DeadLetter]] = []
        query = self._query(wanted)
        while len(found) <= limit:
            # One more than the page holds tells whether there is another.
            asked = min(limit + 1 - len(found), _BATCH)
            read = self._client.query(replace(query, after=after, limit=asked))
            for document in read.documents.values():
                after = [Micros(document.fields[DIED]), document.name]
                if document.fields[EXPIRES] > read.read_time:
                    letter = DeadLetter.loads(document.fields["data"])
                    found.append((document.fields[DIED], letter))
            if len(read.documents) < asked:
                break
        page, next_token = found[:limit], None
        if len(found) > limit:
            next_token = token_after(page[-1][0] / SECOND, page[-1][1].id, wanted.id)
        return LetterPage([letter for _, letter in page], next_token)

    def count(self, wanted: LetterFilter) -> int:
        """As :meth:`QueueRecords.count`, including those that have expired, until they are deleted."""
        return self._client.count(self._query(wanted))

    def expiring(self, before: float, *, limit: int = 1000) -> list[DeadLetter]:
        client = self._client
        query = Query(
            self._paths.base,
            LETTERS,
            filters=[
                Filter(EXPIRES, ">=", Micros(client.about_now())),
                Filter(EXPIRES, "<", Micros.at(before)),
            ],
            order=[(EXPIRES, "asc")],
            limit=limit,
        )
        found = client.query(query).documents.values()
        return [DeadLetter.loads(document.fields["data"]) for document in found]

    def set_paused(self, queue: str, paused: bool) -> None:
        # A field for each queue, so that two operators don't undo each other's changes.
        field = f"q{digest('queue', queue)}"
        fields = {"data": {field: put_text(queue)}} if paused else {}
        change = Write(self._pauses, fields, mask=[f"data.{field}"])
        self._client.commit_surely([change], tries=_TRIES)

    def paused(self) -> frozenset[str]:
        document = self._client.read([self._pauses]).documents.get(self._pauses)
        data: dict[str, Any] = {} if document is None else document.fields.get("data", {})
        return frozenset(get_text(queue) for queue in data.values())

    def delete_old(self, limit: int) -> int:
        """Delete up to ``limit`` records that have been kept long enough; how many."""
        client = self._client
        old = Filter("gc_at", "<=", Micros(client.about_now()))
        order = [("gc_at", "asc")]
        query = Query(self._paths.base, LETTERS, filters=[old], order=order, limit=_BATCH, mask=[])
        deleted = 0
        while deleted < limit:
            found = list(client.query(query).documents)[: limit - deleted]
            if not found:
                break
            client.commit_surely([documents.delete(name) for name in found], tries=_TRIES)
            deleted += len(found)
        return deleted

    @property
    def _pauses(self) -> str:
        return f"{self._paths.base}/{QUEUES}/paused"

    def _name(self, id: str) -> str:
        return f"{self._paths.base}/{LETTERS}/{id}"

    def _query(self, wanted: LetterFilter) -> Query:
        """Each equality is served by a composite index of it and ``died``; Firestore merges several."""
        filters = []
        if wanted.reason is not None:
            filters.append(Filter("reason", "==", put_text(wanted.reason)))
        for name, value in (
            *(("queue", wanted.queue), ("task", wanted.task), ("tenant", wanted.tenant)),
            *(("error", wanted.error), ("call", wanted.task_id)),
        ):
            if value is not None:
                filters.append(Filter(name, "==", digest(name, value)))
        for op, moment in ((">=", wanted.since), ("<", wanted.before)):
            if moment is not None:
                filters.append(Filter(DIED, op, Micros.at(moment)))
        return Query(self._paths.base, LETTERS, filters=filters, order=[(DIED, "desc")])
