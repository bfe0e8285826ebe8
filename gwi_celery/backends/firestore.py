"""Celery's results in Firestore: ``result_backend = "firestore://project/prefix?database=..."``.

==========================  =================================================================  ====
a result, first of its id   created: "not there" is all it asks for                               1
a result of another state   over the version that this process wrote before                       1
                            else, after a RETRY, read, and written over the version read          2
                            else refused first: there was one after all                           3
a ReliableTask's result     goes with the outcome, where the store is in the same place           0
a chord                     its group and its count in one commit, its size, once known           2
a chord's part              created, and counted in the same commit                               1
a chord's last part         then group, results (100 a read), and a mark that the body was sent   4
get, or a group's get       one read; then what changes comes by a stream that all share          1
==========================  =================================================================  ====

A write whose answer was lost is sent again, and found by its nonce if it was applied.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from celery import states
from celery.exceptions import TimeoutError
from kombu.utils.encoding import bytes_to_str, ensure_bytes
from kombu.utils.functional import LRUCache

from gwi_celery.backends import tenants
from gwi_celery.backends.base import (
    RENEW_CHORD_AFTER,
    Counted,
    ReliableBackend,
    came_before,
)
from gwi_celery.errors import ConfigurationError, StoreUnusable
from gwi_celery.firestore import documents
from gwi_celery.firestore.client import Client, Conflict, Intercept, Unsettled
from gwi_celery.firestore.documents import Document, Query, Write
from gwi_celery.firestore.listener import Listener, Watch, listener_of, stop_listening
from gwi_celery.firestore.url import FirestoreURL, parse
from gwi_celery.stores.base import StoredResult
from gwi_celery.stores.firestore import blobs
from gwi_celery.stores.firestore.places import SECOND, Places
from gwi_celery.stores.firestore.records import blob_of
from gwi_celery.stores.firestore.results import (
    PARTS,
    RESULTS,
    ResultWrite,
    gc_at,
    has_expired,
    part_name,
    result_name,
    result_of,
    unpacked,
)
from gwi_celery.stores.firestore.tries import Tries

#: Documents in one read; deletions in one commit; expired results in one page of a clean-up.
_BATCH: Final = 100
#: Documents that one wait watches at a time. Google advises against more than 100 in a process.
_LISTENED: Final = 50
#: Pauses, seconds, between polls while the stream of changes is down.
_FIRST_LOOK, _LONGEST_LOOK = 0.5, 2.0
#: Seconds between polls while it is up, in case it has stalled.
_LIVE_LOOK: Final = 30.0
#: Times that a repeatable write is sent.
_TRIES: Final = 3
#: Results not finished yet of which this process knows the version.
_KNOWN: Final = 1000

#: All of a result but its bytes.
_MANIFEST: Final = [f"data.{name}" for name in ("ttl", "sha", "chunks", "count", "size", "object")]


@dataclass(frozen=True)
class _Place:
    """What all backends of one URL share in this process and its forks: Celery makes one per thread."""

    client: Client
    #: Name of a result -> its version, as this process has written it.
    versions: Any = field(default_factory=lambda: LRUCache(limit=_KNOWN))


_places: dict[FirestoreURL, _Place] = {}


class FirestoreBackend(ReliableBackend):
    """See the module.

    Args:
        url: See :class:`gwi_celery.firestore.url.FirestoreURL`.
        intercept: Between the client and the server, for tests.

    Raises:
        ConfigurationError: the URL is wrong, or asks for a database for each tenant.
    """

    def __init__(
        self, app: Any, url: str | None = None, *, intercept: Intercept | None = None, **kwargs: Any
    ) -> None:
        parsed = parse(url or "firestore://")
        if parsed.database_per_tenant:
            raise ConfigurationError(
                f"{url!r} has a database for each tenant, and results are asked for by a task's id "
                "alone: set result_backend to firestore://project/prefix?database=... with one "
                "database, or to 'disabled://'"
            )
        super().__init__(app=app, url=url, **kwargs)
        self._names = Places(parsed.prefix)
        if intercept is not None:
            self._place = _Place(Client(parsed, intercept=intercept))
        else:
            self._place = _places.get(parsed) or _places.setdefault(parsed, _Place(Client(parsed)))

    def as_uri(self, include_password: bool = False) -> str:
        return str(self.url)

    @property
    def client(self) -> Client:
        return self._place.client

    @property
    def _listener(self) -> Listener:
        return listener_of(self.client)

    def close(self) -> None:
        """Close this process's connection. Safe to call twice; the next call opens another."""
        stop_listening(self.client)
        self.client.close()

    # --- the key-value verbs ------------------------------------------------------------------

    def get(self, key: str) -> Any:
        return self.mget([key])[0]

    def mget(self, keys: Iterable[str]) -> list[Any]:
        names = [result_name(self._names, key) for key in keys]
        found: dict[str, bytes] = {}
        for group in blobs.batches(names, _BATCH):
            read = self.client.read(group)
            for name, document in read.documents.items():
                value = self._value(document, read.read_time)
                if value is not None:
                    found[name] = value
        return [found.get(name) for name in names]

    def delete(self, key: str) -> None:
        name = result_name(self._names, key)
        document = self.client.read([name], _MANIFEST).documents.get(name)
        if document is None:
            return
        data = document.fields.get("data", {})
        blob = blob_of(data) if "sha" in data else None
        gone = [documents.delete(name), *blobs.deletions(blob, name)]
        self.client.commit_surely(gone, tries=_TRIES)
        blobs.drop(self.client, [blob])
        self._place.versions.pop(name, None)

    def expire(self, key: str, value: Any) -> None:
        """Let it expire ``value`` seconds from now; 0 or None: not at all."""
        name, ttl = result_name(self._names, key), float(value) if value else None
        fields = {"gc_at": gc_at(self.client, ttl), "data": {"ttl": ttl}}
        write = Write(name, fields, mask=["gc_at", "data.ttl"], exists=True)
        self._place.versions.pop(name, None)
        try:
            self.client.commit_surely([write], tries=_TRIES)
        except Conflict:
            return  # it is gone

    def _write(
        self, key: str, value: Any, state: str, expires: Any, request: Any, version: Any = None
    ) -> ResultWrite:
        result = StoredResult(
            task_id="",  # of a group, say: the key is what counts
            key=key,
            state=state,
            meta=ensure_bytes(value),
            ttl=float(expires) if expires else None,
            seen_before=came_before(request),
            version=version,
            tenant=tenants.tenant_of(request),
        )
        return ResultWrite(self.client, self._names, result)

    def put(self, key: str, value: Any, state: str | None, expires: Any, request: Any) -> None:
        name = result_name(self._names, key)
        version = self._place.versions.pop(name, None)
        write = self._write(key, value, state or "", expires, request, version)
        if state is None:
            self.client.commit_surely([write.write_over(), *write.pieces], tries=_TRIES)
            return

        def look() -> None:
            read = self.client.read([name])
            write.look(read.documents.get(name), read.read_time)

        if write.unsure:
            look()
        tries = Tries("store a result", look)
        for _ in tries:
            if write.settled:
                if write.taken:
                    self.log_taken(key)
                return
            with tries.once():
                written = self.client.commit([*write.writes(), *write.pieces])
                write.written()
                if state not in states.READY_STATES:
                    self._place.versions[name] = written.versions[0]
                return

    def known_version(self, key: str) -> Any:
        return self._place.versions.get(result_name(self._names, key))

    def _value(self, document: Document, now: int) -> bytes | None:
        """The value of a document; None if it has expired."""
        result = result_of(document)
        if result.expired(now):
            return None
        try:
            (packed,) = blobs.unpack(self.client, document.name, [result.blob])
        except StoreUnusable:
            read = self.client.read([document.name])
            again = read.documents.get(document.name)
            if again is not None and again.update_time == document.update_time:
                raise
            # Replaced or deleted, with its pieces, since it was read.
            return None if again is None else self._value(again, read.read_time)
        return unpacked(packed)

    # --- waiting ------------------------------------------------------------------------------

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_interval: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As Celery's, but woken by the result instead of polling every ``interval``."""
        self._ensure_not_eager()
        meta = self.get_task_meta(task_id)
        if meta["status"] in states.READY_STATES:
            return self.arrived(meta, on_interval)
        for _, meta in self._waited([task_id], timeout, interval, on_interval):
            return self.arrived(tenants.checked(task_id, meta), on_interval)
        raise AssertionError  # it came, or the time was up

    def get_many(
        self,
        task_ids: Any,
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,
        on_message: Any = None,
        on_interval: Any = None,
        max_iterations: int | None = None,
        READY_STATES: Any = states.READY_STATES,
    ) -> Iterator[tuple[str, Any]]:
        """As Celery's: one read for up to 100 results, then woken by those that arrive."""
        left = list(dict.fromkeys(bytes_to_str(task_id) for task_id in task_ids))
        for task_id in list(left):
            meta = self._cached(task_id)
            if meta is not None and meta["status"] in READY_STATES:
                left.remove(task_id)
                yield task_id, tenants.checked(task_id, meta)
        for task_id, meta in (self._look(left) if left else {}).items():
            left.remove(task_id)
            tenants.checked(task_id, meta)
            if on_message is not None:
                on_message(meta)
            yield task_id, meta
        if left and not max_iterations:
            for task_id, meta in self._waited(left, timeout, interval, on_interval):
                tenants.checked(task_id, meta)
                if on_message is not None:
                    on_message(meta)
                yield task_id, meta

    def _cached(self, task_id: str) -> Any:
        try:
            return self._cache[task_id]
        except KeyError:
            return None

    def _look(self, task_ids: Sequence[str]) -> dict[str, Any]:
        """The results that are there and ready; kept in Celery's cache, too."""
        values = self.retried(self.mget, [self.get_key_for_task(id) for id in task_ids])
        ready: dict[str, Any] = self._mget_to_results(values, list(task_ids))
        self._cache.update(ready)
        return ready

    def _waited(
        self,
        task_ids: Collection[str],
        timeout: float | None,
        interval: float | None,
        on_interval: Any,
    ) -> Iterator[tuple[str, Any]]:
        """Each result, once it is ready. Raises Celery's TimeoutError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        ids = {result_name(self._names, self.get_key_for_task(id)): id for id in task_ids}
        left = list(ids)
        looked_at, pause = time.monotonic(), _FIRST_LOOK
        with self._listener.watching() as watch:
            while left:
                now = time.monotonic()
                if deadline is not None and now >= deadline:
                    raise TimeoutError("The operation timed out.")
                _keep_listening(watch, left)
                until = min(
                    looked_at + (_LIVE_LOOK if watch.live else pause),
                    now + (interval or _LONGEST_LOOK),
                    now + _LONGEST_LOOK if deadline is None else deadline,
                )
                ready = self._ready(watch.wait(until - now), ids)
                if watch.live:
                    pause = _FIRST_LOOK
                if not ready and time.monotonic() >= looked_at + (
                    _LIVE_LOOK if watch.live else pause
                ):
                    ready = self._look([ids[name] for name in left])
                    looked_at, pause = time.monotonic(), min(pause * 1.5, _LONGEST_LOOK)
                for name in [name for name in left if ids[name] in ready]:
                    left.remove(name)
                    watch.drop(name)
                    yield ids[name], ready[ids[name]]
                if on_interval and not ready:
                    on_interval()

    def _ready(self, changes: Iterable[Any], ids: Mapping[str, str]) -> dict[str, Any]:
        ready = {}
        for change in changes:
            value = self._value(change.document, change.read_time)
            if value is None:
                continue
            meta = self.decode_result(value)
            if meta["status"] in states.READY_STATES:
                ready[ids[change.document.name]] = meta
        self._cache.update(ready)
        return ready

    # --- chords -------------------------------------------------------------------------------

    def open_chord(self, group_id: str, key: str, value: Any) -> None:
        name = self._chord_name(group_id)
        group = self._write(key, value, "", self.expires, None)
        fields = self._chord_fields(renewed=self.client.about_now())
        begun = [documents.create(name, fields)]
        tries = Tries("keep a chord's group")
        for _ in tries:
            with tries.once():
                try:
                    self.client.commit([group.write_over(), *group.pieces, *begun])
                except Conflict:  # it was applied before, or by this very commit
                    begun = self._begun_again(name, fields)
                    raise
                return

    def _begun_again(self, name: str, fields: Mapping[str, Any]) -> list[Write]:
        """The writes that restart the chord if the stored one has finished; else none."""
        read = self.client.read([name])
        document = read.documents.get(name)
        if document is None:
            return [documents.create(name, fields)]
        data = document.fields["data"]
        if not (data.get("sent") or has_expired(data["ttl"], document.update_time, read.read_time)):
            return []
        parts = self.client.query(Query(name, PARTS, mask=[])).documents
        for group in blobs.batches([documents.delete(part) for part in parts], _BATCH):
            self.client.commit_surely(group, tries=_TRIES)
        return [documents.replace(name, fields, document.update_time)]

    def keep_chord_size(self, group_id: str, size: int) -> None:
        fields = self._chord_fields(size=size)
        write = Write(self._chord_name(group_id), fields, mask=["gc_at", "data.ttl", "data.size"])
        self.client.commit_surely([write], tries=_TRIES)

    def add_to_chord(self, chord_id: str, result: Any) -> None:
        # With a document of its own, so that it joins once, however often this is sent.
        name = self._chord_name(chord_id)
        joins = documents.create(part_name(name, f"joins:{result.id}"), self._chord_fields())
        self.retried(self._count, name, joins, "data.extra")

    def count_part(self, group_id: str, part: str) -> Counted:
        name = self._chord_name(group_id)
        create = documents.create(part_name(name, part), self._chord_fields(id=part))
        data = self._count(name, create, "data.count")
        renewed, ttl = data.get("renewed"), self.expires
        if renewed and ttl:
            since = (self.client.about_now() - renewed) / SECOND
            if since > ttl * RENEW_CHORD_AFTER:
                self._renew(group_id, name)
        return Counted(
            data.get("count", 0),
            data.get("sent", False),
            size=data.get("size") or None,
            extra=data.get("extra", 0),
        )

    def _count(self, name: str, create: Write, path: str) -> Mapping[str, Any]:
        """Create a document, and add one to the chord's number, together: once. What is counted."""
        # Adding nothing is reading.
        numbers = ["data.count", "data.size", "data.extra", "data.renewed"]
        count = Write(
            name,
            self._chord_fields(),
            mask=["gc_at", "data.ttl"],
            increments=[(number, int(number == path)) for number in numbers],
        )
        tries = Tries("count a chord's part")
        for _ in tries:
            with tries.once():
                try:
                    totals = self.client.commit([create, count]).totals[1]
                except Conflict:  # it was counted before
                    document = self.client.read([name]).documents.get(name)
                    return {} if document is None else document.fields["data"]
                return dict(zip(("count", "size", "extra", "renewed"), totals, strict=True))
        raise AssertionError  # the tries end by themselves

    def parts(self, group_id: str) -> list[str]:
        found = self.client.query(Query(self._chord_name(group_id), PARTS, mask=["data.id"]))
        data = [document.fields.get("data", {}) for document in found.documents.values()]
        return [fields["id"] for fields in data if "id" in fields]

    def mark_sent(self, group_id: str) -> None:
        name = self._chord_name(group_id)
        write = Write(name, {"data": {"sent": True}}, mask=["data.sent"], exists=True)
        try:
            self.client.commit_surely([write], tries=_TRIES)
        except Conflict:
            return  # expired and collected, since it was counted

    def _chord_name(self, group_id: str) -> str:
        return result_name(self._names, self.get_key_for_chord(group_id))

    def _chord_fields(self, **data: Any) -> dict[str, Any]:
        ttl = float(self.expires) if self.expires else None
        return {"gc_at": gc_at(self.client, ttl), "data": {"ttl": ttl, **data}}

    def _renew(self, group_id: str, chord: str) -> None:
        """Keep what a chord's last part needs as long as a result from now on."""
        ids = self.parts(group_id)
        keys = [self.get_key_for_group(group_id), *map(self.get_key_for_task, ids)]
        names = [result_name(self._names, key) for key in keys]
        names += [part_name(chord, part) for part in ids]
        fields = self._chord_fields()
        for some in blobs.batches(names, _BATCH):
            read = self.client.read(some, ["data.id", *_MANIFEST])
            for document in read.documents.values():
                data = document.fields["data"]
                if data["ttl"] is None or has_expired(
                    data["ttl"], document.update_time, read.read_time
                ):
                    continue
                blob = blob_of(data) if "sha" in data else None
                chunks = blob.chunk_names(document.name) if blob is not None else []
                writes = [
                    Write(document.name, fields, mask=["gc_at", "data.ttl"], exists=True),
                    *(Write(chunk, fields, mask=["gc_at"], exists=True) for chunk in chunks),
                ]
                with suppress(Conflict):  # it is gone
                    self.client.commit_surely(writes, tries=_TRIES)
                self._place.versions.pop(document.name, None)
        renewed = {"data": {"renewed": self.client.about_now()}}
        self.client.commit_surely([Write(chord, renewed, mask=["data.renewed"])], tries=_TRIES)

    # --- upkeep -------------------------------------------------------------------------------

    def cleanup(self) -> None:
        """Delete what has expired, where no TTL policy does. Reads every result's document."""
        after: list[Any] | None = None
        while True:
            query = Query(self._names.base, RESULTS, after=after, limit=_BATCH, mask=_MANIFEST)
            read = self.client.query(query)
            for document in read.documents.values():
                if has_expired(
                    document.fields["data"]["ttl"], document.update_time, read.read_time
                ):
                    self._sweep(document)
            if len(read.documents) < _BATCH:
                return
            after = [list(read.documents)[-1]]

    def _sweep(self, document: Document) -> None:
        """Delete an expired document, unless it has changed since, and what is below it."""
        data, blob = document.fields["data"], None
        if "sha" in data:
            blob = blob_of(data)
            gone = blobs.deletions(blob, document.name)
        else:
            parts = self.client.query(Query(document.name, PARTS, mask=[]))
            gone = [documents.delete(name) for name in parts.documents]
        try:
            self.client.commit([documents.delete(document.name, document.update_time)])
            for group in blobs.batches(gone, _BATCH):
                self.client.commit_surely(group, tries=_TRIES)
            blobs.drop(self.client, [blob])
        except (Conflict, Unsettled):
            return  # changed meanwhile, or for the next time


def _keep_listening(watch: Watch, left: Iterable[str]) -> None:
    """Watch at most 50 documents; start others as these finish."""
    for name in left:
        if len(watch) >= _LISTENED:
            return
        watch.add(name)
