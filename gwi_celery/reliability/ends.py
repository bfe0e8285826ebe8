"""The table of ends: every way in which an attempt can end, and the consequences.

``Attempt`` and ``ReliableRequest`` follow these rows. ``tests/ends/`` tests them with every pool, with
push and with each store; ``tests/unit/reliability/test_ends.py`` tests those of a store or broker that
fails, at each point of an attempt; ``tests/acceptance/test_kill.py`` and ``test_attempts.py`` test those
of a killed worker.

``record`` is the job's record afterwards, ``caller`` the state of the caller's result
(Celery's states; PENDING: still to come), ``message`` what happens to the message. A copy
has the same task id and the same retries; it is published before the original is acked, so that a
message is outstanding at every moment. A pulled message whose whole worker died is redelivered once
its lease has run out; a pushed one once its request breaks off.

An attempt begins with a claim. A crash is an attempt whose process or lease was lost before it
could record its end; a later saved step resets the count. Only attempts and crashes ever end a job.
Deliveries are counted by the broker; waiting for a lock, a store or another worker counts as none of
the three.

Time limits need prefork (gevent has hard ones), and a revoke with terminate needs prefork or gevent.
Threads and solo run such a job to its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from celery import states
from celery.exceptions import Ignore, Reject, Retry

from gwi_celery import shield
from gwi_celery.errors import DeadlinePassed, JobCancelled, LeaseLost, WorkerStopping
from gwi_celery.transport.settlement import Settlement


class Record(Enum):
    """The job's record afterwards."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    #: Free to be claimed; its steps are kept.
    PENDING = "pending"
    #: Unchanged by this message; another may have written it meanwhile.
    KEPT = "kept"
    #: Still RUNNING: its next claim counts a crash.
    RUNNING = "running"


class Counts(Enum):
    NOTHING = "nothing"
    ATTEMPT = "attempt"
    CRASH = "attempt and crash"


@dataclass(frozen=True)
class Row:
    when: str
    record: Record
    caller: str
    message: Settlement
    counts: Counts = Counts.ATTEMPT
    #: A copy of the message is published first.
    copy: bool = False


_ACKED, _DEAD, _NACKED = Settlement.ACKED, Settlement.DEAD_LETTERED, Settlement.NACKED
_OPEN = states.PENDING


