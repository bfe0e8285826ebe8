"""The values that pass through the store seam: what a call of :class:`.base.Store` takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from gwi_celery.ids import digest
from gwi_celery.stores.limits import LimitRef


class JobStatus(str, Enum):
    """Where a job stands."""

    #: Not running: handed back, or waiting for a retry. A message for it is outstanding.
    PENDING = "pending"
    #: Not running, because another job holds its lock or a limit is reached. It may never have begun.
    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in _TERMINAL


_TERMINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})


class CheckpointKind(str, Enum):
    #: Written once, never changed.
    STEP = "step"
    #: Only moves forward: its version must grow.
    CURSOR = "cursor"
    #: The job's own notes: may be overwritten; its version must grow.
    VALUE = "value"


@dataclass(frozen=True)
class JobRef:
    """Names one job: every promise is made per (tenant, task, key)."""

    tenant: str
    #: The Celery task's name: the job's type.
    task: str
    #: The idempotency key.
    key: str

    @property
    def id(self) -> str:
        """Digest over all three: two different jobs never share one, whatever the ids contain."""
        return digest("job", self.tenant, self.task, self.key)


@dataclass(frozen=True)
class LockRef:
    """Names one lock: (tenant, scope parts)."""

    tenant: str
    scope: tuple[str, ...]

    @property
    def id(self) -> str:
        return digest("lock", self.tenant, *self.scope)


#: As ``Replay.generation``: the next one, if the job failed by another submission than this.
NEXT: Final = 0


@dataclass(frozen=True)
class Replay:
    """Asks for a new generation of a job, although the one before may have succeeded."""

    #: The generation to open, or :data:`NEXT`. If the job has reached that generation already, the
    #: submission is an ordinary duplicate.
    generation: int
    #: This checkpoint and those saved after it are forgotten. None: all are; "": none is.
    from_step: str | None = None


@dataclass(frozen=True)
class Origin:
    """What a record keeps of the call that created the job: for people, and to run it again."""

    #: Celery's id of the call.
    task_id: str = ""
    #: Celery's ids of the task that called it, and of the first task in that chain of calls.
    parent_id: str | None = None
    root_id: str | None = None
    #: Where its message came from.
    queue: str | None = None
    #: Given with the call. Jobs can be found by them.
    labels: Mapping[str, str] = field(default_factory=dict)
    #: The version of the worker's code.
    code_version: str = ""
    #: The call as JSON, so that it can be made again. None: not kept, or not read.
    envelope: bytes | None = None


@dataclass(frozen=True)
class ClaimRequest:
    """One attempt to run a job."""

    job: JobRef
    lock: LockRef
    #: The run's id, for people and for lists; None if the job has none.
    run_id: str | None
    #: Digests of the payload's forms, separated by spaces. Two payloads are the same if they share a
    #: digest. The same key with another payload is a mismatch.
    fingerprint: str
    #: Names the submission (the Celery task id). A redelivery or a retry of a submission that has
    #: failed gets that failure again; a fresh submission runs again.
    submission: str
    #: Who asks, for people ("host:pid").
    owner: str
    #: Unique to this attempt. A claim whose answer was lost is recognised by it.
    nonce: str
    #: Seconds until the lock may be taken over, unless renewed.
    lease_ttl: float
    #: Seconds a terminal outcome is kept.
    result_ttl: float
    replay: Replay | None = None
    #: What the record is to keep of the call. None: the record keeps what it has, and a claim that is
    #: Held or Limited records no wait.
    origin: Origin | None = None
    #: A hint that the store may know this job, because it was delivered before or is a retry. It
    #: changes no answer, only whether the store reads before it writes.
    redelivered: bool = False
    #: The limits that the job needs a place of, as the code states them. It gets all places or none.
    limits: Sequence[LimitRef] = ()
    #: Counts the rates among ``limits`` in place of the store. Called with the rates in force once
    #: nothing else keeps the claim from being granted. A Limited that it returns is the claim's answer.
    rates: Callable[[Sequence[LimitRef]], Limited | None] | None = field(
        default=None, compare=False
    )


@dataclass(frozen=True)
class Lease:
    """Proof of a claim. Every write takes a lease, and most return the one for the next write."""

    job: JobRef
    lock: LockRef
    #: The fencing token.
    fence: int
    nonce: str
    ttl: float
    result_ttl: float
    generation: int
    #: Private to the store, such as a document's version.
    version: Any = field(default=None, compare=False)


@dataclass(frozen=True)
class AttemptEnd:
    """How an attempt ended, for people."""

    #: One word: "succeeded", "failed", "retried", "stopping" ...
    how: str
    #: The error's class, and the first line of its text; "" if there was none.
    error_type: str = ""
    error: str = ""
    #: Seconds since the epoch at which the job is tried again; None: unknown.
    retry_at: float | None = None


@dataclass(frozen=True)
class Outcome:
    """How a generation ended: SUCCEEDED with a result, or FAILED with an error."""

    status: JobStatus
    blob: bytes
    #: None: derived from the status.
    end: AttemptEnd | None = field(default=None, compare=False)


#: The end of an attempt that was handed back, if nothing more is known.
RELEASED = AttemptEnd("released")


@dataclass(frozen=True)
class Wait:
    """What keeps a job from running."""

    #: "lock", "limit", or "retry".
    kind: str
    #: The lock's scope, its parts joined by ":"; or the limit's name; or the error that is retried.
    what: str
    #: Who holds the lock ("host:pid task id"), and for which job. For a limit: "3 of 3 held".
    holder: str = ""
    holder_job: JobRef | None = None
    #: Seconds since the epoch; ``since`` is set by the store.
    since: float = 0.0
    #: When the wait ends at the latest, as far as known when this was written; None: unknown.
    until: float | None = None
    #: Of a limit: ``LimitRef.id``.
    limit_id: str = ""


@dataclass(frozen=True)
class Progress:
    """How far a job has come, as it reports."""

    done: float
    total: float | None = None
    text: str = ""
    #: Seconds since the epoch, set by the store.
    at: float = 0.0


@dataclass(frozen=True)
class PastAttempt:
    """One attempt of a job, for people."""

    generation: int
    number: int
    #: "host:pid".
    worker: str
    fence: int
    task_id: str
    #: Seconds since the epoch; ``ended`` is None while it runs.
    began: float
    ended: float | None = None
    #: None while it runs; "lost" if its worker vanished without releasing its lease.
    end: AttemptEnd | None = None


@dataclass(frozen=True)
class StoredResult:
    """A task's result in the result backend's form, to be written in the same commit as an outcome.

    A stored SUCCESS that has not expired is never replaced. Another final state is replaced only by a
    final state.
    """

    task_id: str
    #: The result backend's name for it.
    key: str
    #: Celery's state.
    state: str
    #: As the result backend encodes it.
    meta: bytes
    #: Seconds for which it is kept; None: for good.
    ttl: float | None
    #: A hint that an earlier attempt may have stored a result: the store reads first.
    seen_before: bool = False
    #: Private to the store: what this process knows of the stored result.
    version: Any = field(default=None, compare=False)
    #: The task's tenant. Another tenant's result is never replaced.
    tenant: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """One recorded step, cursor or value."""

    name: str
    kind: CheckpointKind
    blob: bytes
    #: 1 for a step; grows with each save of a cursor or value.
    version: int = 1
    #: Seconds since the epoch, set by the store.
    saved_at: float = 0.0
    #: Position in the order of first saving; set by the store.
    ordinal: int = 0
    #: Its bytes were left out; :meth:`Store.fetch` reads them.
    deferred: bool = False
    #: Bytes; set by the store.
    size: int = field(default=0, compare=False)


@dataclass(frozen=True)
class JobRecord:
    """A job as stored. Times are seconds since the epoch, by the store's clock."""

    job: JobRef
    run_id: str | None
    status: JobStatus
    fingerprint: str
    submission: str
    generation: int
    #: Claims in this generation, so 1 in a first attempt.
    attempt: int
    #: Takeovers in this generation since progress was last saved: how often a holder vanished
    #: without releasing its lease.
    crashes: int
    fence: int
    created_at: float
    updated_at: float
    #: When a terminal outcome is forgotten; None while the job isn't terminal.
    expires_at: float | None
    outcome: bytes | None
    #: The Celery task whose result was written along with the outcome, if one was.
    result_of: str | None = None
    #: Empty in a record written by 0.1.
    origin: Origin = Origin()
    #: "host:pid" of the last attempt.
    worker: str = ""
    #: The lock that the last claim took, or waits for; None in a record written by 0.1.
    lock: LockRef | None = None
    #: Oldest first; the last one may still run. Older ones are only counted.
    attempts: Sequence[PastAttempt] = ()
    attempts_forgotten: int = 0
    #: None if the job runs or has ended.
    waits: Wait | None = None
    progress: Progress | None = None
    #: The last error's class, and the first line of its text; "" once it has succeeded.
    error_type: str = ""
    error: str = ""


