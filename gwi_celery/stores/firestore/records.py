"""The content of the Firestore store's documents.

Everything is in the map ``data``, which has no index, except what lists and TTL policies need:
``status``, ``run``, ``task``, ``error``, ``parent`` and ``terms`` (labels, and ids of calls);
``created``, ``updated`` and ``gc_at``. All of these texts but the status and the error's class are
digests, because an index entry holds at most 1,500 bytes. Lists across tenants are ordered by
``created``, which never changes: in an index that is ordered by time all current writes meet in one
spot, so a job is written there about twice in its life, and not at each step. A job's own values are
stored as bytes, never as Firestore maps.

The fencing token of a claim is its commit's time in microseconds, which the commit's own writes can't
contain. So the version of a lock or record without a ``fence`` is its token; the first write after the
claim adds the ``fence``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gwi_celery.firestore.documents import Document, Micros
from gwi_celery.ids import digest
from gwi_celery.stores import protocol
from gwi_celery.stores.firestore.paths import CHUNKS, SECOND
from gwi_celery.stores.history import (
    History,
    attempts,
    dump_origin,
    load_origin,
    loads,
    terms,
)
from gwi_celery.stores.values import (
    Checkpoint,
    CheckpointKind,
    JobRecord,
    JobRef,
    JobStatus,
    LockRecord,
    LockRef,
    Origin,
    PastAttempt,
)
from gwi_celery.text import raw

#: Times set by the server: of a record's last change, of its creation, and of a checkpoint's last save.
UPDATED: Final = "updated"
CREATED: Final = "created"
SAVED: Final = "data.saved"


# --- texts ----------------------------------------------------------------------------------------


def put_text(text: str) -> str | bytes:
    """Any string as a field's value: unchanged, or as bytes if UTF-8 can't encode it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return raw(text)
    return text


def get_text(value: str | bytes) -> str:
    """The string that :func:`put_text` was given."""
    return value if isinstance(value, str) else value.decode("utf-8", "surrogatepass")


# --- blobs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blob:
    """Bytes in a field, or the manifest of their chunks, or of their object in Cloud Storage."""

    sha: bytes
    #: None: stored elsewhere, or not read.
    inline: bytes | None
    #: With ``count``, names the chunks below their era; "" if there are none.
    chunks: str = ""
    count: int = 0
    size: int = 0
    #: The object's name in the bucket; "" if there is none.
    stored_as: str = ""

    @property
    def is_inline(self) -> bool:
        """Whether the bytes are in the document itself, read or not."""
        return not self.chunks and not self.stored_as

    def chunk_names(self, era_name: str) -> list[str]:
        return [f"{era_name}/{CHUNKS}/{self.chunks}-{n}" for n in range(self.count)]

    def fields(self) -> dict[str, Any]:
        if self.inline is not None:
            return {"sha": self.sha, "blob": self.inline, "size": self.size}
        if self.stored_as:
            return {"sha": self.sha, "object": self.stored_as, "size": self.size}
        return {"sha": self.sha, "chunks": self.chunks, "count": self.count, "size": self.size}


def blob_of(fields: Mapping[str, Any]) -> Blob:
    inline = fields.get("blob")
    return Blob(
        fields["sha"],
        inline,
        fields.get("chunks", ""),
        fields.get("count", 0),
        fields.get("size", 0 if inline is None else len(inline)),
        fields.get("object", ""),
    )


def checksum(blob: bytes) -> bytes:
    return hashlib.sha256(blob).digest()


