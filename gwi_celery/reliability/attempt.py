"""Handles one message of a reliable task: the claim, the attempt, and how the attempt ends.

The sequence is readable on one screen (:meth:`Attempt.run`, :meth:`Attempt._attempt`). The table in
``reliability/ends.py`` says what each end does to the record and to the message.
"""

from __future__ import annotations

import copy
import logging
import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import uuid4

from billiard.exceptions import TimeLimitExceeded
from celery import states
from celery._state import _task_stack
from celery.exceptions import Reject
from celery.result import ResultBase

from gwi_celery import blobs, failures, shield
from gwi_celery.backends.base import ReliableBackend
from gwi_celery.backends.results import came_before
from gwi_celery.errors import (
    CrashLimitExceeded,
    DeadlineExceeded,
    IdempotencyMismatch,
    JobCancelled,
    JobExited,
    JobHeld,
    LeaseLost,
    NotAllowed,
    StoreError,
)
from gwi_celery.failures import ENDS_THE_WORKER
from gwi_celery.headers import (
    ATTEMPT_PROPERTY,
    DEADLINE_HEADER,
    KEY_HEADER,
    PUSH_UNTIL,
)
from gwi_celery.integration import integration, settings_for
from gwi_celery.reliability import call, carried, claims, wording
from gwi_celery.reliability.call import Call
from gwi_celery.reliability.ends import End, Record, Replaced, end_of
from gwi_celery.reliability.job import Bounds, RunningJob
from gwi_celery.reliability.options import first
from gwi_celery.reliability.origin import attempt_end, origin_of
from gwi_celery.reliability.outcome import dump_failure, dump_replaced, load_failure, load_replaced
from gwi_celery.reliability.settling import Settling
from gwi_celery.stores.base import Store
from gwi_celery.stores.values import (
    Cancelled,
    ClaimAnswer,
    Claimed,
    Completed,
    Held,
    JobRecord,
    JobStatus,
    Limited,
    Mismatch,
    Outcome,
)
from gwi_celery.telemetry import tracing
from gwi_celery.telemetry.events import emit
from gwi_celery.text import safe_error

if TYPE_CHECKING:
    from gwi_celery.reliability.task import ReliableTask

logger = logging.getLogger(__name__)


