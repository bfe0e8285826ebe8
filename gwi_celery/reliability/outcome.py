"""How an attempt can end, and what each end does to the message: the one table.

===================  =========================================  ==============  ====  =================
End                  What the task raises to Celery             Message         Push  Why
===================  =========================================  ==============  ====  =================
succeeded            (returns the result)                       acked           204
duplicate            (returns the stored result)                acked           204
                     (raises the stored failure)                dead-lettered   204   kept first
retried              celery.exceptions.Retry                    acked           204   copy published
failed               the job's own exception                    dead-lettered   204   kept first
mismatch             IdempotencyMismatch                        dead-lettered   204   kept first
contended            Ignore                                     acked           204   copy published
stopping             Ignore                                     acked           204   copy published
cancelled            Ignore, the state is REVOKED               acked           204
lease lost           Reject(requeue=True)                       nacked          503   comes again
store away           pulled: Ignore                             acked           204   copy published
                     pushed: Reject(requeue=True)               nacked          503   comes again
copy not published   Reject(requeue=True)                       nacked          503   comes again
process died         nothing                                    nacked          503   comes again
no message           (never gets to a task)                     dead-lettered   204   kept first
===================  =========================================  ==============  ====  =================

A pulled message whose whole worker died is nacked by its lease running out; a pushed one by its
request breaking off. A copy has the same task id and the same retries: waiting costs no attempt. It
is published before the original is acked, so that a message is outstanding at every moment.

The store away is the one row that differs: a pushed message is refused, so that Pub/Sub slows down
by itself and the broker is not asked for copies meanwhile.
"""

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


def dump_failure(backend: Any, exc: BaseException) -> bytes:
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
