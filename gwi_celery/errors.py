"""The errors that reach users of this package.

::

    Exception
    └── GwiError
        ├── ConfigurationError      a setting, URL or task option is wrong; raised at start
        ├── InvalidCall             refused at .delay(): nothing was published
        │   ├── MissingTenant
        │   ├── UnknownName         no record of that job, or no such limit
        │   ├── ConflictingIds      the call and its headers name different tenants or runs
        │   └── NotSerializable     an argument, a result or a step has no JSON form
        ├── JobError                ends of a job other than its own exception
        │   ├── IdempotencyMismatch
        │   ├── DeadlineExceeded
        │   ├── CrashLimitExceeded
        │   ├── JobFailed           a stored failure whose own exception can't be rebuilt
        │   ├── JobExited               it raised SystemExit or another BaseException
        │   ├── JobHeld             eager calls only: a worker waits instead
        │   ├── OutsideAttempt      a step in a thread that doesn't know its job
        │   ├── StepNameReused
        │   ├── CursorWentBack
        │   └── TooLarge            a result, step or checkpoint over its limit
        ├── StoreError
        │   ├── StoreUnavailable    temporary: worth trying again
        │   ├── StoreUnusable       permanent: no database, no permission, wrong version
        │   ├── TaskIdTaken         the result under this task id is another tenant's
        │   └── VersionConflict     a value has changed since its writer, without a lock, read it
        └── BrokerError
            ├── BrokerUnavailable   temporary: worth trying again
            ├── BrokerUnusable      permanent: not a database, read-only, wrong version, no permission
            ├── NotFound            no such queue or exchange
            ├── NotDeleted          in use, not empty, or that is unknown
            ├── PublishFailed       some of many messages were not published
            ├── BatchFailed         the same for a publish_batch(), by task id
            └── MalformedMessage    on a queue, but not a Celery message
                └── NotAllowed      it asks for more than its publisher may

    BaseException
    └── Interrupt                   stops a job at once; ``except Exception`` can't swallow it
        ├── LeaseLost
        ├── JobCancelled
        ├── DeadlinePassed
        └── WorkerStopping
"""

from __future__ import annotations

from click import ClickException
from kombu.exceptions import OperationalError

__all__ = [
    "BatchFailed",
    "BrokerError",
    "BrokerUnavailable",
    "BrokerUnusable",
    "ConfigurationError",
    "ConflictingIds",
    "CrashLimitExceeded",
    "CursorWentBack",
    "DeadlineExceeded",
    "DeadlinePassed",
    "GwiError",
    "IdempotencyMismatch",
    "Interrupt",
    "InvalidCall",
    "JobCancelled",
    "JobError",
    "JobExited",
    "JobFailed",
    "JobHeld",
    "LeaseLost",
    "MalformedMessage",
    "MissingTenant",
    "NotAllowed",
    "NotDeleted",
    "NotFound",
    "NotSerializable",
    "OutsideAttempt",
    "PublishFailed",
    "StepNameReused",
    "StoreError",
    "StoreUnavailable",
    "StoreUnusable",
    "TaskIdTaken",
    "TooLarge",
    "UnknownName",
    "VersionConflict",
    "WorkerStopping",
]


class GwiError(Exception):
    """Root of this package's errors."""


class ConfigurationError(GwiError, ClickException):
    """A setting, a URL or a task's options can't work. Raised at start, never in mid-job.

    A command line (``celery worker``) prints its text instead of a traceback, and exits with 2.
    """

    exit_code = 2


class InvalidCall(GwiError, ValueError):
    """The call was refused before anything was published."""


class MissingTenant(InvalidCall):
    """A reliable task was called without a tenant, or with an empty one."""


class UnknownName(InvalidCall):
    """There is no record of that job, or no task of the app has that limit."""


class ConflictingIds(InvalidCall):
    """The arguments and the headers of one call name different tenants or runs.

    ``public`` is the message without them, for logs.
    """

    def __init__(self, message: str, public: str = "") -> None:
        super().__init__(message)
        self.public = public or message


class NotSerializable(InvalidCall, TypeError):
    """A value has no JSON form, so it could not be sent, stored or resumed from."""


class JobError(GwiError):
    """A job ended, or may not go on, for another reason than an exception of its own."""