# --- records --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A job's record. Times are microseconds by the server's clock."""

    ref: JobRef
    run_id: str | None
    status: JobStatus
    fingerprint: str
    submission: str
    #: Digests of submissions that failed.
    failed: Sequence[str]
    generation: int
    attempt: int
    crashes: int
    #: Token of the last claim; None while a claim is being written, whose token isn't known yet.
    fence: int | None
    #: The lock that the last claim took.
    lock_id: str
    #: Seconds.
    result_ttl: float
    #: Names the record's life until it expires; the checkpoints and chunks are below it.
    era: str
    #: How many checkpoints there are, and the position of the last in the order of first saving.
    steps: int
    ordinal: int
    #: Token of the claim whose finish was applied last. It is carried over to the record's next lives,
    #: so that a finish whose answer was lost can be told from one that was never applied.
    finished: int | None
    outcome: Blob | None
    #: Bytes of the checkpoints that are inline; None: written by version 0.1, which didn't count them.
    inline_bytes: int | None = 0
    #: Names the cancellation that ended the job; "" if none did.
    cancelled_by: str = ""
    #: The Celery task whose result was written along with the outcome.
    result_of: str | None = None
    #: What is for people only. Its lock is the last claim's, or the one that the job waits for.
    history: History = field(default_factory=History)
    origin: Origin = field(default_factory=Origin)
    envelope: Blob | None = None
    created: int = 0
    updated: int = 0
    #: The document's update_time.
    version: int = 0

    @property
    def expires(self) -> int | None:
        """By the server's clock; None: kept for good, because the job has begun and has not ended."""
        if not (self.status.terminal or protocol.never_begun(self)):
            return None
        return self.version + round(self.result_ttl * SECOND)

    def expired(self, now: int) -> bool:
        expires = self.expires
        return expires is not None and expires <= now

    @property
    def running(self) -> PastAttempt | None:
        """The attempt that runs, if any."""
        if self.status is not JobStatus.RUNNING:
            return None
        fence = self.version if self.fence is None else self.fence
        return PastAttempt(
            generation=self.generation,
            number=self.attempt,
            worker=self.history.worker,
            fence=fence,
            task_id=self.origin.task_id or self.submission,
            began=fence / SECOND,
        )

    @property
    def texts(self) -> Iterator[str | None]:
        """The document's texts that may be long, for the room that they take."""
        yield from (self.ref.tenant, self.ref.task, self.ref.key, self.run_id, self.submission)
        yield from self.failed
        yield from () if self.history.lock is None else self.history.lock.scope
        yield from (self.history.dumps(), dump_origin(self.origin))
        if self.envelope is not None and self.envelope.is_inline:
            yield " " * self.envelope.size

    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            "tenant": put_text(self.ref.tenant),
            "task": put_text(self.ref.task),
            "key": put_text(self.ref.key),
            "fingerprint": self.fingerprint,
            "submission": put_text(self.submission),
            "failed": list(self.failed),
            "generation": self.generation,
            "attempt": self.attempt,
            "crashes": self.crashes,
            "lock_id": self.lock_id,
            "result_ttl": float(self.result_ttl),
            "era": self.era,
            "steps": self.steps,
            "ordinal": self.ordinal,
            "history": self.history.dumps(),
        }
        if self.origin != Origin():
            data["origin"] = dump_origin(self.origin)
        if self.history.lock is not None:
            data["lock_scope"] = [put_text(part) for part in self.history.lock.scope]
        if self.history.error:
            data["error"] = self.history.error
        if self.envelope is not None:
            data["envelope"] = self.envelope.fields()
        if self.run_id is not None:
            data["run_id"] = put_text(self.run_id)
        if self.fence is not None:
            data["fence"] = self.fence
        if self.inline_bytes is not None:
            data["bytes"] = self.inline_bytes
        if self.finished is not None:
            data["finished"] = self.finished
        if self.cancelled_by:
            data["cancelled_by"] = self.cancelled_by
        if self.result_of is not None:
            data["result_of"] = put_text(self.result_of)
        if self.outcome is not None:
            data["outcome"] = self.outcome.fields()
        return data

    def fields(self) -> dict[str, Any]:
        """The whole document. The server sets ``updated``, and ``created`` of a new life."""
        fields: dict[str, Any] = {
            "status": self.status.value,
            "task": digest("task", self.ref.task),
            "data": self.data(),
        }
        if self.created:
            fields[CREATED] = Micros(self.created)
        if self.history.error_type:
            fields["error"] = self.history.error_type
        found_by = terms(self.origin, self.history.ended)
        if found_by:
            fields["terms"] = [digest("term", term) for term in found_by]
        if self.origin.parent_id:
            fields["parent"] = digest("call", self.origin.parent_id)
        if self.run_id is not None:
            fields["run"] = digest("run", self.run_id)
        return fields

    def record(self, outcome: bytes | None) -> JobRecord:
        return JobRecord(
            job=self.ref,
            run_id=self.run_id,
            status=self.status,
            fingerprint=self.fingerprint,
            submission=self.submission,
            generation=self.generation,
            attempt=self.attempt,
            crashes=self.crashes,
            fence=self.version if self.fence is None else self.fence,
            created_at=self.created / SECOND,
            updated_at=self.updated / SECOND,
            expires_at=None if self.expires is None else self.expires / SECOND,
            outcome=outcome,
            result_of=self.result_of,
            origin=self.origin,
            worker=self.history.worker,
            lock=self.history.lock,
            attempts=attempts(self.history.ended, self.running),
            attempts_forgotten=self.history.forgotten,
            waits=self.history.waits,
            progress=self.history.progress,
            error_type=self.history.error_type,
            error=self.history.error,
        )