class End(Enum):
    """How an attempt ends. The value is its row of the table."""

    # --- by the job's own code
    SUCCEEDED = Row("it returned", Record.SUCCEEDED, states.SUCCESS, _ACKED)
    FAILED = Row("it raised", Record.FAILED, states.FAILURE, _DEAD)
    NO_JSON = Row("its result has no JSON form", Record.FAILED, states.FAILURE, _DEAD)
    EXITED = Row(
        "it raised SystemExit, KeyboardInterrupt or another exception that is no Exception",
        Record.FAILED,
        states.FAILURE,
        _DEAD,
    )
    RETRIED = Row("self.retry(), autoretry", Record.PENDING, states.RETRY, _ACKED, copy=True)
    REPLACED = Row(
        "self.replace(): a duplicate is replaced as well",
        Record.SUCCEEDED,
        _OPEN,
        _ACKED,
        copy=True,
    )
    IGNORED = Row("it raised Ignore: duplicates get None", Record.SUCCEEDED, _OPEN, _ACKED)
    REJECTED = Row("it raised Reject", Record.FAILED, states.FAILURE, _DEAD)
    REQUEUED = Row("it raised Reject(requeue=True)", Record.PENDING, _OPEN, _NACKED)
    SOFT_LIMIT = Row(
        "its soft time limit passed, and it did not catch that",
        Record.FAILED,
        states.FAILURE,
        _DEAD,
    )
    DEADLINE = Row("its deadline passed", Record.FAILED, states.FAILURE, _DEAD)

    # --- before it began
    DUPLICATE = Row(
        "the job has succeeded", Record.KEPT, states.SUCCESS, _ACKED, counts=Counts.NOTHING
    )
    FAILED_BEFORE = Row(
        "this submission of it has failed", Record.KEPT, states.FAILURE, _DEAD, Counts.NOTHING
    )
    MISMATCH = Row(
        "the key has another payload", Record.KEPT, states.FAILURE, _DEAD, Counts.NOTHING
    )
    REFUSED = Row("it has crashed too often", Record.FAILED, states.FAILURE, _DEAD)
    CONTENDED = Row(
        "another holds its lock, or a limit has no free place: its record says so (WAITING), unless "
        "it is another attempt's",
        Record.KEPT,
        _OPEN,
        _ACKED,
        Counts.NOTHING,
        copy=True,
    )
    REVOKED_BEFORE = Row(
        "it was revoked, or has expired: FAILED if an earlier attempt left it PENDING or WAITING",
        Record.KEPT,
        states.REVOKED,
        _ACKED,
        Counts.NOTHING,
    )
    NO_MESSAGE = Row(
        "the message can't be handed over", Record.KEPT, _OPEN, _DEAD, counts=Counts.NOTHING
    )

    # --- from outside, while it ran
    HARD_LIMIT = Row("its hard time limit passed", Record.FAILED, states.FAILURE, _DEAD)
    REVOKED = Row("it was revoked with terminate", Record.FAILED, states.REVOKED, _ACKED)
    CANCELLED = Row("an operator cancelled it", Record.KEPT, states.REVOKED, _ACKED)
    STOPPING = Row(
        "its worker is stopping: a boundary was reached", Record.PENDING, _OPEN, _ACKED, copy=True
    )
    ENDED = Row(
        "its process or greenlet was told to end: a cold shutdown", Record.PENDING, _OPEN, _NACKED
    )
    CHILD_KILLED = Row("its pool process was killed", Record.RUNNING, _OPEN, _NACKED, Counts.CRASH)
    WORKER_KILLED = Row("its worker was killed", Record.RUNNING, _OPEN, _NACKED, Counts.CRASH)
    LEASE_LOST = Row(
        "its lock was lost, or the store stayed unavailable for as long as that lasts",
        Record.KEPT,
        _OPEN,
        _NACKED,
        Counts.CRASH,
    )

    # --- the store and the broker
    STORE_UNAVAILABLE = Row(
        "the store can't be used at its claim; a pushed message is nacked instead, so that Pub/Sub "
        "slows down by itself",
        Record.KEPT,
        _OPEN,
        _ACKED,
        Counts.NOTHING,
        copy=True,
    )
    UNRECORDED = Row(
        "the store can't be used at its end; a pushed message is nacked instead",
        Record.RUNNING,
        _OPEN,
        _ACKED,
        Counts.CRASH,
        copy=True,
    )
    NO_COPY = Row("a copy, or what replaces it, can't be published", Record.KEPT, _OPEN, _NACKED)
    NO_CALLBACK = Row(
        "a callback can't be sent: a redrive sends it again",
        Record.SUCCEEDED,
        states.FAILURE,
        _DEAD,
    )

    @property
    def row(self) -> Row:
        row: Row = self.value
        return row


class Replaced(Ignore):
    """``self.replace()`` was called: another task gives the result."""

    def __init__(self, signature: Any) -> None:
        super().__init__("Replaced by new task")
        self.signature = signature


#: Ends by the exception of the attempt; the first match counts.
_BY_EXCEPTION: tuple[tuple[type[BaseException], End], ...] = (
    (Retry, End.RETRIED),
    (Replaced, End.REPLACED),
    (Ignore, End.IGNORED),
    (LeaseLost, End.LEASE_LOST),
    (JobCancelled, End.CANCELLED),
    (WorkerStopping, End.STOPPING),
    (DeadlinePassed, End.DEADLINE),
    (Exception, End.FAILED),
)


def end_of(exc: BaseException) -> End:
    """How an attempt that raised ``exc`` ends."""
    if isinstance(exc, Reject):
        return End.REQUEUED if exc.requeue else End.REJECTED
    for kind, end in _BY_EXCEPTION:
        if isinstance(exc, kind):
            return end
    if shield.is_time_limit(exc):
        return End.HARD_LIMIT
    return End.ENDED if shield.from_outside(exc) else End.EXITED
