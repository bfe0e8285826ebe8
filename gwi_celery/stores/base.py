"""The store seam: all that ReliableTask knows of where its state lives.

One store with the protocol's atomic operations, not three small ones: a claim takes the lock and
opens the idempotency record in *one* commit, and a finish writes the outcome and frees the lock in
one. Split in three, neither could be one round trip, nor be safe when a worker dies in between.

What every implementation keeps (one contract suite checks it):

- Fencing tokens of one lock strictly grow: across release, expiry, takeover, force release, cleanup.
- Every write carries the token of the claim it stems from. A stale holder's write changes nothing
  and raises :class:`~gwi_celery.errors.LeaseLost`.
- A terminal state never changes within its generation.
- Another payload under the same key never runs and overwrites nothing, unless the job has failed.
- A recorded step never changes; a cursor's version only grows.
- What has expired counts as gone, even while it is still there. Expiry is by the store's clock.
- No operation of one tenant reads or changes another's: ids are digests over the tenant as well.
- A commit whose answer was lost may be sent again: it converges, and never grants twice.

Over 500 lines because an operation's contract and the values it speaks of are read together, and users
import both from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Protocol

from gwi_celery.actions import Action
from gwi_celery.ids import digest
from gwi_celery.stores.limits import LimitRef, LimitSetting

if TYPE_CHECKING:
    from gwi_celery.stores.queues import QueueRecords


class JobStatus(str, Enum):
    """Where a job stands."""

    #: Not running: handed back, or waiting for a retry. A message for it is outstanding.
    PENDING = "pending"
    #: The same, behind a lock that another holds, or a limit. It may never have begun.
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
    """Names one job: what is promised, is promised per (tenant, task, key)."""

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
    """What a record keeps of the call that a job stems from, for people and to run it again."""

    #: Celery's id of the call.
    task_id: str = ""
    #: Celery's ids of the task that called it, and of the first one in that line.
    parent_id: str | None = None
    root_id: str | None = None
    #: Where its message came from.
    queue: str | None = None
    #: Given with the call, to find it by.
    labels: Mapping[str, str] = field(default_factory=dict)
    #: Of the worker's code.
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
    #: What the record is to keep of the call. None: what it has; and a claim that is Held records
    #: no wait.
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
    #: Seconds since the epoch at which the job is tried again; None: nothing is said of that.
    retry_at: float | None = None


@dataclass(frozen=True)
class Outcome:
    """How a generation ended: SUCCEEDED with a result, FAILED with an error, or CANCELLED."""

    status: JobStatus
    blob: bytes
    #: None: by its status.
    end: AttemptEnd | None = field(default=None, compare=False)


#: Of an attempt whose end says nothing more.
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

    A SUCCESS that is there already, and has not expired, stays as it is; another end unless this is
    one, too.
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
    #: A hint that there may be one already, of an earlier attempt: it is looked at first.
    seen_before: bool = False
    #: Store-private: what is known of the one that is there.
    version: Any = field(default=None, compare=False)
    #: Whose task it was. A result that is there of another tenant's stays.
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


class Store(Protocol):
    """Where jobs keep their state.

    Methods may be called from any thread. After a fork the child may go on with the same object.
    Any method may raise StoreUnavailable (temporary) or StoreUnusable (permanent).

    Over 25 methods: one is one commit or one read, and a store is the only place for either.
    """

    def claim(self, request: ClaimRequest) -> ClaimAnswer:
        """Take the lock and open the job's record, atomically.

        Decided in this order, on what has not expired:

        1. a record with another fingerprint: Mismatch, unless the job has FAILED by other submissions
           (and no ``replay`` keeps steps): then a new generation, which forgets every checkpoint
        2. a terminal record: a ``replay`` of the next generation opens it (Claimed, or Held);
           CANCELLED: Cancelled; SUCCEEDED: Completed; FAILED: Completed if the submission is
           one that failed already, else a new generation that keeps the checkpoints
        3. the lock is held by another attempt, or the job is under another lock: Held (a claim with
           the holder's own nonce is the same claim, sent again, and is answered as it was)
        4. one of the request's ``limits`` has no free place: Limited, and no place of any is taken.
           A place that the job's own lost lease has is its own
        5. else Claimed: a fresh record in generation 1, or the record as it stands with one more
           attempt. Taking over from a holder that let its lease run out counts one crash; a step or
           a cursor that is saved forgives those before it.

        Raises InvalidCall, and changes nothing, when ``replay.from_step`` names no checkpoint of the
        job, or when the job and the lock are of different tenants.
        """

    def renew(self, lease: Lease) -> Lease:
        """Move the lease's end to its TTL from now.

        Raises LeaseLost when the lock is no longer ours, JobCancelled when the job was cancelled.
        """

    def save(self, lease: Lease, checkpoint: Checkpoint) -> Lease:
        """Record a checkpoint, and renew the lease with it.

        A step that is there already stays as it is (saving the very same bytes is no error, so
        that a save can be repeated; other bytes raise StepNameReused). A cursor or value is
        written only if ``version`` is above the stored one, or repeats the stored bytes; else it
        raises CursorWentBack. A name that a checkpoint of another kind has raises StepNameReused.
        Neither renews the lease. Raises LeaseLost, JobCancelled.
        """

    def load(self, lease: Lease) -> list[Checkpoint]:
        """The checkpoints of the lease's generation, in the order they were first saved.

        With their bytes if these are few; else those are ``deferred``, of some or of all.
        """

    def fetch(self, lease: Lease, name: str) -> Checkpoint | None:
        """One checkpoint of the lease's generation with its bytes, as it is now; None: there is none.

        Raises LeaseLost if the lease is seen to be lost.
        """

    def finish(self, lease: Lease, outcome: Outcome, result: StoredResult | None = None) -> None:
        """Write the outcome and free the lock, atomically. ``outcome.status`` is terminal.

        ``result`` is given only to a store that :meth:`keeps_results_of` its backend, and is
        written in the same commit. Finishing again with the same lease and outcome is no error, and
        changes nothing; with another outcome it raises LeaseLost. Raises LeaseLost, JobCancelled.
        """

    def keeps_results_of(self, url: str) -> bool:
        """Whether the result backend of that URL reads what :meth:`finish` writes of a result."""

    def release(self, lease: Lease, end: AttemptEnd = RELEASED) -> None:
        """Free the lock and leave the job PENDING with its checkpoints, uncounted as a crash.

        A stale lease releases nothing, and that is no error.
        """

    def progress(self, lease: Lease, progress: Progress) -> Lease:
        """Record how far the job is, in place of what was recorded before, and renew the lease.

        Raises LeaseLost, JobCancelled.
        """

    def wait(self, request: ClaimRequest, wait: Wait) -> None:
        """Record what the job waits for, unless it runs, has ended, or waits for that already.

        A claim that is Held has done so for its lock, if it has an ``origin``. One that never began is
        kept for the request's ``result_ttl``. For people: it changes no later answer, and what isn't
        recorded because somebody else changed the job meanwhile isn't missed.
        """

    def force_release(self, lock: LockRef, *, owner_nonce: str | None = None) -> bool:
        """Operator's tool: free the lock whoever holds it; the holder's writes fail from then on.

        With ``owner_nonce``: only if that attempt holds it; that is a worker's own, and no action
        that is recorded. True if a live lock was freed. Its job stays RUNNING: the next claim counts a
        crash.
        """

    def cancel(self, job: JobRef, reason: str, *, in_advance: bool = False) -> bool:
        """Operator's tool: end the job as CANCELLED, running or not; True if it was not terminal.

        The store knows a job once a worker has begun it. One that is unknown is left alone, and
        the answer is False, unless ``in_advance``: then it is recorded as cancelled, so that it
        never starts, whatever its payload. The outcome is ``reason`` in UTF-8, which the job's
        caller gets.
        """

    def bar_calls_of(self, tenant: str, task_id: str, reason: str) -> None:
        """Operator's tool: no job that the task of that id has called begins any more.

        One of that tenant that hasn't begun is recorded as cancelled when it is claimed, with
        ``reason``, unless the claim replays it. Those that have begun are for :meth:`cancel`. Kept for
        30 days: longer than a broker keeps a call.
        """

    def put_value(
        self, job: JobRef, name: str, blob: bytes, *, expected_version: int
    ) -> Checkpoint:
        """For those who hold no lease: write a value of an unfinished job, if it hasn't changed.

        The value's version serves as an etag: it must be ``expected_version`` (0: there is none),
        and is one more afterwards. Returns the value as it is stored then; so too when it has
        that version and those bytes already, so that the call can be repeated. Renews no lease
        and changes no step or cursor. A holder who saves the value goes on from its new version.

        Raises VersionConflict, and writes nothing, when the version is another. Raises
        StepNameReused when the name is a step's or cursor's, and InvalidCall when the job is
        unknown or has ended: what ended stays as it was recorded.
        """

    def operator_key(self) -> bytes:
        """A secret that all who open this store have in common, and nobody else: 32 bytes.

        Made when first asked for. What is signed with it comes from one who may use the store.
        Raises InvalidCall where the store is a database for each tenant.
        """

    def record_action(self, action: Action) -> None:
        """Keep what an operator did. :meth:`cancel` and :meth:`force_release` do so by themselves."""

    def list_actions(
        self, *, tenant: str | None = None, limit: int = 100, before: str | None = None
    ) -> list[Action]:
        """What operators did, latest first: to one tenant's or to all; those before an ``id``."""

    @property
    def queues(self) -> QueueRecords:
        """What it keeps of queues. Raises InvalidCall where each tenant has a database of its own."""

    def get_job(self, job: JobRef) -> JobRecord | None:
        """The record; None when there is none or it has expired."""

    def get_checkpoints(self, job: JobRef, *, outline: bool = False) -> list[Checkpoint]:
        """The current checkpoints, in the order they were first saved; for people and tests.

        ``outline``: all ``deferred``, for who wants the names.
        """

    def get_lock(self, lock: LockRef) -> LockRecord | None:
        """The lock, held or expired; None when it is free."""

    def list_jobs(
        self,
        tenant: str,
        *,
        status: JobStatus | None = None,
        run_id: str | None = None,
        limit: int = 100,
        token: str | None = None,
    ) -> Page:
        """One tenant's jobs, newest change first.

        A job that changes between two pages moves to the front, and later pages don't show it; every
        other job is listed once. Raises InvalidCall for a ``limit`` below 1 and for a ``token`` of
        another list.
        """

    def find_jobs(self, wanted: JobFilter, *, limit: int = 100, token: str | None = None) -> Page:
        """Jobs of one tenant or of all, those recorded last first, stable across pages.

        Without their outcomes, which :meth:`get_job` reads, and their envelopes. A job keeps its place
        from when it was first recorded until it is forgotten. Each filter is served by an index. Raises
        InvalidCall for a ``limit`` below 1, a ``token`` of another list, and for all tenants where each
        has a database of its own.
        """

    def get_envelope(self, job: JobRef) -> bytes | None:
        """The call that the job stems from (``Origin.envelope``); None: unknown, or not kept."""

    def list_locks(self, tenant: str) -> list[LockRecord]:
        """The tenant's locks, held or expired, oldest claim first."""

    def list_places(self, limit_id: str | None = None, *, limit: int = 1000) -> list[PlaceRecord]:
        """Places that are taken, of one limit or of all: up to ``limit``."""

    def limit_settings(self) -> dict[str, LimitSetting]:
        """What operators have set in place of what the code says, by :attr:`LimitSetting.id`."""

    def set_limit(self, setting: LimitSetting) -> None:
        """Operator's tool: have this hold for every claim that begins 10 seconds later, or sooner.

        Raises InvalidCall where each tenant has a database of its own.
        """

    def clear_limit(self, id: str) -> bool:
        """Undo :meth:`set_limit`; False if there is no such setting."""

    def cleanup(self, limit: int = 1000) -> int:
        """Delete up to ``limit`` expired records; how many. Never touches what is live.

        Expired locks under which nobody can write any more count.
        """

    def close(self) -> None:
        """Close what this process opened. Safe to call twice."""
