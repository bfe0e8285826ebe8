"""The store seam: all that ReliableTask knows about where its state is kept.

One store with the protocol's atomic operations, not three small ones: a claim takes the lock and
opens the idempotency record in *one* commit, and a finish writes the outcome and frees the lock in
one. Split in three, neither could be one round trip, nor be safe when a worker dies in between.

What every implementation guarantees (one contract suite checks it):

- Fencing tokens of one lock strictly grow: across release, expiry, takeover, force release, cleanup.
- Every write carries the token of the claim it stems from. A stale holder's write changes nothing
  and raises :class:`~gwi_celery.errors.LeaseLost`.
- A terminal state never changes within its generation.
- Another payload under the same key never runs and overwrites nothing, unless the job has failed.
- A recorded step never changes; a cursor's version only grows.
- What has expired counts as gone, even while it is still stored. The store's clock decides expiry.
- No operation of one tenant reads or changes another's: ids are digests over the tenant as well.
- A commit whose answer was lost may be sent again: it converges, and never grants twice.

The values that pass through the seam are in :mod:`.values`, and can be imported from here.
"""

from __future__ import annotations

from typing import Protocol

from gwi_celery.actions import Action
from gwi_celery.stores.limits import LimitSetting
from gwi_celery.stores.queues import QueueRecords
from gwi_celery.stores.values import (
    NEXT,
    RELEASED,
    AttemptEnd,
    Cancelled,
    Checkpoint,
    CheckpointKind,
    ClaimAnswer,
    Claimed,
    ClaimRequest,
    Completed,
    Held,
    JobFilter,
    JobRecord,
    JobRef,
    JobStatus,
    Lease,
    Limited,
    LockRecord,
    LockRef,
    Mismatch,
    Origin,
    Outcome,
    Page,
    PastAttempt,
    PlaceRecord,
    Progress,
    Replay,
    StoredResult,
    Wait,
)

__all__ = [
    "NEXT",
    "RELEASED",
    "AttemptEnd",
    "Cancelled",
    "Checkpoint",
    "CheckpointKind",
    "ClaimAnswer",
    "ClaimRequest",
    "Claimed",
    "Completed",
    "Held",
    "JobFilter",
    "JobRecord",
    "JobRef",
    "JobStatus",
    "Lease",
    "Limited",
    "LockRecord",
    "LockRef",
    "Mismatch",
    "Origin",
    "Outcome",
    "Page",
    "PastAttempt",
    "PlaceRecord",
    "Progress",
    "Replay",
    "Store",
    "StoredResult",
    "Wait",
]