def _history_of(document: Document) -> History:
    """The part of the record that is for people; empty in a record of version 0.1."""
    data = document.fields["data"]
    scope, lock = data.get("lock_scope"), None
    if scope is not None:
        lock = LockRef(get_text(data["tenant"]), tuple(get_text(part) for part in scope))
    error_type = document.fields.get("error", "")
    return loads(data.get("history"), error_type, data.get("error", ""), lock)


#: The paths of a record without its outcome and its call, which may be large.
WITHOUT_BLOBS: Final = [
    *("status", CREATED, UPDATED, "error"),
    *(
        f"data.{name}"
        for name in (
            *("tenant", "task", "key", "run_id", "fingerprint", "submission", "failed"),
            *("generation", "attempt", "crashes", "fence", "lock_id", "lock_scope", "result_ttl"),
            *("era", "steps", "ordinal", "finished", "bytes", "cancelled_by", "result_of"),
            *("history", "origin", "error", "created"),
        )
    ),
]
#: The same, and where the outcome and the call are stored.
WITHOUT_BYTES: Final = [
    *WITHOUT_BLOBS,
    *(
        f"data.{blob}.{name}"
        for blob in ("outcome", "envelope")
        for name in ("sha", "chunks", "count", "size", "object")
    ),
]


def job_of(document: Document) -> Job:
    data = document.fields["data"]
    run_id = data.get("run_id")
    outcome, result_of = data.get("outcome"), data.get("result_of")
    envelope = data.get("envelope")
    return Job(
        ref=JobRef(get_text(data["tenant"]), get_text(data["task"]), get_text(data["key"])),
        run_id=None if run_id is None else get_text(run_id),
        status=JobStatus(document.fields["status"]),
        fingerprint=data["fingerprint"],
        submission=get_text(data["submission"]),
        failed=data["failed"],
        generation=data["generation"],
        attempt=data["attempt"],
        crashes=data["crashes"],
        fence=data.get("fence", document.update_time),
        lock_id=data["lock_id"],
        result_ttl=data["result_ttl"],
        era=data["era"],
        steps=data["steps"],
        ordinal=data["ordinal"],
        finished=data.get("finished"),
        outcome=None if outcome is None else blob_of(outcome),
        inline_bytes=data.get("bytes"),
        cancelled_by=data.get("cancelled_by", ""),
        result_of=None if result_of is None else get_text(result_of),
        history=_history_of(document),
        origin=load_origin(data.get("origin")),
        envelope=None if envelope is None else blob_of(envelope),
        # Version 0.1 had it in the map.
        created=document.fields.get(CREATED) or data["created"],
        updated=document.fields[UPDATED],
        version=document.update_time,
    )


