"""What the worker's main process does for a reliable job whose own process can't any more.

A hard time limit, a revoke with terminate and a pool child that was killed all end a job from
outside: its process writes nothing more. The main process knows at once, so the job's lock need not
run out first: it is freed here, and the job is recorded as failed where Celery says so.
"""

from __future__ import annotations

import logging
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.exceptions import Ignore, Reject, Retry, TaskRevokedError

from gwi_celery.app import store_for
from gwi_celery.errors import Interrupt
from gwi_celery.reliability.call import callers_headers
from gwi_celery.reliability.guard import GuardedRequest
from gwi_celery.reliability.outcome import dump_failure
from gwi_celery.reliability.task import owner
from gwi_celery.stores.base import Claimed, JobStatus, Outcome
from gwi_celery.text import safe_error, safe_text

logger = logging.getLogger(__name__)


class ReliableRequest(GuardedRequest):
    """Celery's request, which settles the job as well as the message."""

    _timed_out = _failed = False

    def __init__(self, message: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(message, *args, **kwargs)
        if "headers" in self._request_dict:
            self._request_dict["headers"] = callers_headers(self._request_dict, self.task.reliable)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        if not soft:
            error = TimeLimitExceeded(timeout)
            self._settle(error)
            self._note_reason(error)
        super().on_timeout(soft, timeout)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, **kwargs: Any) -> Any:
        exc = exc_info.exception
        if isinstance(exc, ExceptionWithTraceback):
            exc = exc.exc
        if isinstance(exc, Reject):
            self._note_reason(exc.reason)
        else:
            self._note_reason(exc)
            self._failed = not isinstance(exc, (Ignore, Retry, Terminated, WorkerLostError))
        if isinstance(exc, (WorkerLostError, SystemExit, KeyboardInterrupt)):
            self._free_lock()  # the message is delivered again: let the next attempt begin at once
        return super().on_failure(exc_info, send_failed_event, **kwargs)

    def acknowledge(self) -> None:
        # A job that timed out has failed like any other: its message is kept in the dead letter. So
        # has one for which Celery asks to ack where ``acks_on_failure`` says no, before 5.7.
        if (self._timed_out or self._failed) and not self.acknowledged:
            self.reject(requeue=False)
        else:
            super().acknowledge()

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        if terminated:
            self._settle(TaskRevokedError(reason))
        super()._announce_revoked(reason, terminated, signum, expired)

    # --- the job ------------------------------------------------------------------------------

    def _note_reason(self, exc: Any) -> None:
        if isinstance(exc, TimeLimitExceeded):
            self._timed_out = True
        if exc is not None:
            self.message.death_reason = safe_error(exc)

    def _settle(self, error: Exception) -> None:
        """Record the job as failed with ``error``, if this request's process still holds it."""
        understood = self._free_lock()
        if understood is None:
            return
        try:
            store = store_for(self._app)
            answer = store.claim(
                self.task.claim_request(
                    understood,
                    self._request_dict,
                    self.id,
                    self.worker_pid or 0,
                    redelivered=True,
                )
            )
            if isinstance(answer, Claimed):
                blob = dump_failure(self.task.backend, error)
                store.finish(answer.lease, Outcome(JobStatus.FAILED, blob))
        except (Exception, Interrupt) as exc:
            why = safe_text(exc)
            logger.warning("could not record %r for %s[%s]: %s", error, self.name, self.id, why)

    def _free_lock(self) -> Any:
        """Free the job's lock if this request's process holds it; the call, if it did."""
        try:
            understood = self.task.understand(self.args, self.kwargs, self._request_dict, self.id)
            store = store_for(self._app)
            lock = store.get_lock(understood.lock)
            if lock is None or lock.owner != owner(self.worker_pid or 0, self.id):
                return None
            store.force_release(understood.lock)
        except (Exception, Interrupt) as exc:  # lock= and idempotency= are the user's
            why = safe_text(exc)
            logger.warning("could not free the lock of %s[%s]: %s", self.name, self.id, why)
            return None
        return understood
