"""The bytes of an outcome, and which errors are final."""

from __future__ import annotations

from typing import Any

from gwi_celery import blobs, failures
from gwi_celery.errors import (
    CrashLimitExceeded,
    CursorWentBack,
    DeadlineExceeded,
    IdempotencyMismatch,
    InvalidCall,
    JobFailed,
    OutsideAttempt,
    StepNameReused,
    TooLarge,
)

#: Errors that a retry can't fix: Celery's retry and autoretry fail at once.
PERMANENT = (
    CrashLimitExceeded,
    CursorWentBack,
    DeadlineExceeded,
    IdempotencyMismatch,
    InvalidCall,
    OutsideAttempt,
    StepNameReused,
    TooLarge,
)


def dump_failure(exc: BaseException) -> bytes:
    """An exception as a blob, in the form Celery's JSON results have. Never raises."""
    return blobs.dump({"failure": failures.form(exc)}, what="the error", limit=2**63 - 1)


def load_failure(backend: Any, blob: bytes) -> Exception:
    """The exception of a stored failure; JobFailed if its class can't be imported or instantiated."""
    form = blobs.load(blob).get("failure") or {}
    try:
        exc = failures.rebuild(form, backend.exception_to_python)
    except Exception:
        exc = None
    if isinstance(exc, Exception):
        return exc
    return JobFailed(f"an earlier run failed: {form.get('exc_type')}: {form.get('exc_message')}")


#: Prefix of a blob that holds a job's replacement; no result begins with it.
_REPLACED = b"r"


def dump_replaced(signature: Any) -> bytes:
    """The outcome of a job that was replaced by a task. Raises NotSerializable, TooLarge."""
    what = "the signature that replaces the job"
    return _REPLACED + blobs.dump(signature, what=what, limit=1024 * 1024)


def load_replaced(blob: bytes) -> Any:
    """The signature that replaces the job; None if it has a result of its own."""
    return blobs.load(blob[1:]) if blob[:1] == _REPLACED else None
