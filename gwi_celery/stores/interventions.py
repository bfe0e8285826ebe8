"""The rules of what operators do to jobs and locks, once for all stores: cancel, free, bar calls.

As :mod:`.protocol`, pure functions of what was read.
"""

from __future__ import annotations

from typing import Final

from gwi_celery.actions import Action, action
from gwi_celery.stores.base import ClaimRequest, JobRef, LockRef, Wait
from gwi_celery.stores.protocol import Job, never_begun
from gwi_celery.text import safe_text

#: Seconds a cancellation is kept for a job that was never claimed, and so named no TTL itself.
CANCELLED_TTL: Final = 24 * 3600.0

#: Seconds for which the calls of a cancelled task are kept from beginning: longer than any broker
#: keeps a message (Pub/Sub: 31 days).
BARRED_TTL: Final = 35 * 24 * 3600.0

#: Added to the name of a task, for the one that undoes its cancelled jobs (``@task.on_cancel``).
UNDO_SUFFIX: Final = ".on_cancel"


# --- cancelling and freeing -----------------------------------------------------------------------


def may_cancel(job: Job | None, *, in_advance: bool) -> bool:
    """Whether a cancellation changes anything: an unknown job is cancelled only in advance."""
    return in_advance if job is None else not job.status.terminal


def may_free(nonce: str, owner_nonce: str | None) -> bool:
    """Whether a forced release frees the lock of that nonce: anybody's, or that attempt's alone."""
    return owner_nonce is None or owner_nonce == nonce


def cancelling(job: JobRef, reason: str) -> Action:
    """The cancellation's entry in the audit trail."""
    # The outcome has the whole reason, which may be larger than a document has room for.
    return action("cancel", f"{job.task} {job.key}", job.tenant, reason=safe_text(reason))


def releasing(lock: LockRef) -> Action:
    """A forced release's entry in the audit trail."""
    return action("force release", " ".join(lock.scope), lock.tenant)


# --- jobs whose caller was cancelled --------------------------------------------------------------


def undoes(task: str) -> bool:
    """Whether jobs of the task undo a cancelled one: a cancellation of their caller leaves them alone."""
    return task.endswith(UNDO_SUFFIX)


def may_be_barred(request: ClaimRequest, job: Job | None) -> str | None:
    """The id of the calling task, whose cancellation would keep the job from beginning.

    None: no cancellation of another task does.
    """
    if request.origin is None or request.replay is not None or undoes(request.job.task):
        return None
    return request.origin.parent_id if job is None or never_begun(job) else None


def barred(reason: str) -> tuple[Wait, str]:
    """For a job whose caller was cancelled for that reason.

    Returns what its record says until it is cancelled itself, and the reason of that cancellation.
    """
    return Wait("caller", "was cancelled"), f"its caller was cancelled: {reason}"


def kept_reason(reason: str) -> str:
    """The part of a reason that is kept for the calls of a cancelled task."""
    return safe_text(reason)