class Attempt:
    """Handles the message of ``task.request``."""

    def __init__(self, task: ReliableTask) -> None:
        self._task = task
        self._request = task.request
        self._settings = settings_for(task.app)
        self._settling = Settling(task)

    @property
    def _store(self) -> Store:
        known = integration(self._task.app)
        return (
            known.eager_store if self._request.is_eager and not _in_a_workers_job() else known.store
        )

    def run(self, body: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The task's result for Celery; what it raises is an end of the table.

        Between the claim and the end, signals' exceptions are raised only in the job's own code.
        """
        with shield.section():
            return self._run(body, args, kwargs)

    def _run(self, body: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        task, request = self._task, self._request
        headers = request.headers or {}
        options = task.reliable
        if options.deadline is not None and DEADLINE_HEADER not in headers:
            # Sent by the task's name alone, so without its options: the deadline counts from now.
            headers = {**headers, DEADLINE_HEADER: time.time() + options.deadline}
            request.headers = headers
        with call.for_logs():
            resolved = task.resolve_call(args, kwargs, headers, request.id)
        asked_at = time.monotonic()
        try:
            store = self._store
            answer = self._claim(store, resolved, headers)
        except NotAllowed as exc:
            # No outcome is stored either: the message's task id may be that of another call.
            raise Reject(exc, requeue=False) from exc
        except StoreError as exc:
            self._settling.store_unavailable(exc)
        match answer:
            case Claimed():
                facts: dict[str, Any] = {
                    "tenant": resolved.tenant,
                    "run": resolved.run,
                    "attempt": answer.record.attempt,
                    "fence": answer.lease.fence,
                }
                emit("claimed", **facts)
                tracing.describe(**facts, generation=answer.record.generation)
                job = RunningJob(store, answer, self._bounds(headers), asked_at=asked_at)
                kwargs = call.with_ids(task.run, options, args, kwargs, headers)
                return self._attempt(job, body, args, kwargs)
            case Completed():
                return self._answer(answer.record)
            case Mismatch():
                emit("mismatch")
                raise IdempotencyMismatch(
                    f"{task.name}: this idempotency key was used before with another payload, so "
                    f"the job did not run. Tenant {resolved.tenant!r}, run {resolved.run!r}: "
                    f"use another run id or key, or send the payload it had.{self._fan_out(headers)}"
                )
            case Held():
                emit("contended")
                why = wording.why_held(resolved.lock, answer)
                held = JobHeld(f"{task.name}: {why}")
                after = answer.retry_after
                self._settling.wait(held, why, at_most=after, behind=resolved.lock.id)
            case Limited():
                emit("limited")
                why = wording.why_limited(answer)
                after, of = answer.retry_after, answer.limit.id
                held = JobHeld(f"{task.name}: {why}")
                # A rate has no free place before then. A running job may end at any time.
                if answer.limit.rate is not None:
                    self._settling.wait(held, why, at_least=after, behind=of)
                self._settling.wait(held, why, at_most=after, behind=of)
            case Cancelled():
                # The record's outcome is the operator's reason.
                reason = (answer.record.outcome or b"").decode(errors="replace")
                self._settling.cancelled(answer.record, reason)
        return None

    def _fan_out(self, headers: Mapping[str, Any]) -> str:
        """Advice, if the job's key was the default: its author may have expected another one."""
        if KEY_HEADER in headers or self._task.reliable.key != "run":
            return ""
        return (
            " If calls of one run with different arguments are different jobs, give the task "
            'Reliable(key="payload")'
        )

    def _claim(self, store: Store, resolved: Call, headers: Mapping[str, Any]) -> ClaimAnswer:
        request = self._request
        wanted = self._task.claim_request(
            resolved,
            headers,
            request.id,
            os.getpid(),
            redelivered=came_before(request),
            nonce=(request.properties or {}).get(ATTEMPT_PROPERTY),
        )
        wanted = replace(wanted, origin=origin_of(request, resolved, self._settings))
        if request.is_eager:
            wanted = replace(wanted, limits=())  # there is nowhere to wait
        if wanted.limits:
            wanted = replace(wanted, rates=integration(self._task.app).rates)
        answer = claims.claim(store, wanted, request)
        deadline, waits = headers.get(DEADLINE_HEADER), isinstance(answer, (Held, Limited))
        if not waits or deadline is None or time.time() <= float(deadline):
            return answer
        # The deadline has passed: claim the job under a lock of its own, so that it is recorded as
        # failed without having begun. That is impossible only while this very job runs elsewhere.
        own, nonce = call.own_lock(resolved.job), uuid4().hex
        answer = store.claim(replace(wanted, lock=own, nonce=nonce, limits=(), redelivered=True))
        if isinstance(answer, Held):
            raise DeadlineExceeded(
                f"{self._task.name}: {wording.why_held(resolved.lock, answer)}, and the deadline of "
                "this call has passed"
            )
        return answer

    def _attempt(
        self,
        job: RunningJob,
        body: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        request = self._request
        # A weak reference: a cycle would keep the attempt, and all it recorded, alive.
        request._gwi_job = (weakref.ref(request), job)
        # A retry sends the original arguments, whatever the job does to them.
        request.args, request.kwargs = copy.deepcopy((request.args, request.kwargs))
        job.start_renewing()
        finishing = False
        try:
            self._begin(job)
            with carried.carrying(self._task, job), shield.window():
                result = body(*args, **kwargs)
            limit = first(self._task.reliable.max_result_bytes, self._settings.max_result_bytes)
            blob = blobs.dump(result, what=f"the result of {self._task.name}", limit=limit)
            if isinstance(result, ResultBase):
                result = blobs.load(blob)  # as duplicates get it
            finishing = True
            self._finish(job, Outcome(JobStatus.SUCCEEDED, blob), result)
            return result
        except BaseException as exc:
            # The job itself succeeded: an error of the store is not its failure.
            unrecorded = finishing and isinstance(exc, StoreError)
            return self._end(job, End.UNRECORDED if unrecorded else end_of(exc), exc)
        finally:
            job.abandon()

    def _end(self, job: RunningJob, end: End, exc: BaseException) -> Any:
        """Record how the attempt ended, then settle the message through Celery, by the table.

        Returns only what replaces the job in an eager call; all other ends raise.
        """
        if end is End.DEADLINE:
            exc = DeadlineExceeded(f"{self._task.name} did not finish before its deadline")
        elif isinstance(exc, ENDS_THE_WORKER) and end is End.EXITED and not self._request.is_eager:
            exc = JobExited(
                f"{self._task.name} raised {safe_error(exc)}: a job ends by returning, or by an Exception"
            )
        recorded: BaseException = exc
        if end is End.HARD_LIMIT:
            recorded = TimeLimitExceeded(getattr(exc, "seconds", None))
        try:
            self._record(job, end, recorded)
        except LeaseLost as lost:
            # Another attempt decides the outcome now; this one must not be reported as such.
            end, exc = End.LEASE_LOST, lost
        except JobCancelled as cancelled:
            end, exc = End.CANCELLED, cancelled
        except StoreError as unusable:
            end, exc = End.UNRECORDED, unusable
        if end is End.REPLACED:
            assert isinstance(exc, Replaced)
            return self._settling.replace(exc.signature)
        return self._leave(end, exc, job.record)

    def _record(self, job: RunningJob, end: End, exc: BaseException) -> None:
        ended = attempt_end(end, exc)
        match end.row.record:
            case Record.FAILED:
                outcome = Outcome(JobStatus.FAILED, dump_failure(exc), ended)
                if end in (End.REJECTED, End.HARD_LIMIT):  # Celery's request stores the result
                    job.finish(outcome)
                else:
                    self._finish(job, outcome, exc)
            case Record.SUCCEEDED:
                if isinstance(exc, Replaced):
                    blob = dump_replaced(exc.signature)
                else:
                    # The job raised Ignore: there is no result.
                    blob = blobs.dump(None, what="result", limit=100)
                job.finish(Outcome(JobStatus.SUCCEEDED, blob, ended))
            case Record.PENDING:
                job.release(ended)
            case _:
                job.abandon()

    def _leave(self, end: End, exc: BaseException, record: JobRecord) -> NoReturn:
        """Settle the message: raise what Celery takes for this end."""
        name, id = self._task.name, self._request.id
        match end:
            case End.CANCELLED:
                assert isinstance(exc, JobCancelled)
                self._settling.cancelled(record, exc.reason)
            case End.LEASE_LOST:
                emit("lease lost")
                logger.warning("%s[%s] lost its lease: %s", name, id, exc)
                raise Reject(exc, requeue=True) from None
            case End.UNRECORDED:
                assert isinstance(exc, StoreError)
                self._settling.store_unavailable(exc)
            case End.STOPPING:
                self._settling.hand_back(exc)
            case End.ENDED if shield.ends_greenlet(exc):
                # Otherwise Celery would take the job of a killed greenlet for finished.
                logger.info("%s[%s] is handed back: its greenlet was told to end", name, id)
                raise Reject(exc, requeue=True) from None
            case End.DEADLINE | End.EXITED:
                raise exc from None
            case _:
                raise exc

    def _begin(self, job: RunningJob) -> None:
        self._refuse_hopeless(job)
        job.load()
        if job.record.attempt > 1 or job.has_checkpoints:
            logger.info("%s[%s] %s", self._task.name, self._request.id, job.where_resumed())

    def _refuse_hopeless(self, job: RunningJob) -> None:
        limit = first(self._task.reliable.max_crashes, self._settings.max_crashes)
        if job.record.crashes > limit:
            raise CrashLimitExceeded(
                f"{self._task.name} took its worker down {job.record.crashes} times without "
                "saving a step and is not tried again: look at its last step, then redrive it from "
                "the dead letter"
            )
        job.check()

    def _finish(self, job: RunningJob, outcome: Outcome, result: Any) -> None:
        """Record the outcome; in the same commit Celery's result, if the store keeps results too."""
        state, trace = states.SUCCESS, None
        if outcome.status is JobStatus.FAILED:
            state = states.FAILURE
            trace = failures.traceback_text(result)
        stored = None
        if isinstance(self._task.backend, ReliableBackend):
            stored = self._task.backend.ahead(self._task, self._store, state, result, trace)
        job.finish(outcome, stored)
        if stored is not None:
            ReliableBackend.mark_stored(self._request, state)

    def _answer(self, record: JobRecord) -> Any:
        logger.info(
            "%s[%s] is answered from the store (%s)",
            self._task.name,
            self._request.id,
            record.status.value,
        )
        assert record.outcome is not None
        emit("duplicate")
        succeeded = record.status is JobStatus.SUCCEEDED
        if record.result_of == self._request.id and isinstance(self._task.backend, ReliableBackend):
            # This message was redelivered: its result was written with the outcome.
            self._task.backend.mark_stored(
                self._request, states.SUCCESS if succeeded else states.FAILURE
            )
        if succeeded:
            replaced = load_replaced(record.outcome)
            if replaced is not None:
                return self._settling.replace(replaced)
            return blobs.load(record.outcome)
        raise load_failure(self._task.backend, record.outcome)

    def _bounds(self, headers: Mapping[str, Any]) -> Bounds:
        settings, options = self._settings, self._task.reliable
        deadline = headers.get(DEADLINE_HEADER)
        return Bounds(
            max_checkpoint_bytes=first(options.max_checkpoint_bytes, settings.max_checkpoint_bytes),
            deadline=None if deadline is None else float(deadline),
            hand_back_at=(self._request.properties or {}).get(PUSH_UNTIL),
            interrupt_on_shutdown=(
                first(options.interrupt_on_shutdown, settings.interrupt_on_shutdown)
                and not self._request.is_eager
            ),
        )


def _in_a_workers_job() -> bool:
    """Whether a worker's job makes this eager call: then its record is kept as durably as the job's."""
    return any(
        not (request.called_directly or request.is_eager)
        for task in _task_stack.stack
        for request in task.request_stack.stack
    )
