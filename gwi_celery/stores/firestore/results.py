"""Celery's results as documents: the store writes them along with an outcome, the backend otherwise.

::

    {prefix}/v1/gwi_results/{digest of Celery's key}     a task's result, a saved group, a chord's count
        gwi_chunks/{id}-{n}                              pieces of what is too large for one document
        gwi_parts/{digest of task id}                    a chord's part, as counted

Results are not kept by tenant: Celery asks for them by the task's id alone. Everything but ``gc_at`` is
in the map ``data``, which has no index. A result has expired when the server's time of a read is past the
server's time of its last write plus its ``ttl``; ``gc_at`` is for the TTL policy only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final

from gwi_celery.blobs import packed
from gwi_celery.firestore import documents
from gwi_celery.firestore.client import Client
from gwi_celery.firestore.documents import Document, Micros, Write
from gwi_celery.ids import digest
from gwi_celery.stores.base import StoredResult
from gwi_celery.stores.firestore import blobs
from gwi_celery.stores.firestore.paths import DAY, SECOND, Paths
from gwi_celery.stores.firestore.records import Blob, blob_of, get_text, put_text

RESULTS: Final = "gwi_results"
PARTS: Final = "gwi_parts"

#: Microseconds after a result's expiry from which Google may delete its document, as workers' clocks may
#: be wrong.
RESULT_KEPT: Final = 1 * DAY
#: ``gc_at`` of what doesn't expire: the last moment that Firestore knows.
_NEVER: Final = Micros.at(float("inf"))

#: Celery's final states.
_SUCCESS: Final = "SUCCESS"
_ENDS: Final = frozenset({_SUCCESS, "FAILURE", "REVOKED"})


def result_name(paths: Paths, key: str) -> str:
    return f"{paths.base}/{RESULTS}/{digest('result', key)}"


def part_name(chord_name: str, part: str) -> str:
    return f"{chord_name}/{PARTS}/{digest('part', part)}"


def gc_at(client: Client, ttl: float | None) -> Micros:
    """When the TTL policy may delete what expires ``ttl`` seconds from now; None: it never expires."""
    if ttl is None:
        return Micros(_NEVER)
    return Micros(min(client.about_now() + round(ttl * SECOND) + RESULT_KEPT, _NEVER))


@dataclass(frozen=True)
class Result:
    """A stored result."""

    state: str
    #: Seconds from the last write; None: for good.
    ttl: float | None
    #: Names the write that stored it.
    nonce: str
    blob: Blob
    version: int
    tenant: str | None = None

    def expired(self, now: int) -> bool:
        return has_expired(self.ttl, self.version, now)


def has_expired(ttl: float | None, version: int, now: int) -> bool:
    return ttl is not None and version + round(ttl * SECOND) <= now


def result_of(document: Document) -> Result:
    data = document.fields["data"]
    return Result(
        *(data["state"], data["ttl"], data["nonce"], blob_of(data)),
        version=document.update_time,
        tenant=get_text(data["tenant"]) if "tenant" in data else None,
    )


class ResultWrite:
    """One write of a result. It expects that none is stored, unless :meth:`look` has found one.

    A stored SUCCESS that has not expired is never replaced, and another final state only by a final
    state: otherwise there is nothing to write. Creating this object writes most chunks of a large result
    ahead, so it may raise StoreUnavailable and StoreUnusable.
    """

    def __init__(self, client: Client, paths: Paths, result: StoredResult) -> None:
        self._client = client
        self.name = result_name(paths, result.key)
        self._state = result.state
        self._ttl = result.ttl
        self._tenant = result.tenant
        self._gc_at = gc_at(client, result.ttl)
        self._nonce = os.urandom(6).hex()
        self._blob, self.pieces = blobs.pack(client, packed(result.meta), self.name, self._gc_at)
        self._version: int | None = result.version
        self._replaced: Blob | None = None
        #: Whether to look first: there may be a stored result whose version isn't known.
        self.unsure = result.seen_before and result.version is None
        #: There is nothing to write: this result is stored already, or one that stays.
        self.settled = False
        #: There is a result of another tenant.
        self.taken = False

    def look(self, document: Document | None, now: int) -> None:
        """Take note of what is stored, as of a read at the server's time ``now``."""
        self.unsure = self.settled = self.taken = False
        self._version = self._replaced = None
        if document is None:
            return
        stored = result_of(document)
        self._version = stored.version
        over = stored.state == _SUCCESS or (stored.state in _ENDS and self._state not in _ENDS)
        stays = over and not stored.expired(now)
        self.taken = (
            None not in (stored.tenant, self._tenant)
            and stored.tenant != self._tenant
            and not stored.expired(now)
        )
        self.settled = stays or self.taken or stored.nonce == self._nonce
        if not self.settled:
            self._replaced = stored.blob

    @property
    def fields(self) -> dict[str, Any]:
        data: dict[str, Any] = {"state": self._state, "ttl": self._ttl, "nonce": self._nonce}
        if self._tenant is not None:
            data["tenant"] = put_text(self._tenant)
        return {"gc_at": self._gc_at, "data": {**data, **self._blob.fields()}}

    def writes(self) -> list[Write]:
        """The writes for a commit; :attr:`pieces` belong in the same one."""
        if self.settled:
            return []
        write = documents.replace(self.name, self.fields, self._version)
        return [write, *blobs.deletions(self._replaced, self.name)]

    def written(self) -> None:
        """After the commit: delete the object of the result that was replaced."""
        blobs.drop(self._client, [self._replaced])

    def write_over(self) -> Write:
        """The write that replaces whatever is stored."""
        return Write(self.name, self.fields)
