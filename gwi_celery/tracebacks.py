"""Frees what a failed task leaves behind when it ends, rather than at a later garbage collection.

Celery's tracer holds the exception in a local variable, and the exception's traceback holds the
tracer's frame: a cycle, which keeps the task's arguments, the frames it passed and billiard's copy of
the traceback (200 KB a failure and more). Python collects cycles by the number of objects, not their
size, so that a worker whose jobs failed now and then grew by hundreds of megabytes.

Kombu's EncodeError (for an exception whose arguments have no JSON form) and much user code leave cycles
of their own, whose frames lead to the tracer's as well. These objects are young, and collecting the young
objects takes about a millisecond, once for each failure.

All this applies to plain tasks, too, and to all ends that Celery signals by exceptions: failure, retry,
ignored, rejected.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any

from celery import signals


def let_go(sender: Any = None, retval: Any = None, **kwargs: Any) -> None:
    """At the end of a task: clear its exception's frames.

    All users of the traceback have had it by now: the result, the logs, ``on_failure``, and the
    signals ``task_failure`` and ``task_retry``. An eager caller still wants it.
    """
    if isinstance(retval, BaseException) and not sender.request.is_eager:
        gc.collect(1)
        for exc in _chain(retval):
            exc.__traceback__ = None
            if any(argument is exc for argument in exc.args):  # Celery's Retry, with its signature
                exc.args = tuple(argument for argument in exc.args if argument is not exc)


def _chain(exc: BaseException) -> Iterable[BaseException]:
    """The exception and those it refers to. The frames of each lead to the tracer's, by ``f_back``."""
    found = {id(exc): exc}
    queue = [exc]
    while queue:
        exc = queue.pop()
        named = [exc.__cause__, exc.__context__, *getattr(exc, "exceptions", ())]
        # A Retry's cause, and a Reject's.
        named += [value for value in vars(exc).values() if isinstance(value, BaseException)]
        for other in named:
            if isinstance(other, BaseException) and id(other) not in found:
                found[id(other)] = other
                queue.append(other)
    return found.values()


def install() -> None:
    """Do this for all apps of this process. Safe to call twice."""
    signals.task_postrun.connect(let_go, weak=False, dispatch_uid="gwi-tracebacks")
