"""A job while an attempt of it runs: its lease, its checkpoints, and every reason to stop.

When progress is saved, and what a crash loses:

- ``step`` saves once the step's function has returned. Killed inside it, the step runs again.
- ``cursor`` saves on ``advance``, at most once in ``save_every`` seconds, and at its end. Killed in
  between, the work since the last save is done again.
- ``checkpoint`` saves at once.

Each save also renews the lease, and is refused if the lease is lost.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from gwi_celery import blobs, forks
from gwi_celery.backoff import Backoff
from gwi_celery.errors import (
    CursorWentBack,
    DeadlinePassed,
    JobCancelled,
    LeaseLost,
    StepNameReused,
    StoreError,
    StoreUnavailable,
    StoreUnusable,
    WorkerStopping,
)
from gwi_celery.ids import digest
from gwi_celery.reliability.cursor import Cursor
from gwi_celery.reliability.renewal import renewer
from gwi_celery.reliability.step_names import StepNames
from gwi_celery.reliability.stopping import worker_is_stopping
from gwi_celery.reliability.wording import where_resumed
from gwi_celery.shield import shielded, window
from gwi_celery.stores.base import (
    AttemptEnd,
    Checkpoint,
    CheckpointKind,
    Claimed,
    JobRecord,
    Outcome,
    Progress,
    Store,
    StoredResult,
)
from gwi_celery.telemetry.events import emit
from gwi_celery.telemetry.tracing import span

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Share of the TTL after which a lease is renewed in the background.
_RENEW_AT = 1 / 3
#: Share of the TTL by which the holder assumes its lease to end early: its clock may run slower.
_MARGIN = 0.1
#: Largest value, bytes, that is kept in memory for restore() in the same attempt.
_KEPT = 65_536
#: Seconds between two writes of a job's progress.
_PROGRESS_EVERY = 1.0
#: First and longest pause, seconds, before a failed store operation is retried.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


@dataclass(frozen=True)
class Bounds:
    """What bounds one attempt."""

    max_checkpoint_bytes: int
    #: Seconds since the epoch; None: no deadline.
    deadline: float | None
    interrupt_on_shutdown: bool
    #: Monotonic time from which the job is handed back: its push request ends soon. None: pulled.
    hand_back_at: float | None = None


class RunningJob:
    """A job that an attempt holds. Used by the job's threads and the renewer's.

    Over 25 methods, because all of them share the lease, which renewals and saves replace under one lock.
    """

    def __init__(self, store: Store, claimed: Claimed, bounds: Bounds, *, asked_at: float) -> None:
        self._store = store
        self._lease = claimed.lease
        self._bounds = bounds
        self.record: JobRecord = claimed.record
        #: Renewals and saves both replace the lease: one at a time.
        self._mutex = forks.rlock()
        #: Monotonic time of the request that last renewed it; earlier than the store's own.
        self._renewed_at = asked_at
        #: No renewal before this monotonic time: the pause after a failed one.
        self._renew_not_before = 0.0
        #: No progress is written before this monotonic time.
        self._progress_not_before = 0.0
        self._interrupt: LeaseLost | JobCancelled | None = None
        self._finished = False
        #: How the attempt ended, while its lock is not released yet because the store is unavailable.
        self._unreleased: AttemptEnd | None = None
        self._names = StepNames()
        #: Recorded checkpoints by name. Those saved by this attempt may be without their bytes.
        self._recorded: dict[str, Checkpoint] = {}
        self.has_checkpoints = claimed.has_checkpoints
        #: The process that runs it: a forked child can't use its lease.
        self.pid = os.getpid()

    # --- facts --------------------------------------------------------------------------------

    @property
    def fence(self) -> int:
        return self._lease.fence

    @property
    def attempt(self) -> int:
        return self.record.attempt

    @property
    def generation(self) -> int:
        return self.record.generation

    @property
    def lease_lost(self) -> bool:
        """Whether the lease is known, or must be assumed, to be lost."""
        return isinstance(self._interrupt, LeaseLost) or time.monotonic() > self._ends_at()

    def derive_key(self, *parts: object) -> str:
        """An idempotency key for external systems: the same at every attempt of this job."""
        job = self.record.job
        return digest("derived", job.id, *(str(part) for part in parts))

    def where_resumed(self) -> str:
        """For the log: what was recorded when this attempt began."""
        return where_resumed(self.record, self._recorded.values())

    def load(self) -> None:
        """Read what earlier attempts have recorded, before the job's own code begins.

        Raises LeaseLost, JobCancelled; StoreUnusable if some of it is gone.
        """
        if self.has_checkpoints:
            loaded = self._persist(lambda: self._store.load(self._lease))
            self._recorded = {checkpoint.name: checkpoint for checkpoint in loaded}

    # --- boundaries ---------------------------------------------------------------------------

    @shielded
    def check(self) -> None:
        """Raises LeaseLost, JobCancelled, DeadlinePassed or WorkerStopping if the job should stop."""
        if self._interrupt is None and time.monotonic() > self._ends_at():
            # This process may have been suspended, and the lease may still be valid: ask the store.
            self.renew_now()
        if self._interrupt is not None:
            raise self._interrupt
        if self._finished:  # in a thread that has outlived its attempt
            raise LeaseLost("the attempt that this thread belongs to has ended")
        if self._bounds.deadline is not None and time.time() > self._bounds.deadline:
            raise DeadlinePassed("the job's deadline has passed")
        if self._bounds.interrupt_on_shutdown and worker_is_stopping():
            raise WorkerStopping("the worker is stopping: the job continues elsewhere")
        hand_back_at = self._bounds.hand_back_at
        if hand_back_at is not None and time.monotonic() > hand_back_at:
            raise WorkerStopping("its push request ends soon: the job continues in another one")

    # --- what a job calls ---------------------------------------------------------------------

    @shielded
    def step(self, name: str, function: Callable[[], Any]) -> Any:
        recorded = self._use(name, CheckpointKind.STEP)
        if recorded is not None:
            return blobs.load(self._bytes(recorded))
        with self._names.free_after_error(name):
            self.check()
            began = time.monotonic()
            with span(f"step {name}"):
                with window():
                    result = function()
                blob = self._dump(name, result)
                self._save(Checkpoint(name, CheckpointKind.STEP, blob))
            emit("step", seconds=round(time.monotonic() - began, 6))
        return blobs.load(blob)

    @contextmanager
    def cursor(self, name: str, start: Any, save_every: float) -> Iterator[Cursor]:
        recorded = self._use(name, CheckpointKind.CURSOR)
        with self._names.free_after_error(name):
            value, version = start, 0
            if recorded is not None:
                value, version = blobs.load(self._bytes(recorded)), recorded.version
                if isinstance(start, tuple) and isinstance(value, list):
                    value = tuple(value)
            self.check()
            cursor = Cursor(name, value, version, job=self, save_every=save_every)
            try:
                yield cursor
            except (LeaseLost, JobCancelled):
                raise
            except BaseException:
                cursor.save()
                raise
            else:
                cursor.save()

    @shielded
    def checkpoint(self, name: str, value: Any) -> None:
        with self._mutex:
            recorded = self._recorded.get(name)
            if recorded is None:
                self._names.expect_unused(name)
        if recorded is not None:
            self._expect(recorded, CheckpointKind.VALUE)
        self.check()
        blob = self._dump(name, value)
        while True:
            version = recorded.version + 1 if recorded is not None else 1
            try:
                self._save(Checkpoint(name, CheckpointKind.VALUE, blob, version))
                return
            except CursorWentBack:
                # Written meanwhile by Store.put_value(): the holder's value replaces it.
                recorded = self._persist(lambda: self._store.fetch(self._lease, name))
                if recorded is None or recorded.version < version:
                    raise

    def restore(self, name: str, default: Any) -> Any:
        recorded = self._recorded.get(name)
        if recorded is None:
            return default
        self._expect(recorded, CheckpointKind.VALUE)
        return blobs.load(self._bytes(recorded))

    @shielded
    def progress(self, progress: Progress) -> bool:
        """Record it, unless the last was recorded less than a second ago. Returns whether it was."""
        self.check()
        with self._mutex:
            asked_at = time.monotonic()
            if asked_at < self._progress_not_before:
                return False
            try:
                self._lease = self._persist(lambda: self._store.progress(self._lease, progress))
            except (LeaseLost, JobCancelled) as exc:
                self._interrupt = exc
                raise
            self._renewed_at = asked_at
            self._progress_not_before = asked_at + _PROGRESS_EVERY
        return True

    def save_cursor(self, name: str, value: Any, version: int) -> None:
        self._save(Checkpoint(name, CheckpointKind.CURSOR, self._dump(name, value), version))

    # --- ends ---------------------------------------------------------------------------------

    def start_renewing(self) -> None:
        renewer().add(self)

    def finish(self, outcome: Outcome, result: StoredResult | None = None) -> None:
        """Record the outcome together with the task's result, and free the lock.

        Raises LeaseLost, JobCancelled, StoreError.
        """
        renewer().remove(self)
        with self._mutex:
            if self._interrupt is not None:
                raise self._interrupt
            self._persist(lambda: self._store.finish(self._lease, outcome, result))
            self._finished = True

    def release(self, end: AttemptEnd) -> None:
        """Release the lock for the job's next message. Never raises: the lease runs out anyway.

        While the store is unavailable, the renewer tries again: the next message need not wait for
        the end of the lease.
        """
        with self._mutex:
            self._finished = True
            self._unreleased = end
            self._release()

    def _release(self) -> None:
        assert self._unreleased is not None
        now = time.monotonic()
        try:
            self._store.release(self._lease, self._unreleased)
        except Exception as exc:
            logger.warning(
                "could not release the lock of job %s (%s): it is free in %.0f s at the latest",
                self.record.job.id,
                exc,
                max(0.0, self._renewed_at + self._lease.ttl - now),
            )
            self._renew_not_before = now + self._pause_after_try()
            if isinstance(exc, StoreUnavailable) and self._renew_not_before < self._ends_at():
                renewer().add(self)
                return
        self._unreleased = None
        renewer().remove(self)

    def abandon(self) -> None:
        """Stop renewing the lease; from now on only an end that :meth:`release` left is written."""
        self._finished = True
        if self._unreleased is None:
            renewer().remove(self)

    # --- renewal (also called by the renewer's threads) ---------------------------------------

    def renew_due(self) -> float:
        if self._unreleased is not None:
            return self._renew_not_before
        if self._finished or self._interrupt is not None:
            return float("inf")
        return max(self._renewed_at + self._lease.ttl * _RENEW_AT, self._renew_not_before)

    def renew_if_idle(self) -> None:
        if self._mutex.acquire(blocking=False):
            try:
                self.renew_now()
            finally:
                self._mutex.release()
        else:  # a save is under way, and renews the lease
            self._renew_not_before = time.monotonic() + self._pause_after_try()

    def renew_now(self) -> None:
        """Renew the lease. An error is kept: the job raises it at its next boundary."""
        with self._mutex:
            if self._unreleased is not None:
                self._release()
            if self._finished or self._interrupt is not None:
                return
            asked_at = time.monotonic()
            # Set before the outcome is known: otherwise the renewer would retry without a pause.
            self._renew_not_before = asked_at + self._pause_after_try()
            try:
                self._lease = self._store.renew(self._lease)
                self._renewed_at = asked_at
            except (LeaseLost, JobCancelled) as exc:
                logger.warning("job %s: %s", self.record.job.id, exc)
                self._interrupt = exc
            except StoreError as exc:
                if asked_at > self._ends_at():
                    self._interrupt = LeaseLost(
                        f"the lease could not be renewed in time ({exc}): another worker may "
                        "have taken over"
                    )
                    return
                logger.warning(
                    "could not renew the lease of job %s yet: %s", self.record.job.id, exc
                )

    def _pause_after_try(self) -> float:
        return min(1.0, self._lease.ttl / 10)

    def _ends_at(self) -> float:
        return self._renewed_at + self._lease.ttl * (1 - _MARGIN)

    # --- internals ----------------------------------------------------------------------------

    def _save(self, checkpoint: Checkpoint) -> None:
        with self._mutex:
            if self._interrupt is not None:
                raise self._interrupt
            asked_at = time.monotonic()
            try:
                self._lease = self._persist(lambda: self._store.save(self._lease, checkpoint))
            except (LeaseLost, JobCancelled) as exc:
                self._interrupt = exc
                raise
            self._renewed_at = asked_at
            if checkpoint.kind is not CheckpointKind.VALUE or len(checkpoint.blob) > _KEPT:
                checkpoint = replace(checkpoint, blob=b"", deferred=True)
            self._recorded[checkpoint.name] = checkpoint
        emit("checkpoint", checkpoint=checkpoint.name)

    def _bytes(self, recorded: Checkpoint) -> bytes:
        """The checkpoint's bytes: read from the store, and not kept, if they are not here."""
        if not recorded.deferred:
            return recorded.blob
        fetched = self._persist(lambda: self._store.fetch(self._lease, recorded.name))
        if fetched is None:
            raise StoreUnusable(
                f"checkpoint {recorded.name!r} of {self.record.job.task} is gone: replay the job from "
                "its start"
            )
        return fetched.blob

    def _persist(self, operation: Callable[[], T]) -> T:
        """Call a store operation; retry it while the store is unavailable and the lease may hold.

        Raises LeaseLost if the store stays unavailable, and what ``operation`` raises.
        """
        pauses = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        while True:
            try:
                return operation()
            except StoreUnavailable as exc:
                pause = pauses.next()
                if time.monotonic() + pause > self._ends_at():
                    raise LeaseLost(
                        f"the store was unavailable until the lease had run out ({exc})"
                    ) from exc
                time.sleep(pause)

    def _dump(self, name: str, value: Any) -> bytes:
        return blobs.dump(value, what=f"{name!r}", limit=self._bounds.max_checkpoint_bytes)

    def _use(self, name: str, kind: CheckpointKind) -> Checkpoint | None:
        """Mark the name as used; returns what is recorded under it. Raises StepNameReused."""
        with self._mutex:
            self._names.expect_unused(name)
            recorded = self._recorded.get(name)
            if recorded is not None:
                self._expect(recorded, kind)
            self._names.use(name)
        return recorded

    def _expect(self, recorded: Checkpoint, kind: CheckpointKind) -> None:
        if recorded.kind is not kind:
            raise StepNameReused(
                f"{recorded.name!r} is recorded as a {recorded.kind.value}, and is used as a "
                f"{kind.value} now: give it another name"
            )
