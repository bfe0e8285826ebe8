"""The protocol's rules, once for all stores: how a claim is answered, who may write, what ends a job.

Pure functions of what was read, without a server or a clock. A store reads, asks these functions, and
writes what follows in one commit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from gwi_celery.errors import (
    CursorWentBack,
    InvalidCall,
    JobCancelled,
    LeaseLost,
    StepNameReused,
    VersionConflict,
)
from gwi_celery.ids import digest
from gwi_celery.stores.base import (
    NEXT,
    Cancelled,
    Checkpoint,
    CheckpointKind,
    ClaimRequest,
    Completed,
    Held,
    JobRef,
    JobStatus,
    Lease,
    Limited,
    Mismatch,
    Outcome,
    Wait,
)
from gwi_celery.stores.limits import LimitRef, LimitSetting, in_force

#: How many failed submissions a record remembers. An older one would run again if redelivered.
FAILED_KEPT: Final = 16

#: Bytes of checkpoints that are loaded together; more are fetched one by one.
LOADED_AT_ONCE: Final = 1_000_000

#: The fingerprint of a job whose payload is not known: it was cancelled, or had to wait, before it began.
#: It matches every payload.
ANY_PAYLOAD: Final = ""


# --- what the rules look at -----------------------------------------------------------------------


class Job(Protocol):
    """A record that has not expired, in a store's own form."""

    @property
    def status(self) -> JobStatus: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def submission(self) -> str: ...
    @property
    def failed(self) -> Collection[str]:
        """Digests of the submissions that the record remembers as failed."""

    @property
    def generation(self) -> int: ...
    @property
    def attempt(self) -> int: ...
    @property
    def crashes(self) -> int: ...
    @property
    def fence(self) -> int | None: ...
    @property
    def lock_id(self) -> str | None:
        """The lock that the last claim took."""


@dataclass(frozen=True)
class Lock:
    """A lock that is held, or has expired."""

    owner: str
    nonce: str
    fence: int
    job: JobRef
    #: Seconds until it may be taken over; 0 or less: it has expired.
    left: float


# --- how a claim is answered ----------------------------------------------------------------------

#: The answers that depend on the record alone; each is made from it.
Settled = type[Mismatch] | type[Completed] | type[Cancelled]


class SameClaim:
    """This very claim holds the lock already: its answer was lost. The answer is the same, and the lease
    is renewed, because the sender counts its time from this sending.
    """


@dataclass(frozen=True)
class Granted:
    """The claim takes the lock, and the record becomes this."""

    generation: int = 1
    attempt: int = 1
    crashes: int = 0
    #: There is no record, or it has expired: a new one begins.
    fresh: bool = False
    #: A new generation that forgets every checkpoint.
    anew: bool = False


def decide(
    request: ClaimRequest, job: Job | None, lock: Lock | None, other: Lock | None = None
) -> Settled | SameClaim | Held | Granted:
    """How a claim is answered; see :meth:`gwi_celery.stores.base.Store.claim`.

    ``job`` is None if there is no record, or it has expired. ``other`` is the lock that
    :func:`other_lock` names, if the job's last claim still has it.
    """
    answer = settled(request, job)
    if answer is not None:
        return answer
    if lock is not None:
        same = (lock.nonce, lock.job) == (request.nonce, request.job)
        if same and job is not None and job.fence == lock.fence:
            return SameClaim()
    for holder in (lock, other):
        if holder is not None and holder.left > 0:
            return Held(holder.owner, holder.job, retry_after=holder.left)
    if job is None:
        return Granted(fresh=True)
    if job.status.terminal:
        return Granted(generation=job.generation + 1, anew=begins_anew(request, job))
    # RUNNING, and yet free to be claimed: nobody released it, so its holder vanished.
    crashes = job.crashes + (job.status is JobStatus.RUNNING)
    return Granted(job.generation, job.attempt + 1, crashes)


def settled(request: ClaimRequest, job: Job | None) -> Settled | None:
    """The answer if the record decides, whoever holds a lock."""
    if job is None:
        return None
    same = same_payload(job.fingerprint, request.fingerprint)
    if not (same or _corrects(job, request)):
        return Mismatch
    if job.status.terminal and not _opens_next_generation(job, request):
        return Cancelled if job.status is JobStatus.CANCELLED else Completed
    return None


def other_lock(request: ClaimRequest, job: Job | None) -> str | None:
    """The id of the lock, if not the request's, under which the job's last attempt may still run."""
    if job is None or job.status is not JobStatus.RUNNING or job.lock_id == request.lock.id:
        return None
    return job.lock_id


