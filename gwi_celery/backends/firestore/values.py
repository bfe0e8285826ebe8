"""Results, and everything else that Celery keeps under a key, as documents."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from celery import states
from kombu.utils.encoding import ensure_bytes
from kombu.utils.functional import LRUCache

from gwi_celery.backends import tenants
from gwi_celery.backends.base import ReliableBackend
from gwi_celery.backends.results import came_before
from gwi_celery.blobs import unpacked
from gwi_celery.errors import ConfigurationError, StoreUnusable
from gwi_celery.firestore import documents
from gwi_celery.firestore.client import Client, Conflict, Intercept, Unsettled
from gwi_celery.firestore.documents import Document, Query, Write
from gwi_celery.firestore.url import FirestoreURL, parse
from gwi_celery.stores.firestore import blobs
from gwi_celery.stores.firestore.paths import Paths
from gwi_celery.stores.firestore.records import blob_of
from gwi_celery.stores.firestore.results import (
    PARTS,
    RESULTS,
    ResultWrite,
    gc_at,
    has_expired,
    result_name,
    result_of,
)
from gwi_celery.stores.firestore.tries import Tries
from gwi_celery.stores.values import StoredResult

#: Documents in one read; deletions in one commit; results in one page of a cleanup.
BATCH: Final = 100
#: Tries of a write that may be repeated.
TRIES: Final = 3
#: Unfinished results whose version this process remembers.
_KNOWN: Final = 1000

#: Paths of all of a result but its bytes.
MANIFEST: Final = [f"data.{name}" for name in ("ttl", "sha", "chunks", "count", "size", "object")]


@dataclass(frozen=True)
class _Shared:
    """Shared by all backends of one URL in this process and its forks: Celery makes one per thread."""

    client: Client
    #: Name of a result -> its version, as this process has written it.
    versions: Any = field(default_factory=lambda: LRUCache(limit=_KNOWN))


_by_url: dict[FirestoreURL, _Shared] = {}


class FirestoreValues(ReliableBackend):
    """Values by key, of one URL.

    Args:
        url: See :class:`gwi_celery.firestore.url.FirestoreURL`.
        intercept: A hook between the client and the server, for tests.

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
        self._paths = Paths(parsed.prefix)
        if intercept is not None:
            self._shared = _Shared(Client(parsed, intercept=intercept))
        else:
            self._shared = _by_url.get(parsed) or _by_url.setdefault(
                parsed, _Shared(Client(parsed))
            )

    def as_uri(self, include_password: bool = False) -> str:
        return str(self.url)

    @property
    def client(self) -> Client:
        return self._shared.client

    def get(self, key: str) -> Any:
        return self.mget([key])[0]

    def mget(self, keys: Iterable[str]) -> list[Any]:
        names = [result_name(self._paths, key) for key in keys]
        found: dict[str, bytes] = {}
        for group in blobs.batches(names, BATCH):
            read = self.client.read(group)
            for name, document in read.documents.items():
                value = self._value(document, read.read_time)
                if value is not None:
                    found[name] = value
        return [found.get(name) for name in names]

    def delete(self, key: str) -> None:
        name = result_name(self._paths, key)
        document = self.client.read([name], MANIFEST).documents.get(name)
        if document is None:
            return
        data = document.fields.get("data", {})
        blob = blob_of(data) if "sha" in data else None
        gone = [documents.delete(name), *blobs.deletions(blob, name)]
        self.client.commit_surely(gone, tries=TRIES)
        blobs.drop(self.client, [blob])
        self._shared.versions.pop(name, None)

    def expire(self, key: str, value: Any) -> None:
        """Let it expire ``value`` seconds from now; 0 or None: not at all."""
        name, ttl = result_name(self._paths, key), float(value) if value else None
        fields = {"gc_at": gc_at(self.client, ttl), "data": {"ttl": ttl}}
        write = Write(name, fields, mask=["gc_at", "data.ttl"], exists=True)
        self._shared.versions.pop(name, None)
        try:
            self.client.commit_surely([write], tries=TRIES)
        except Conflict:
            return  # it is gone

    def _write(
        self, key: str, value: Any, state: str, expires: Any, request: Any, version: Any = None
    ) -> ResultWrite:
        result = StoredResult(
            task_id="",  # only the key matters, which may be a group's
            key=key,
            state=state,
            meta=ensure_bytes(value),
            ttl=float(expires) if expires else None,
            seen_before=came_before(request),
            version=version,
            tenant=tenants.tenant_of(request),
        )
        return ResultWrite(self.client, self._paths, result)

    def put(self, key: str, value: Any, state: str | None, expires: Any, request: Any) -> None:
        name = result_name(self._paths, key)
        version = self._shared.versions.pop(name, None)
        write = self._write(key, value, state or "", expires, request, version)
        if state is None:
            self.client.commit_surely([write.write_over(), *write.pieces], tries=TRIES)
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
                    self._shared.versions[name] = written.versions[0]
                return

    def known_version(self, key: str) -> Any:
        return self._shared.versions.get(result_name(self._paths, key))

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
            # It was replaced or deleted, with its chunks, since it was read.
            return None if again is None else self._value(again, read.read_time)
        return unpacked(packed)

    # --- upkeep -------------------------------------------------------------------------------

    def cleanup(self) -> None:
        """Delete what has expired, where no TTL policy does. Reads every result's document."""
        after: list[Any] | None = None
        while True:
            query = Query(self._paths.base, RESULTS, after=after, limit=BATCH, mask=MANIFEST)
            read = self.client.query(query)
            for document in read.documents.values():
                if has_expired(
                    document.fields["data"]["ttl"], document.update_time, read.read_time
                ):
                    self._sweep(document)
            if len(read.documents) < BATCH:
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
            for group in blobs.batches(gone, BATCH):
                self.client.commit_surely(group, tries=TRIES)
            blobs.drop(self.client, [blob])
        except (Conflict, Unsettled):
            return  # it was changed meanwhile; or the next cleanup deletes it