class Store(Protocol):
    """Where jobs keep their state.

    Methods may be called from any thread. After a fork the child may go on using the same object.
    Any method may raise StoreUnavailable (temporary) or StoreUnusable (permanent).

    Over 25 methods, because each is one commit or one read, and only a store makes either.
    """

    def claim(self, request: ClaimRequest) -> ClaimAnswer:
        """Take the lock and open the job's record, atomically.

        Decided in this order, ignoring what has expired:

        1. a record with another fingerprint: Mismatch, unless the job has FAILED by other submissions
           (and no ``replay`` keeps steps): then a new generation, which forgets every checkpoint
        2. a terminal record: a ``replay`` of the next generation opens it (Claimed, or Held);
           CANCELLED: Cancelled; SUCCEEDED: Completed; FAILED: Completed if this submission has
           failed already, else a new generation that keeps the checkpoints
        3. a job that has never begun, and whose caller's calls are barred (:meth:`bar_calls_of`):
           it is recorded as cancelled: Cancelled
        4. the lock is held by another attempt, or the job runs under another lock: Held (a claim with
           the holder's own nonce is the same claim, sent again, and gets the same answer)
        5. one of the request's ``limits`` has no free place: Limited, and no place of any is taken.
           A place held by the job's own lost lease counts as free
        6. else Claimed: a fresh record in generation 1, or the existing record with one more
           attempt. Taking over from a holder whose lease has expired counts one crash; saving a step
           or a cursor resets that count.

        Raises InvalidCall, and changes nothing, when ``replay.from_step`` names no checkpoint of the
        job, or when the job and the lock are of different tenants.
        """

    def renew(self, lease: Lease) -> Lease:
        """Let the lease expire its TTL from now, and no earlier.

        Raises LeaseLost when the lease no longer holds the lock, JobCancelled when the job was
        cancelled.
        """

    def save(self, lease: Lease, checkpoint: Checkpoint) -> Lease:
        """Record a checkpoint, and renew the lease with it.

        A step that is stored already stays as it is: saving the same bytes again is no error, so
        that a save can be repeated; other bytes raise StepNameReused. A cursor or value is written
        if its ``version`` is above the stored one; otherwise the same bytes are no error, and others
        raise CursorWentBack. A name that a checkpoint of another kind has raises StepNameReused.
        A save that raises renews no lease. Raises LeaseLost, JobCancelled.
        """

    def load(self, lease: Lease) -> list[Checkpoint]:
        """The checkpoints of the lease's generation, in the order they were first saved.

        Their bytes come with them if they are few; otherwise some or all are ``deferred``. Raises
        LeaseLost if the lease is seen to be lost.
        """

    def fetch(self, lease: Lease, name: str) -> Checkpoint | None:
        """One checkpoint of the lease's generation with its current bytes; None if there is none.

        Raises LeaseLost if the lease is seen to be lost.
        """

    def finish(self, lease: Lease, outcome: Outcome, result: StoredResult | None = None) -> None:
        """Write the outcome and free the lock, atomically. ``outcome.status`` is terminal.

        ``result`` is given only to a store whose :meth:`keeps_results_of` is true for its backend,
        and is written in the same commit. Finishing again with the same lease and outcome is no
        error, and changes nothing; with another outcome it raises LeaseLost. Raises LeaseLost,
        JobCancelled.
        """

    def keeps_results_of(self, url: str) -> bool:
        """Whether :meth:`finish` writes results where the result backend of that URL reads them."""

    def release(self, lease: Lease, end: AttemptEnd = RELEASED) -> None:
        """Free the lock and leave the job PENDING with its checkpoints. No crash is counted.

        A stale lease releases nothing, and that is no error.
        """

    def progress(self, lease: Lease, progress: Progress) -> Lease:
        """Record how far the job has come, in place of what was recorded before; renew the lease.

        Raises LeaseLost, JobCancelled.
        """

    def wait(self, request: ClaimRequest, wait: Wait) -> None:
        """Record what the job waits for, unless it runs, has ended, or waits for that already.

        A claim that is Held or Limited records its wait by itself, if it has an ``origin``. The record
        of a job that never began is kept for the request's ``result_ttl``. It is for people: no later
        answer depends on it, and nothing is recorded if somebody else changes the job meanwhile.
        """

    def force_release(self, lock: LockRef, *, owner_nonce: str | None = None) -> bool:
        """Operator's tool: free the lock whoever holds it; the holder's writes fail from then on.

        With ``owner_nonce``: only if that attempt holds it. Workers use this, and it is not recorded as
        an operator's action. True if the lock that was freed had not expired. Its job stays RUNNING, so
        that the next claim counts a crash.
        """

    def cancel(self, job: JobRef, reason: str, *, in_advance: bool = False) -> bool:
        """Operator's tool: end the job as CANCELLED, running or not; True if it was not terminal.

        The store knows a job once a worker has claimed it, or has had it wait. An unknown job is left
        alone, and the answer is False, unless ``in_advance``: then it is recorded as cancelled, so
        that it never begins, whatever its payload. The outcome is ``reason`` in UTF-8, which the
        job's caller gets.
        """

    def bar_calls_of(self, tenant: str, task_id: str, reason: str) -> None:
        """Operator's tool: from now on, no job that was called by the task of that id may begin.

        When such a job of that tenant is claimed for the first time, it is recorded as cancelled, with
        ``reason``, unless the claim replays it. Jobs that have begun are for :meth:`cancel`. Kept for
        at least 35 days from the last such call, which is longer than any broker keeps a message.
        """

    def put_value(
        self, job: JobRef, name: str, blob: bytes, *, expected_version: int
    ) -> Checkpoint:
        """Write a value of an unfinished job without holding its lease, if the value hasn't changed.

        The value's version serves as an etag: it must be ``expected_version`` (0: there is no value),
        and is one more afterwards. Returns the value as stored. The call can be repeated: if the value
        has the new version and these bytes already, it is returned as well. Renews no lease
        and changes no step or cursor. A holder who saves the value next continues from its new version.

        Raises VersionConflict, and writes nothing, when the value has another version. Raises
        StepNameReused when the name is a step's or cursor's, and InvalidCall when the job is
        unknown, has never begun or has ended.
        """

    def operator_key(self) -> bytes:
        """A secret of 32 bytes, known to everyone who can open this store, and to nobody else.

        Created on first use. What is signed with it comes from somebody who may use the store.
        Raises InvalidCall where each tenant has a database of its own.
        """

    def record_action(self, action: Action) -> None:
        """Keep a record of what an operator did. :meth:`cancel` and :meth:`force_release` do so
        themselves.
        """

    def list_actions(
        self, *, tenant: str | None = None, limit: int = 100, before: str | None = None
    ) -> list[Action]:
        """Up to ``limit`` actions of operators, latest first, of one tenant or of all.

        ``before`` is the ``id`` of an action: only older ones. Raises InvalidCall for a ``limit`` below
        1 and for a ``before`` that is no such id.
        """

    @property
    def queues(self) -> QueueRecords:
        """Its records of queues. Raises InvalidCall where each tenant has a database of its own."""

    def get_job(self, job: JobRef) -> JobRecord | None:
        """The record; None when there is none or it has expired."""

    def get_checkpoints(self, job: JobRef, *, outline: bool = False) -> list[Checkpoint]:
        """The current checkpoints, in the order they were first saved; for people and tests.

        ``outline``: all are ``deferred``, for callers that want the names only.
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
        """Jobs of one tenant or of all, the most recently recorded first, stable across pages.

        They come without their outcomes, which :meth:`get_job` reads, and without their envelopes. A
        job keeps its position from when it was first recorded until it is forgotten. Each filter is
        served by an index. Raises InvalidCall for a ``limit`` below 1, for a ``token`` of another list,
        and for all tenants where each tenant has a database of its own.
        """

    def get_envelope(self, job: JobRef) -> bytes | None:
        """The call that created the job (``Origin.envelope``); None if the job is unknown or the call
        was not kept.
        """

    def list_locks(self, tenant: str) -> list[LockRecord]:
        """The tenant's locks, held or expired, oldest claim first."""

    def list_places(self, limit_id: str | None = None, *, limit: int = 1000) -> list[PlaceRecord]:
        """Up to ``limit`` places that are taken, of one limit or of all, in no particular order."""

    def limit_settings(self) -> dict[str, LimitSetting]:
        """What operators have set in place of what the code says, by :attr:`LimitSetting.id`."""

    def set_limit(self, setting: LimitSetting) -> None:
        """Operator's tool: change a limit. Every claim that begins 10 seconds later, or sooner, obeys.

        Raises InvalidCall where each tenant has a database of its own.
        """

    def clear_limit(self, id: str) -> bool:
        """Undo :meth:`set_limit`; False if there is no such setting. Raises as :meth:`set_limit`."""

    def cleanup(self, limit: int = 1000) -> int:
        """Delete up to ``limit`` expired records, and return how many. Never touches what is live.

        These include expired locks under which nobody can write any more.
        """

    def close(self) -> None:
        """Close what this process opened. Safe to call twice."""