# --- locks ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lock:
    """A lock that is held, or has expired."""

    ref: LockRef
    owner: str
    nonce: str
    job: JobRef
    #: Seconds from the document's last change until the lock expires.
    ttl: float
    #: None while a claim is being written.
    fence: int | None = None
    #: Changes with every renewal: a write that changes nothing would not change the document's time.
    beat: str = ""
    version: int = 0
    #: Places of limits that are held under this lock: each a limit's id and a number.
    places: Sequence[str] = ()

    @property
    def expires(self) -> int:
        """By the server's clock."""
        return self.version + round(self.ttl * SECOND)

    def expired(self, now: int) -> bool:
        return self.expires <= now

    def fields(self, gc_at: int) -> dict[str, Any]:
        return {
            "gc_at": Micros(gc_at),
            "data": {
                "tenant": put_text(self.ref.tenant),
                "scope": [put_text(part) for part in self.ref.scope],
                "owner": put_text(self.owner),
                "nonce": put_text(self.nonce),
                "task": put_text(self.job.task),
                "key": put_text(self.job.key),
                "ttl": float(self.ttl),
                "beat": self.beat,
                **({"places": list(self.places)} if self.places else {}),
            },
        }

    def known(self, now: int) -> protocol.Lock:
        """For the protocol's rules."""
        fence = self.version if self.fence is None else self.fence
        left = (self.expires - now) / SECOND
        return protocol.Lock(self.owner, self.nonce, fence, self.job, left)

    def record(self, now: int) -> LockRecord:
        return LockRecord(
            lock_id=self.ref.id,
            tenant=self.ref.tenant,
            scope=self.ref.scope,
            owner=self.owner,
            fence=self.version if self.fence is None else self.fence,
            job=self.job,
            expires_at=self.expires / SECOND,
            expired=self.expired(now),
        )


def lock_of(document: Document) -> Lock:
    data = document.fields["data"]
    tenant = get_text(data["tenant"])
    return Lock(
        ref=LockRef(tenant, tuple(get_text(part) for part in data["scope"])),
        owner=get_text(data["owner"]),
        nonce=get_text(data["nonce"]),
        job=JobRef(tenant, get_text(data["task"]), get_text(data["key"])),
        ttl=data["ttl"],
        fence=data.get("fence", document.update_time),
        beat=data["beat"],
        version=document.update_time,
        places=data.get("places", ()),
    )


# --- checkpoints ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A checkpoint's document."""

    name: str
    kind: CheckpointKind
    number: int
    ordinal: int
    blob: Blob
    saved: int = 0
    gc_at: int = 0
    version: int = 0

    def fields(self) -> dict[str, Any]:
        return {
            "gc_at": Micros(self.gc_at),
            "data": {
                "name": put_text(self.name),
                "kind": self.kind.value,
                "version": self.number,
                "ordinal": self.ordinal,
                **self.blob.fields(),
            },
        }

    def checkpoint(self, blob: bytes | None) -> Checkpoint:
        """With its bytes, or ``deferred``."""
        return Checkpoint(
            name=self.name,
            kind=self.kind,
            blob=blob or b"",
            deferred=blob is None,
            version=self.number,
            saved_at=self.saved / SECOND,
            ordinal=self.ordinal,
            size=self.blob.size,
        )


def step_of(document: Document) -> Step:
    data = document.fields["data"]
    return Step(
        name=get_text(data["name"]),
        kind=CheckpointKind(data["kind"]),
        number=data["version"],
        ordinal=data["ordinal"],
        blob=blob_of(data),
        saved=data["saved"],
        gc_at=document.fields["gc_at"],
        version=document.update_time,
    )