@dataclass(frozen=True)
class JobFilter:
    """Which jobs to find: those that match every field that isn't None."""

    #: None: of all tenants.
    tenant: str | None = None
    task: str | None = None
    status: JobStatus | None = None
    run_id: str | None = None
    #: (name, value).
    label: tuple[str, str] | None = None
    #: The last error's class.
    error_type: str | None = None
    #: Celery's id of the call, and of the task that called it.
    task_id: str | None = None
    parent_id: str | None = None
    #: Seconds since the epoch: first recorded at or after ``since``, and before ``before``.
    since: float | None = None
    before: float | None = None


@dataclass(frozen=True)
class LockRecord:
    lock_id: str
    tenant: str
    scope: tuple[str, ...]
    owner: str
    fence: int
    job: JobRef
    expires_at: float
    expired: bool


@dataclass(frozen=True)
class PlaceRecord:
    """A place of a limit that is taken."""

    limit_id: str
    #: The limit's name as the code has it, and the values that fill it.
    name: str
    values: Mapping[str, str]
    #: Whether the limit is a rate; otherwise it is ``max_running``.
    of_rate: bool
    owner: str
    job: JobRef
    #: Seconds since the epoch.
    taken_at: float
    #: When it becomes free. A renewal of its job's lease moves that on, but not that of a rate.
    free_at: float


