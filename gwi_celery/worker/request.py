"""Settles a reliable job from the worker's main process when its own process no longer can.

A hard time limit, a revoke with terminate and a killed pool child all end a job from outside: its
process writes nothing more. The main process learns of it at once. So it frees the job's lock, which
need not run out, and records the job as failed where Celery reports a failure.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any
from uuid import uuid4

import celery
from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.concurrency.base import BasePool
from celery.exceptions import Ignore, Reject, Retry, TaskRevokedError
from celery.worker.state import task_ready

from gwi_celery import blobs
from gwi_celery.errors import Interrupt, LeaseLost
from gwi_celery.headers import ATTEMPT_PROPERTY
from gwi_celery.integration import store_for
from gwi_celery.reliability.call import Call, callers_headers, for_logs, own_lock, submission
from gwi_celery.reliability.outcome import dump_failure, load_replaced
from gwi_celery.shield import shielded
from gwi_celery.stores.base import (
    AttemptEnd,
    Claimed,
    Completed,
    JobRecord,
    JobStatus,
    LockRef,
    Outcome,
)
from gwi_celery.text import safe_error, safe_text
from gwi_celery.transport.death import Death
from gwi_celery.worker.guard import GuardedRequest

logger = logging.getLogger(__name__)


class ReliableRequest(GuardedRequest):
    """Celery's request, which settles the job as well as the message."""

    _timed_out = _failed = False

    def __init__(self, message: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(message, *args, **kwargs)
        if "headers" in self._request_dict:
            self._request_dict["headers"] = callers_headers(self._request_dict, self.task.reliable)
        #: Nonce of this message's attempt, here and in its pool process.
        self._attempt = uuid4().hex
        #: The job's record, if the job had succeeded before it was ended.
        self._succeeded: JobRecord | None = None
        properties = self._request_dict.get("properties") or {}
        self._request_dict["properties"] = {**properties, ATTEMPT_PROPERTY: self._attempt}

    def on_timeout(self, soft: bool, timeout: float) -> None:
        if not soft:
            error = TimeLimitExceeded(timeout)
            if self._settle(error):
                # It had succeeded before its process was killed: its record answers the redelivery.
                task_ready(self)
                self.reject(requeue=True)
                return
            self._note_reason(error)
        super().on_timeout(soft, timeout)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, **kwargs: Any) -> Any:
        exc = exc_info.exception
        if isinstance(exc, ExceptionWithTraceback):
            exc = exc.exc
        if isinstance(exc, Reject):
            self._note_reason(exc.reason, exc_info.traceback)
            if not exc.requeue and celery.VERSION[:2] < (5, 7):
                # Its caller would wait for ever: https://github.com/celery/celery/issues/4222
                self.task.backend.mark_as_failure(
                    self.id, exc, request=self._context, store_result=self.store_errors
                )
        else:
            self._note_reason(exc, exc_info.traceback)
            self._failed = not isinstance(exc, (Ignore, Retry, Terminated, WorkerLostError))
        if isinstance(exc, (WorkerLostError, SystemExit, KeyboardInterrupt)):
            self._free_lock()  # the message is redelivered: let the next attempt begin at once
        return super().on_failure(exc_info, send_failed_event, **kwargs)

    @shielded
    def acknowledge(self) -> None:
        # A job that timed out has failed like any other: its message is dead-lettered. Celery before
        # 5.7 acks failed jobs in spite of ``acks_on_failure``: their messages are, too.
        if (self._timed_out or self._failed) and not self.acknowledged:
            self.reject(requeue=False)
        else:
            super().acknowledge()

    @shielded
    def reject(self, requeue: bool = False) -> None:
        super().reject(requeue=requeue)

    def terminate(self, pool: Any, signal: Any = None) -> None:
        if _can_end_jobs(pool):
            super().terminate(pool, signal)
        else:
            logger.warning("%s[%s] can't be ended in this pool: it continues", self.name, self.id)

    def cancel(self, pool: Any, *args: Any, **kwargs: Any) -> None:
        if _can_end_jobs(pool):
            super().cancel(pool, *args, **kwargs)
        else:
            logger.warning("%s[%s] can't be ended in this pool: it continues", self.name, self.id)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        error = TaskRevokedError(reason)
        if terminated and self._settle(error):
            self._announce_success()
            return
        if not terminated:
            self._settle_pending(error)
        super()._announce_revoked(reason, terminated, signum, expired)

    def _announce_success(self) -> None:
        """It succeeded before it could be ended: its caller gets the result, but no callbacks run."""
        assert self._succeeded is not None
        assert self._succeeded.outcome is not None
        task_ready(self)
        result = blobs.load(self._succeeded.outcome)
        self.task.backend.mark_as_done(
            self.id, result, request=self._context, store_result=not self.ignore_result
        )
        self.acknowledge()
        self._already_revoked = True

    # --- the job ------------------------------------------------------------------------------

    def _note_reason(self, exc: Any, traceback: Any = None) -> None:
        if isinstance(exc, TimeLimitExceeded):
            self._timed_out = True
        if exc is not None:
            self.message.death_reason = safe_error(exc)
            known = isinstance(exc, BaseException)
            self.message.death = Death.by(exc, traceback) if known else Death("rejected")

    def _settle(self, error: Exception) -> bool:
        """Record the job as failed with ``error``, whatever its process still does.

        Returns True if the job has succeeded meanwhile: then that is its outcome.
        """
        try:
            resolved = self._resolve_call()
            try:
                record = self._end_job(resolved, error)
            except LeaseLost:  # its process has released the lease as it ended: it does that once
                record = self._end_job(resolved, error)
        except (Exception, Interrupt) as exc:
            why = safe_text(exc)
            logger.warning("could not record %r for %s[%s]: %s", error, self.name, self.id, why)
            return False
        if record is None or load_replaced(record.outcome or b"") is not None:
            return False
        self._succeeded = record
        return True

    def _settle_pending(self, error: Exception) -> None:
        """Record the job as failed if an earlier attempt left it unfinished: nobody continues it."""
        try:
            resolved = self._resolve_call()
            record = store_for(self._app).get_job(resolved.job)
            ours = submission(self.id, self._request_dict)
            if record is not None and not record.status.terminal and record.submission == ours:
                # A waiting job's lock is held by another job, and isn't needed to end this one.
                waits = record.status is JobStatus.WAITING
                self._end_job(resolved, error, own_lock(resolved.job) if waits else None)
        except (Exception, Interrupt) as exc:
            why = safe_text(exc)
            logger.warning("could not record %r for %s[%s]: %s", error, self.name, self.id, why)

    def _end_job(
        self, resolved: Call, error: Exception, lock: LockRef | None = None
    ) -> JobRecord | None:
        """Record the job as failed, unless another holds it. Returns its record if it has succeeded."""
        store = store_for(self._app)
        # By the attempt's nonce this claim gets the lease that the attempt's process holds.
        wanted = self.task.claim_request(
            resolved,
            self._request_dict,
            self.id,
            self.worker_pid or 0,
            redelivered=True,
            nonce=self._attempt,
        )
        answer = store.claim(replace(wanted, lock=lock or wanted.lock))
        if isinstance(answer, Claimed):
            blob = dump_failure(error)
            end = AttemptEnd("revoked", type(error).__name__, safe_text(error))
            store.finish(answer.lease, Outcome(JobStatus.FAILED, blob, end))
        if isinstance(answer, Completed) and answer.record.status is JobStatus.SUCCEEDED:
            return answer.record
        return None

    def _free_lock(self) -> None:
        """Free the job's lock if this attempt holds it."""
        try:
            store_for(self._app).force_release(self._resolve_call().lock, owner_nonce=self._attempt)
        except (Exception, Interrupt) as exc:  # the functions lock= and key= are the user's code
            why = safe_text(exc)
            logger.warning("could not free the lock of %s[%s]: %s", self.name, self.id, why)

    def _resolve_call(self) -> Call:
        with for_logs():
            resolved: Call = self.task.resolve_call(
                self.args, self.kwargs, self._request_dict, self.id
            )
        return resolved


def _can_end_jobs(pool: Any) -> bool:
    """Whether the pool supports it: threads and solo don't."""
    return getattr(pool.terminate_job, "__func__", None) is not BasePool.terminate_job
