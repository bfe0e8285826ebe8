"""What every store decides alike, whatever it keeps its documents in."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from gwi_celery.actions import Action, action
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
    Checkpoint,
    CheckpointKind,
    ClaimRequest,
    JobRef,
    JobStatus,
    Lease,
    LockRef,
)
from gwi_celery.text import safe_text

#: Seconds a cancellation is kept for a job that was never claimed, and so named no TTL itself.
CANCELLED_TTL: Final = 24 * 3600.0

#: How many failed submissions a record remembers; an older one would run again if redelivered.
FAILED_KEPT: Final = 16

#: Bytes of checkpoints that are loaded together; more are fetched one by one.
LOADED_AT_ONCE: Final = 1_000_000

#: The fingerprint of a job that was cancelled before its payload was seen: it fits every payload.
ANY_PAYLOAD: Final = ""


def check_tenants(request: ClaimRequest) -> None:
    """Raises InvalidCall when the job and its lock are of different tenants."""
    if request.job.tenant != request.lock.tenant:
        raise InvalidCall(
            f"the job is of tenant {request.job.tenant!r} and its lock of "
            f"{request.lock.tenant!r}: name one tenant"
        )


def submission_id(submission: str) -> str:
    """A digest, because a submission may hold spaces and anything else."""
    return digest("submission", submission)


def same_payload(stored: str, asked: str) -> bool:
    """Whether two fingerprints are of one payload: they have the digest of one form in common."""
    return stored == ANY_PAYLOAD or not set(stored.split()).isdisjoint(asked.split())


def corrects(status: JobStatus, failed: Collection[str], request: ClaimRequest) -> bool:
    """Whether another payload under the same key may run: only in place of one that failed.

    ``failed`` are the submissions that the record remembers as failed. A replay from a step keeps
    what the payload before has made, so it can't be of another one.
    """
    return (
        status is JobStatus.FAILED
        and submission_id(request.submission) not in failed
        and (request.replay is None or request.replay.from_step is None)
    )


def crashes_after_takeover(crashes: int, status: JobStatus) -> int:
    """RUNNING, and yet free to be claimed: nobody released it, its holder vanished."""
    return crashes + (status is JobStatus.RUNNING)


def is_progress(checkpoint: Checkpoint) -> bool:
    """Whether saving it forgives the crashes so far. A value may be saved again at each attempt."""
    return checkpoint.kind is not CheckpointKind.VALUE


def replays_next(status: JobStatus, generation: int, request: ClaimRequest) -> bool:
    """Whether the request replays a job that ended in that generation."""
    return (
        request.replay is not None
        and status.terminal
        and request.replay.generation == generation + 1
    )


def unknown_step(request: ClaimRequest, first: str, recorded: list[str]) -> InvalidCall:
    """A replay's ``from_step`` names no checkpoint of the job."""
    return InvalidCall(
        f"can't replay {request.job.task} from {first!r}: its recorded checkpoints are "
        f"{', '.join(map(repr, recorded)) or 'none'}"
    )


@dataclass(frozen=True)
class Stored:
    """A checkpoint that is there already."""

    kind: CheckpointKind
    version: int
    same_bytes: bool


def must_write(task: str, stored: Stored | None, checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is to be written; False if it is there as it is.

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
    """Whether a value is to be written by one without a lease; False if that was done already.

    Raises StepNameReused, VersionConflict.
    """
    if stored is not None and stored.kind is not CheckpointKind.VALUE:
        raise _name_taken(task, name, stored.kind, CheckpointKind.VALUE)
    there = 0 if stored is None else stored.version
    if there == expected:
        return True
    if stored is not None and there == expected + 1 and stored.same_bytes:
        return False
    raise VersionConflict(
        f"value {name!r} of {task} is {_at(there)}, and its writer expected it {_at(expected)}: "
        "read it again, and decide anew",
        expected=expected,
        stored=there,
    )


def _at(version: int) -> str:
    return f"at version {version}" if version else "not there"


def not_open(job: JobRef, status: JobStatus | None) -> InvalidCall:
    """A value was put to a job that is unknown (None), or has ended as ``status``."""
    which = f"the job of {job.task} with key {job.key!r} of tenant {job.tenant!r}"
    if status is None:
        return InvalidCall(f"{which} is unknown: it can be given values once a worker has begun it")
    return InvalidCall(f"{which} has ended ({status.value}): what it recorded stays as it is")


def cancelled(lease: Lease, reason: str) -> JobCancelled:
    return JobCancelled(f"{lease.job.task} was cancelled: {reason}", reason)


def lease_lost(lease: Lease, owner: str | None, fence: int) -> LeaseLost:
    """``owner`` and ``fence`` are the lock's now; None if it is free."""
    if owner is None or fence == lease.fence:
        why = "its lock was freed, or the job was claimed under another one"
    else:
        why = f"{owner} took over with fence {fence}"
    return LeaseLost(f"{lease.job.task} may write nothing more with fence {lease.fence}: {why}")


def finished_otherwise(lease: Lease, status: JobStatus) -> LeaseLost:
    """An attempt that has finished is finished again, with another outcome."""
    return LeaseLost(
        f"{lease.job.task} has ended as {status.value} already, with fence {lease.fence}: that "
        "outcome stands, and this one is not recorded"
    )


# --- what operators do ------------------------------------------------------------------------------


def cancelling(job: JobRef, reason: str) -> Action:
    """For the audit trail."""
    # The whole reason is the outcome; a document has room for no more than 1 MB.
    return action("cancel", f"{job.task} {job.key}", job.tenant, reason=safe_text(reason, 1000))


def releasing(lock: LockRef) -> Action:
    """For the audit trail."""
    return action("force release", " ".join(lock.scope), lock.tenant)