# --- what a claim answers -------------------------------------------------------------------------


@dataclass(frozen=True)
class Claimed:
    """The job is ours to run."""

    lease: Lease
    record: JobRecord
    #: Whether there are checkpoints to load; False saves a read.
    has_checkpoints: bool


@dataclass(frozen=True)
class Completed:
    """The job has ended as SUCCEEDED or FAILED: this duplicate gets that outcome."""

    record: JobRecord


@dataclass(frozen=True)
class Mismatch:
    """The key was used with another payload."""

    record: JobRecord


@dataclass(frozen=True)
class Held:
    """Another attempt holds the lock."""

    by: str
    #: The job that holds it.
    job: JobRef
    #: Seconds until that lease expires, if it isn't renewed.
    retry_after: float


@dataclass(frozen=True)
class Limited:
    """A limit has no free place."""

    limit: LimitRef
    #: Places that are taken.
    held: int
    #: Seconds until a place becomes free: of a rate at the earliest; of ``max_running`` at the latest,
    #: unless the leases are renewed.
    retry_after: float
    #: Why, in place of how many places are taken; "": say that.
    why: str = ""


@dataclass(frozen=True)
class Cancelled:
    """An operator cancelled the job."""

    record: JobRecord


ClaimAnswer = Claimed | Completed | Mismatch | Held | Limited | Cancelled


@dataclass(frozen=True)
class Page:
    jobs: Sequence[JobRecord]
    #: Pass it as ``token`` to get the next page; None at the end.
    next_token: str | None
