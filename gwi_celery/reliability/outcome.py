"""What becomes of a message, and the bytes of an outcome. Every end of a run is a row in ``ends.py``."""

from __future__ import annotations

from enum import Enum
from typing import Any

from gwi_celery import failures
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
from gwi_celery.reliability import blobs


class Settlement(Enum):
    """What becomes of a message: what a pull worker does to it, and what a push is answered with."""

    ACKED = ("acked", 204)
    #: Kept in the dead letter first; then it is done with as well.
    DEAD_LETTERED = ("dead-lettered", 204)
    NACKED = ("nacked", 503)

    def __init__(self, text: str, push_status: int) -> None:
        self.text = text
        #: HTTP status. Pub/Sub takes 102, 200, 201, 202 and 204 for an ack, all else for a nack.
        self.push_status = push_status

    @classmethod
    def of_reject(cls, requeue: bool) -> Settlement:
        """What Celery's ``message.reject(requeue=...)`` means."""
        return cls.NACKED if requeue else cls.DEAD_LETTERED


#: Trying again can't help: Celery's retry, autoretry too, gives these up at once.
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
    """The exception of a stored failure; JobFailed if its class can't be found or made any more."""
    form = blobs.load(blob).get("failure") or {}
    try:
        exc = failures.rebuild(form, backend.exception_to_python)
    except Exception:
        exc = None
    if isinstance(exc, Exception):
        return exc
    return JobFailed(f"an earlier run failed: {form.get('exc_type')}: {form.get('exc_message')}")


#: Before a blob that says what a job was replaced by; no result of a job begins so.
_REPLACED = b"r"


def dump_replaced(signature: Any) -> bytes:
    """The outcome of a job that was replaced by a task. Raises NotSerializable, TooLarge."""
    what = "the signature that replaces the job"
    return _REPLACED + blobs.dump(signature, what=what, limit=1024 * 1024)


def load_replaced(blob: bytes) -> Any:
    """The signature that replaces the job; None if it has a result of its own."""
    return blobs.load(blob[1:]) if blob[:1] == _REPLACED else None
