"""Celery's tracer, made to answer whatever a job raises and whatever can't be recorded.

Celery's own assumes that an exception has a text, that a state can be stored, and that only an
``Exception`` ends a job. Otherwise it raises, and the pools of threads and greenlets and the solo pool
take that for their own end: the message stays leased, and a place in the pool is lost. Here the answer
is always one of Celery's outcomes. A message whose outcome could not be recorded is redelivered.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionInfo
from billiard.process import current_process
from celery import signals, states
from celery.app import trace
from celery.app.task import Context
from celery.exceptions import Reject

from gwi_celery import failures, shield
from gwi_celery.failures import ENDS_THE_WORKER
from gwi_celery.text import safe_error

logger = logging.getLogger(__name__)


class TraceInfo(trace.TraceInfo):
    """Celery's own, which records a failure unchanged and returns only texts to the pool's caller."""

    def handle_failure(
        self, task: Any, req: Any, store_errors: bool = True, call_errbacks: bool = True
    ) -> ExceptionInfo:
        exc, text = failures.presentable(self.retval), failures.traceback_text(self.retval)
        info = _info(exc.with_traceback(self.retval.__traceback__), text)
        task.backend.mark_as_failure(
            *(req.id, exc, text),
            request=req,
            store_result=store_errors,
            call_errbacks=call_errbacks,
        )
        task.on_failure(exc, req.id, req.args, req.kwargs, info)
        signals.task_failure.send(
            sender=task,
            task_id=req.id,
            exception=exc,
            args=req.args,
            kwargs=req.kwargs,
            traceback=exc.__traceback__,
            einfo=info,
        )
        self._log_error(task, req, info)
        trace.traceback_clear(self.retval)
        return info


def install(app: Any) -> None:
    """Trace all of the app's tasks with this tracer, in this worker process."""
    hostname = trace._localized[2] if trace._localized else None
    for task in app.tasks.values():
        _guard_handlers(task)
        task.__trace__ = build(app, task, hostname)


def build(app: Any, task: Any, hostname: str | None) -> Callable[..., Any]:
    """The tracer of one task, called as Celery's own."""
    traced = trace.build_tracer(task.name, task, app.loader, hostname, app=app, Info=TraceInfo)

    @shield.watched()
    def trace_task(uuid: str, args: Any, kwargs: Any, request: Any = None) -> Any:
        started, requeue = time.monotonic(), True
        try:
            result, info, runtime, text = traced(uuid, args, kwargs, request)
        except ENDS_THE_WORKER as exc:
            if shield.ends_greenlet(exc):
                reason = exc
            elif shield.from_outside(exc) or current_process()._name != "MainProcess":
                raise
            else:
                return failed(uuid, args, kwargs, request, exc, started)
        except Reject as exc:
            reason, requeue = exc.reason, exc.requeue
        except Exception as exc:
            reason = exc
        except BaseException as exc:
            if shield.from_outside(exc):
                raise  # gevent's Timeout, at a time limit
            # Raised by the job (a cancelled asyncio task, say), and unknown to Celery.
            return failed(uuid, args, kwargs, request, exc, started)
        else:
            if isinstance(result, ExceptionInfo):
                result = failures.for_parent(result)
            return trace.trace_ok_t(result, info, runtime, text)
        return rejected(uuid, reason, requeue, started)

    def failed(
        uuid: str, args: Any, kwargs: Any, request: Any, exc: BaseException, started: float
    ) -> Any:
        info = TraceInfo(states.FAILURE, exc)
        try:
            context = Context(request or {}, args=args, kwargs=kwargs, called_directly=False)
            result = info.handle_error_state(task, context)
        except ENDS_THE_WORKER:
            raise
        except BaseException as unrecorded:
            return rejected(uuid, unrecorded, True, started)
        runtime = time.monotonic() - started
        return trace.trace_ok_t(failures.for_parent(result), info, runtime, None)

    def rejected(uuid: str, reason: Any, requeue: bool, started: float) -> Any:
        if requeue:
            logger.error(
                "%s[%s] is redelivered, as its outcome could not be recorded: %s",
                *(task.name, uuid),
                safe_error(reason) if isinstance(reason, BaseException) else reason,
            )
        result = failures.rejected(reason, requeue)
        runtime = time.monotonic() - started
        return trace.trace_ok_t(result, TraceInfo(trace.REJECTED, result), runtime, None)

    return trace_task


def _info(exc: BaseException, text: str) -> ExceptionInfo:
    """Celery's ExceptionInfo, without formatting the exception again."""
    info = ExceptionInfo.__new__(ExceptionInfo)
    info.type, info.exception, info.tb = type(exc), exc, exc.__traceback__
    info.traceback, info.internal = text, False
    return info


def _guard_handlers(task: Any) -> None:
    """Only log what a task's ``on_failure`` or ``on_retry`` raises: the outcome is recorded by then."""
    for name in ("on_failure", "on_retry"):
        if name not in vars(task) and trace.task_has_custom(task, name):
            setattr(task, name, _guarded(task, name, getattr(task, name)))


def _guarded(task: Any, name: str, handler: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(handler)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except Reject:
            raise
        except Exception as exc:
            logger.error("the %s handler of %s raised %s", name, task.name, safe_error(exc))

    return call
