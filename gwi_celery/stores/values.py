"""The values that pass through the store seam: what a call of :class:`.base.Store` takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from gwi_celery.ids import digest
from gwi_celery.stores.limits import LimitRef

if TYPE_CHECKING:
    pass


class JobStatus(str, Enum):
    """Where a job stands."""

    #: Not running: handed back, or waiting for a retry. A message for it is outstanding.
    PENDING = "pending"
    #: The same, because another job holds its lock, or a limit is reached. It may never have begun.
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
    #: Only ever moves on: its version must grow.
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


#: A replay's generation: the next one of a job that has failed, but not by this very submission.
NEXT: Final = 0


@dataclass(frozen=True)
class Replay:
    """Asks for a new generation of a job, although the one before may have succeeded."""

    #: The generation to open, or :data:`NEXT`. If the job is there already, the submission is a plain
    #: duplicate.
    generation: int
    #: Checkpoints saved from this one on are forgotten; None: all of them; "": none.
    from_step: str | None = None


@dataclass(frozen=True)
class Origin:
    """What a record keeps of the call that created the job: for people, and to run it again."""

    #: Celery's id of the call.
    task_id: str = ""
    #: Celery's ids of the task that called it, and of the first one in that line.
    parent_id: str | None = None
    root_id: str | None = None
    #: Where its message came from.
    queue: str | None = None
    #: Given with the call; jobs can be found by them.
    labels: Mapping[str, str] = field(default_factory=dict)
    #: The version of the worker's code.
    code_version: str = ""
    #: The call as JSON, to be made again; None: not kept, or not read.
    envelope: bytes | None = None


@dataclass(frozen=True)
class ClaimRequest:
    """One attempt to run a job."""

    job: JobRef
    lock: LockRef
    #: The run's id, for people and for lists; None if the job has none.
    run_id: str | None
    #: Digests of the payload's forms, with spaces between: two payloads are the same if they share
    #: one. The same key with another payload is a mismatch.
    fingerprint: str
    #: Names the submission (the Celery task id): a redelivery or a retry of one that already
    #: failed gets that failure again, while a fresh submission runs again.
    submission: str
    #: Who asks, for people ("host:pid").
    owner: str
    #: Unique to this attempt, so that a claim whose answer was lost can be recognised.
    nonce: str
    #: Seconds until the lock may be taken over, unless renewed.
    lease_ttl: float
    #: Seconds a terminal outcome is kept.
    result_ttl: float
    replay: Replay | None = None
    #: What the record is to keep of the call. None: it keeps what it has, and a claim that is Held
    #: records no wait.
    origin: Origin | None = None
    #: A hint that the store may know this job: it was delivered before, or is a retry. It changes
    #: no answer, only what is looked at first.
    redelivered: bool = False
    #: What else it needs a place of, all or none, as the code has them.
    limits: Sequence[LimitRef] = ()
    #: Keeps the rates among ``limits``, as they are in force, in the store's stead. Asked once the claim
    #: would be granted otherwise; what it answers is the claim's answer then.
    rates: Callable[[Sequence[LimitRef]], Limited | None] | None = field(
        default=None, compare=False
    )


@dataclass(frozen=True)
class Lease:
    """Proof of a claim; every write carries it. A write answers with the next one."""

    job: JobRef
    lock: LockRef
    #: The fencing token.
    fence: int
    nonce: str
    ttl: float
    result_ttl: float
    generation: int
    #: Store-private (a document version, say).
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
    """How a generation ended: SUCCEEDED with a result, FAILED with an error, or CANCELLED."""

    status: JobStatus
    blob: bytes
    #: None: derived from the status.
    end: AttemptEnd | None = field(default=None, compare=False)


#: The end of an attempt of which nothing more is known.
RELEASED = AttemptEnd("released")


@dataclass(frozen=True)
class Wait:
    """What keeps a job from running."""

    #: "lock", "limit", or "retry".
    kind: str
    #: The lock's scope, its parts joined by ":"; the limit's name; the error that is tried again.
    what: str
    #: Who holds the lock ("host:pid task id"), and with which job. Of a limit: "3 of 3 held".
    holder: str = ""
    holder_job: JobRef | None = None
    #: Seconds since the epoch; ``since`` is set by the store.
    since: float = 0.0
    #: Until when at the latest, as known when this was written; None: unknown.
    until: float | None = None
    #: The limit's.
    limit_id: str = ""


@dataclass(frozen=True)
class Progress:
    """How far a job says it is."""

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
    #: Seconds since the epoch; ``ended`` is None of one that runs.
    began: float
    ended: float | None = None
    #: None of one that runs; "lost" of one whose worker vanished without a word.
    end: AttemptEnd | None = None


@dataclass(frozen=True)
class StoredResult:
    """A task's result as Celery's readers get it, to be written along with an outcome.

    A stored SUCCESS that has not expired is never replaced; another end is replaced by an end only.
    """

    task_id: str
    #: The result backend's name for it.
    key: str
    #: Celery's state.
    state: str
    #: As the result backend encodes it.
    meta: bytes
    #: Seconds that it is kept; None: for good.
    ttl: float | None
    #: A hint that an earlier attempt may have stored one: the store reads first.
    seen_before: bool = False
    #: Store-private: what is known of the one that is there.
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
    #: Place in the order of first saving; set by the store.
    ordinal: int = 0
    #: Its bytes were left out: :meth:`Store.fetch` gives them.
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
    #: without a word.
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
    #: Oldest first, the one that runs last; and how many older ones are forgotten.
    attempts: Sequence[PastAttempt] = ()
    attempts_forgotten: int = 0
    #: Of a job that isn't running and has not ended.
    waits: Wait | None = None
    progress: Progress | None = None
    #: The last error's class, and the first line of its text; "" once it has succeeded.
    error_type: str = ""
    error: str = ""


@dataclass(frozen=True)
class JobFilter:
    """Which jobs to find: those that fit all that isn't None."""

    #: None: of all tenants.
    tenant: str | None = None
    task: str | None = None
    status: JobStatus | None = None
    run_id: str | None = None
    #: (name, value).
    label: tuple[str, str] | None = None
    #: The last error's class.
    error_type: str | None = None
    #: Celery's id of the call, and of the one that called it.
    task_id: str | None = None
    parent_id: str | None = None
    #: Seconds since the epoch: recorded first at or after, and before.
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
    #: The limit's name, as the code has it, and what it is filled with.
    name: str
    values: Mapping[str, str]
    #: Of a rate, not of ``max_running``.
    of_rate: bool
    owner: str
    job: JobRef
    #: Seconds since the epoch. It is free then, unless its job's lease is renewed.
    taken_at: float
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
    """The job ended before, as SUCCEEDED or FAILED: this duplicate gets that outcome."""

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
    #: Seconds until its lease runs out, if it isn't renewed.
    retry_after: float


@dataclass(frozen=True)
class Limited:
    """A limit has no free place."""

    limit: LimitRef
    #: Places that are taken.
    held: int
    #: Seconds until one is free: at the earliest, of a rate; at the latest, of those that run, unless
    #: their leases are renewed.
    retry_after: float
    #: What else there is to say of it; "": how many are taken.
    why: str = ""


@dataclass(frozen=True)
class Cancelled:
    """An operator cancelled the job."""

    record: JobRecord


ClaimAnswer = Claimed | Completed | Mismatch | Held | Limited | Cancelled


@dataclass(frozen=True)
class Page:
    jobs: Sequence[JobRecord]
    #: Hand it back to go on after this page; None at the end.
    next_token: str | None
