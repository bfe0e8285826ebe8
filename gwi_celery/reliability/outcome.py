"""How an attempt can end, and what each end does to the message: the one table.

===================  =========================================  =====================================
End                  What the task raises to Celery             What happens to the message
===================  =========================================  =====================================
succeeded            (returns the result)                       acked
answered             (returns, or raises, the stored outcome)   acked, or dead-lettered if a failure
retry                celery.exceptions.Retry, after the copy    acked
failed               the job's own exception                    dead-lettered
mismatch             IdempotencyMismatch                        dead-lettered
waiting              Ignore, after a delayed copy is published  acked
stopping             Ignore, after a copy is published          acked
cancelled            Ignore, the state is REVOKED               acked
lease lost           Reject(requeue=True)                       nacked
process died         nothing                                    its lease runs out
===================  =========================================  =====================================

A copy has the same task id and the same retries: waiting costs no attempt. It is published before
the original is acked, so that a message is outstanding at every moment.
"""

from __future__ import annotations

from typing import Any

from gwi_celery.errors import (
    CrashLimitExceeded,
    CursorWentBack,
    DeadlineExceeded,
    IdempotencyMismatch,
    InvalidCall,
    JobFailed,
    StepNameReused,
    TooLarge,
)
from gwi_celery.reliability import blobs

#: Trying again can't help: Celery's retry, autoretry too, gives these up at once.
PERMANENT = (
    CrashLimitExceeded,
    CursorWentBack,
    DeadlineExceeded,
    IdempotencyMismatch,
    InvalidCall,
    StepNameReused,
    TooLarge,
)

#: Longest error text that is stored, characters; the end of a longer one is named as left out.
_MAX_TEXT = 20_000


def dump_failure(backend: Any, exc: BaseException) -> bytes:
    """An exception as a blob, in the form Celery's JSON results have."""
    form = backend.prepare_exception(exc, "json")
    try:
        return blobs.dump({"failure": form}, what="the error", limit=1024 * 1024)
    except (InvalidCall, TooLarge):
        text = str(exc)
        if len(text) > _MAX_TEXT:
            text = f"{text[:_MAX_TEXT]} ({len(text) - _MAX_TEXT} more characters)"
        plain = {"exc_type": type(exc).__name__, "exc_message": [text], "exc_module": None}
        return blobs.dump({"failure": plain}, what="the error", limit=1024 * 1024)


def load_failure(backend: Any, blob: bytes) -> Exception:
    """The exception of a stored failure; JobFailed if its class can't be found or made any more."""
    form = blobs.load(blob).get("failure") or {}
    try:
        exc = backend.exception_to_python(form)
    except Exception:
        exc = None
    if isinstance(exc, Exception):
        return exc
    return JobFailed(f"an earlier run failed: {form.get('exc_type')}: {form.get('exc_message')}")
