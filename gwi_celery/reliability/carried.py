"""Finds the attempt that the running code belongs to, in the job's own thread and in others it starts.

The job's thread has the message's request. Another thread belongs to the attempt if it runs in a copy of
the job's context, as with ``asyncio.to_thread``, ``contextvars.copy_context().run`` or :func:`carry`.
In a thread without that context a step would silently be a plain call, so it is refused. It is also
refused in a process that the job has forked, which can't save anything.
"""

from __future__ import annotations

import contextvars
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from gwi_celery import forks
from gwi_celery.errors import OutsideAttempt

if TYPE_CHECKING:
    from gwi_celery.reliability.job import RunningJob
    from gwi_celery.reliability.task import ReliableTask

P = ParamSpec("P")
R = TypeVar("R")

#: Task -> the attempt that this context is part of.
_carried: contextvars.ContextVar[Mapping[Any, RunningJob] | None] = contextvars.ContextVar(
    "attempts", default=None
)
#: Task -> number of its attempts running in this process.
_running: Counter[Any] = Counter()
_lock = forks.lock()


@contextmanager
def carrying(task: ReliableTask, job: RunningJob) -> Iterator[None]:
    """Name ``job`` in the context while the job's own code runs."""
    token = _carried.set({**(_carried.get() or {}), task: job})
    with _lock:
        _running[task] += 1
    try:
        yield
    finally:
        with _lock:
            _running[task] -= 1
            if not _running[task]:
                del _running[task]
        _carried.reset(token)


def job_of(task: ReliableTask) -> RunningJob | None:
    """The attempt of ``task`` that this code belongs to; None in a plain call.

    Raises OutsideAttempt in a job's thread or process that doesn't carry its context.
    """
    job = _of_this_thread(task)
    if job is not None and job.pid != os.getpid():
        raise OutsideAttempt(
            f"{task.name}: this process was forked by the job, and only the job's own process can "
            "save steps: call them there, and give the other process plain values"
        )
    return job


def _of_this_thread(task: ReliableTask) -> RunningJob | None:
    request = task.request_stack.top
    if request is not None:
        # A plain call inside a job gets a copy of the job's request: the attempt is not its own.
        owner_request, job = vars(request).get("_gwi_job") or (None, None)
        return job if owner_request is not None and owner_request() is request else None
    job = (_carried.get() or {}).get(task)
    if job is None and task in _running:
        raise OutsideAttempt(
            f"{task.name}: this thread doesn't know which attempt it belongs to, so nothing could "
            "be recorded here: start it with the job's context, as in "
            "Thread(target=carry(function)) or executor.submit(carry(function), ...), with carry "
            "from gwi_celery; or with contextvars.copy_context().run"
        )
    return job


def carry(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, to be called in any thread as a part of the job that calls ``carry``."""
    attempts = _carried.get()

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        token = _carried.set(attempts)
        try:
            return function(*args, **kwargs)
        finally:
            _carried.reset(token)

    return called