class IdempotencyMismatch(JobError):
    """The idempotency key was used before with another payload. The job did not run."""


class DeadlineExceeded(JobError):
    """The job's deadline passed before it finished."""


class CrashLimitExceeded(JobError):
    """The job took its worker down too often, and is not tried again."""


class JobFailed(JobError):
    """An earlier run of this job failed; its message is that run's error."""


class JobExited(JobError):
    """A job's code raised SystemExit, KeyboardInterrupt or the like: it counts as a failure."""


class JobHeld(JobError):
    """Another run holds the lock. Raised by eager calls only, which have no queue to wait in."""


class OutsideAttempt(JobError, RuntimeError):
    """A step, a key or the fence was asked for in a thread or process that doesn't know the job's
    attempt, so nothing would have been recorded. See :func:`gwi_celery.carry`."""


class StepNameReused(JobError, ValueError):
    """Two steps, cursors or checkpoints of one job have the same name."""


class CursorWentBack(JobError, ValueError):
    """A cursor was given a value below the one it has."""


class TooLarge(JobError, ValueError):
    """A result, step or checkpoint is over its limit. Nothing was cut; nothing was stored."""


class StoreError(GwiError):
    """The store could not do what was asked."""


class StoreUnavailable(StoreError):
    """Temporary: the store can't be reached, is locked, or its disk or quota is full. Try again."""


class StoreUnusable(StoreError):
    """Permanent: there is no database, it is read-only or of another version, or permission, an
    index or a part of what was stored is missing."""


class TaskIdTaken(StoreError):
    """The result that is kept under this task id is of another tenant's job.

    Results are kept by task id: give each call an id of its own, as Celery does by itself.
    """


class VersionConflict(StoreError):
    """A value is not at the version that its writer expected. Nothing was written.

    ``expected`` and ``stored`` are the two versions; 0 means that there is no value.
    """

    def __init__(self, message: str, *, expected: int = 0, stored: int = 0) -> None:
        super().__init__(message)
        self.expected = expected
        self.stored = stored


class BrokerError(GwiError):
    """The broker could not do what was asked."""


class BrokerUnavailable(BrokerError):
    """Temporary: the broker can't be reached, is locked, or its disk is full. Try again."""


class BrokerUnusable(BrokerError, OperationalError):
    """Permanent: the broker's file is not a database, is read-only, or of another version; or Pub/Sub
    refuses this account. A call raises it as it is; to Kombu's callers it is an OperationalError."""


class NotFound(BrokerError):
    """There is no queue or exchange of that name."""


class NotDeleted(BrokerError):
    """The queue or exchange was not deleted: it is in use or not empty, or that is unknown."""


class PublishFailed(BrokerError):
    """Some of the messages published together were not. The others were.

    ``errors`` maps the position of each message that failed, counted from 0, to its error.
    """

    def __init__(self, errors: dict[int, Exception], total: int) -> None:
        self.errors = errors
        some = next(iter(errors.values()))
        super().__init__(
            f"{len(errors)} of {total} messages were not published, the first because of: {some}; "
            "publish those again (errors has their places)"
        )


class BatchFailed(BrokerError):
    """Some calls of a ``publish_batch()`` were not published. ``errors`` has why, by task id."""

    def __init__(self, errors: dict[str, Exception], published: int) -> None:
        self.errors = errors
        name, error = next(iter(errors.items()))
        super().__init__(
            f"{len(errors)} of {len(errors) + published} calls were not published, {name} because "
            f"of: {error}; make those again (errors has them all)"
        )


class MalformedMessage(BrokerError):
    """What arrived on a queue is not a Celery message. It goes to the dead letter."""


class NotAllowed(MalformedMessage):
    """A message asks for more than its publisher has a right to. It goes to the dead letter."""


class Interrupt(BaseException):
    """Stops a job at its next boundary. Not an ``Exception``: a job can't swallow it by accident."""


class LeaseLost(Interrupt):
    """Another worker may hold the job's lock by now: nothing more may be written."""


class JobCancelled(Interrupt):
    """An operator cancelled the job, for ``reason``."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class DeadlinePassed(Interrupt):
    """The job's deadline passed while it ran; the caller sees :class:`DeadlineExceeded`."""


class WorkerStopping(Interrupt):
    """This worker is shutting down: the job continues on another worker, after its last recorded step."""