def forgotten(
    request: ClaimRequest, job: Job | None, recorded: Callable[[], Sequence[str]]
) -> Sequence[str]:
    """The names of the recorded checkpoints that a replay from a step forgets, and so makes again.

    ``recorded`` reads the names of all, in the order they were first saved. Raises InvalidCall when the
    step is not recorded.
    """
    if job is None or request.replay is None or not _replays(job, request):
        return []
    first = request.replay.from_step
    if not first:
        return []
    names = recorded()
    if first not in names:
        raise InvalidCall(
            f"can't replay {request.job.task} from {first!r}: its recorded checkpoints are "
            f"{', '.join(map(repr, names)) or 'none'}"
        )
    return names[names.index(first) :]


def begins_anew(request: ClaimRequest, job: Job) -> bool:
    """Whether the next generation of a job that has ended forgets every checkpoint.

    Then they aren't read, so damaged ones are no obstacle.
    """
    if _replays(job, request):
        assert request.replay is not None
        return request.replay.from_step is None
    return not same_payload(job.fingerprint, request.fingerprint)


def check_tenants(request: ClaimRequest) -> None:
    """Raises InvalidCall when the job and its lock are of different tenants."""
    if request.job.tenant != request.lock.tenant:
        raise InvalidCall(
            f"the job is of tenant {request.job.tenant!r} and its lock of "
            f"{request.lock.tenant!r}: name one tenant"
        )


def submission_id(submission: str) -> str:
    """A digest of the submission, which itself may contain any character."""
    return digest("submission", submission)


def same_payload(stored: str, asked: str) -> bool:
    """Whether two fingerprints are of one payload: they share a digest."""
    return stored == ANY_PAYLOAD or not set(stored.split()).isdisjoint(asked.split())


def is_another_call(request: ClaimRequest, kept: str | None) -> bool:
    """Whether the request's call replaces the one that the record keeps.

    ``kept`` is the submission whose call that is; None: the record keeps no call.
    """
    return request.origin is not None and request.submission != kept


def _corrects(job: Job, request: ClaimRequest) -> bool:
    """Whether another payload under the same key may run: only in place of one that failed.

    A replay from a step keeps what the former payload has recorded, so its payload must be the same.
    """
    return _failed_otherwise(job, request) and (
        request.replay is None or request.replay.from_step is None
    )


def _opens_next_generation(job: Job, request: ClaimRequest) -> bool:
    """Whether a job that has ended runs again for this request."""
    if _replays(job, request):
        return True
    return _failed_otherwise(job, request)


def _replays(job: Job, request: ClaimRequest) -> bool:
    """Whether the request replays a job that ended."""
    if request.replay is None or not job.status.terminal:
        return False
    if request.replay.generation == NEXT:  # a redelivery of what it failed with is not replayed
        return _failed_otherwise(job, request)
    return request.replay.generation == job.generation + 1


def _failed_otherwise(job: Job, request: ClaimRequest) -> bool:
    """Whether the job has failed by submissions other than the request's."""
    return job.status is JobStatus.FAILED and submission_id(request.submission) not in job.failed


# --- waiting --------------------------------------------------------------------------------------


def wait_to_record(request: ClaimRequest, answer: Held | Limited, now: float) -> Wait | None:
    """What the record is to say of a claim that must wait; None: nothing, as the request has no origin.

    ``now`` is in seconds since the epoch.
    """
    if request.origin is None:
        return None
    until = now + answer.retry_after
    if isinstance(answer, Held):
        return Wait("lock", ":".join(request.lock.scope), answer.by, answer.job, until=until)
    limit = answer.limit
    usage = answer.why or limit.usage(answer.held)
    return Wait("limit", limit.text, usage, until=until, limit_id=limit.id)


def kept_by(
    request: ClaimRequest, settings: Callable[[], Mapping[str, LimitSetting]]
) -> tuple[Sequence[LimitRef], Sequence[LimitRef]]:
    """The request's limits as they are in force: those that the store counts, and those that
    ``request.rates`` does.
    """
    if not request.limits:
        return (), ()
    known = settings()
    now = [in_force(limit, known) for limit in request.limits]
    if request.rates is None:
        return now, ()
    return [each for each in now if each.rate is None], [each for each in now if each.rate]


def may_wait(job: Job | None) -> bool:
    """Whether the record may be changed to say that the job waits: not if it runs or has ended."""
    return job is None or job.status in (JobStatus.PENDING, JobStatus.WAITING)


def never_begun(job: Job) -> bool:
    """Whether the job has only waited. Its record is for people: it expires, and matches any payload."""
    return job.status is JobStatus.WAITING and not job.attempt


# --- what a lease's holder may do -----------------------------------------------------------------


def check_holder(
    lease: Lease, job: Job | None, lock: Lock | None, reason: Callable[[], str]
) -> None:
    """Raises LeaseLost or JobCancelled unless both the record and the lock have the lease's token.

    One alone is not enough. The same job may have been claimed under another lock meanwhile; and
    another job may have taken the lock, which leaves this job's record as it was.

    Args:
        lock: The lease's lock, held or expired; None if it is free.
        reason: Reads why the job was cancelled.
    """
    if job is None:
        raise lease_lost(lease, lock)
    if job.status is JobStatus.CANCELLED and job.generation == lease.generation:
        why = reason()
        raise JobCancelled(f"{lease.job.task} was cancelled: {why}", why)
    owns_record = job.status is JobStatus.RUNNING and job.fence == lease.fence
    owns_lock = lock is not None and lock.fence == lease.fence
    if not (owns_record and owns_lock):
        raise lease_lost(lease, lock)


