"""What a reliable task can call while it runs: steps, cursors, values, progress."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, ParamSpec, TypeVar, cast

from celery import Task

from gwi_celery.reliability import carried, direct, progress
from gwi_celery.reliability.cursor import Cursor
from gwi_celery.reliability.direct import DirectJob
from gwi_celery.reliability.job import RunningJob

P = ParamSpec("P")
R = TypeVar("R")


class InsideJob(Task):
    """In a worker these methods write to the job's record; in a plain call nothing is recorded.

    They raise OutsideAttempt in a thread that the job's attempt was not carried into, see
    :func:`gwi_celery.carry`.
    """

    abstract = True

    def step(self, name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call ``function`` once in the job's lifetime and record its JSON result under ``name``.

        Raises StepNameReused, TooLarge, NotSerializable, and all that :meth:`check` does.
        """
        return cast(R, self._job.step(name, partial(function, *args, **kwargs)))

    def cursor(
        self, name: str, start: Any = 0, *, save_every: float = 1.0
    ) -> AbstractContextManager[Cursor]:
        """Progress inside a long loop; saved every ``save_every`` seconds (0: at each advance).

        Raises StepNameReused, and all that :meth:`check` does.
        """
        return self._job.cursor(name, start, save_every)

    def checkpoint(self, name: str, value: Any) -> None:
        """Record a JSON value that may be overwritten.

        Raises StepNameReused, TooLarge, NotSerializable, and all that :meth:`check` does.
        """
        self._job.checkpoint(name, value)

    def restore(self, name: str, default: Any = None) -> Any:
        """What :meth:`checkpoint` recorded last, in this attempt or an earlier one; else ``default``."""
        return self._job.restore(name, default)

    def progress(self, done: float, total: float | None = None, text: str = "") -> None:
        """Report progress, for the job's record and the caller's ``AsyncResult.info``.

        Written at most once a second; call it as often as you like.

        Raises InvalidCall for what is not a number or a text, and all that :meth:`check` does.
        """
        progress.show(self, self._job, done, total, text)

    def check(self) -> None:
        """Raises LeaseLost, JobCancelled, DeadlinePassed or WorkerStopping if the job should stop."""
        self._job.check()

    def derive_key(self, *parts: object) -> str:
        """An idempotency key for an external sink: the same at every attempt, for these ``parts``."""
        return self._job.derive_key(*parts)

    @property
    def fence(self) -> int:
        """The fencing token: larger at each later attempt. 0 in a plain call."""
        return self._job.fence

    @property
    def attempt(self) -> int:
        """1 at the first attempt of this generation."""
        return self._job.attempt

    @property
    def generation(self) -> int:
        """1, and one more with each re-run after a failure, redrive or replay."""
        return self._job.generation

    @property
    def lease_lost(self) -> bool:
        """Whether another worker may hold this job by now. Cheap to read."""
        return self._job.lease_lost

    @property
    def _running_job(self) -> RunningJob | None:
        """None in a plain call. Raises OutsideAttempt."""
        return carried.job_of(self)

    @property
    def _job(self) -> RunningJob | DirectJob:
        running = self._running_job
        return direct.direct_job(self) if running is None else running