def lease_lost(lease: Lease, lock: Lock | None) -> LeaseLost:
    """The error to raise. ``lock`` is the lease's lock as it is now; None if it is free."""
    if lock is None or lock.fence == lease.fence:
        why = "its lock was freed, or the job was claimed under another one"
    else:
        why = f"{lock.owner} took over with fence {lock.fence}"
    return LeaseLost(f"{lease.job.task} may write nothing more with fence {lease.fence}: {why}")


def is_finished(
    lease: Lease, job: Job | None, finished: int | None, outcome: Outcome, *, same_bytes: bool
) -> bool:
    """Whether this finish was applied before, and only its answer was lost.

    ``finished`` is the token of the claim whose finish was the last applied to the record;
    ``same_bytes`` says whether the record's outcome has the bytes of this one. Raises LeaseLost when the
    attempt has ended with another outcome; once a later claim has changed the record, that can't be
    told any more. Raises ValueError for a status that is no end.
    """
    if not outcome.status.terminal:
        raise ValueError(f"{outcome.status.value} is no end of a job")
    if job is None or finished != lease.fence:
        return False
    if job.fence != lease.fence or (job.status is outcome.status and same_bytes):
        return True
    raise LeaseLost(
        f"{lease.job.task} has ended as {job.status.value} already, with fence {lease.fence}: that "
        "outcome stands, and this one is not recorded"
    )


def failed_after(job: Job, status: JobStatus) -> list[str]:
    """The failed submissions that the record remembers once its attempt has ended as ``status``."""
    failed = list(job.failed)
    if status is JobStatus.FAILED:
        failed.append(submission_id(job.submission))
    return failed[-FAILED_KEPT:]


# --- checkpoints ----------------------------------------------------------------------------------


def is_progress(checkpoint: Checkpoint) -> bool:
    """Whether saving it resets the count of crashes. A value doesn't: each attempt may save it again."""
    return checkpoint.kind is not CheckpointKind.VALUE


@dataclass(frozen=True)
class Stored:
    """A checkpoint that is stored already."""

    kind: CheckpointKind
    version: int
    same_bytes: bool


def must_write(task: str, stored: Stored | None, checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint must be written; False if the very same one is stored already.

    Raises StepNameReused, CursorWentBack.
    """
    if stored is None:
        return True
    name, kind = checkpoint.name, checkpoint.kind
    if stored.kind is not kind:
        raise _name_taken(task, name, stored.kind, kind)
    grows = kind is not CheckpointKind.STEP and checkpoint.version > stored.version
    if not grows and stored.same_bytes:
        return False
    if kind is CheckpointKind.STEP:
        raise StepNameReused(
            f"step {name!r} of {task} is recorded with another result: name each step once"
        )
    if not grows:
        raise CursorWentBack(
            f"{kind.value} {name!r} of {task} is at version {stored.version}: version "
            f"{checkpoint.version} can't replace it"
        )
    return True


def _name_taken(
    task: str, name: str, stored: CheckpointKind, kind: CheckpointKind
) -> StepNameReused:
    return StepNameReused(
        f"{name!r} of {task} is a {stored.value} already: give the {kind.value} a name of its own"
    )


def must_put(task: str, name: str, stored: Stored | None, expected: int) -> bool:
    """Whether a value must be written by a caller without a lease; False if this call has written it.

    ``expected`` is the version that the caller has read. Raises StepNameReused, VersionConflict.
    """
    if stored is not None and stored.kind is not CheckpointKind.VALUE:
        raise _name_taken(task, name, stored.kind, CheckpointKind.VALUE)
    version = 0 if stored is None else stored.version
    if version == expected:
        return True
    if stored is not None and version == expected + 1 and stored.same_bytes:
        return False
    raise VersionConflict(
        f"value {name!r} of {task} is {_at(version)}, and its writer expected it {_at(expected)}: "
        "read it, and decide again",
        expected=expected,
        stored=version,
    )


def _at(version: int) -> str:
    return f"at version {version}" if version else "not there"


def check_open(job: JobRef, known: Job | None) -> None:
    """Raises InvalidCall unless the job has begun and has not ended: otherwise it takes no values."""
    which = f"the job of {job.task} with key {job.key!r} of tenant {job.tenant!r}"
    if known is None or never_begun(known):
        raise InvalidCall(f"{which} is unknown: it can be given values once a worker has begun it")
    if known.status.terminal:
        raise InvalidCall(
            f"{which} has ended ({known.status.value}): what it recorded stays as it is"
        )
