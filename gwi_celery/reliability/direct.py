"""Stands in for the running job when a task is called as a plain function: nothing is recorded.

Steps run, cursors move, and a name used twice is an error, as in a worker, so that a unit test of the
function finds it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from gwi_celery import blobs
from gwi_celery.reliability.cursor import Cursor
from gwi_celery.reliability.step_names import StepNames
from gwi_celery.stores.base import Progress

if TYPE_CHECKING:
    from gwi_celery.reliability.task import ReliableTask

_NO_LIMIT = 2**63 - 1


class DirectJob:
    """One call, with the methods of :class:`gwi_celery.reliability.job.RunningJob`."""

    fence = 0
    attempt = generation = 1
    lease_lost = False

    def __init__(self) -> None:
        self._names = StepNames()

    def step(self, name: str, function: Callable[[], Any]) -> Any:
        self._names.use(name)
        with self._names.free_after_error(name):
            return blobs.load(blobs.dump(function(), what=f"{name!r}", limit=_NO_LIMIT))

    @contextmanager
    def cursor(self, name: str, start: Any, save_every: float) -> Iterator[Cursor]:
        self._names.use(name)
        with self._names.free_after_error(name):
            yield Cursor(name, start)

    def checkpoint(self, name: str, value: Any) -> None:
        self._names.expect_unused(name)

    def restore(self, name: str, default: Any) -> Any:
        return default

    def progress(self, progress: Progress) -> bool:
        return False

    def check(self) -> None:
        """Nothing stops a plain call."""

    def derive_key(self, *parts: object) -> str:
        return uuid4().hex


def direct_job(task: ReliableTask) -> DirectJob:
    """The DirectJob of the current call; a new one if Celery has no request for it."""
    request = task.request_stack.top
    if request is None:
        return DirectJob()
    # A call within a call begins with a copy of the outer one's request.
    known: tuple[weakref.ref[Any], DirectJob] | None = vars(request).get("_gwi_direct")
    if known is None or known[0]() is not request:
        known = request._gwi_direct = (weakref.ref(request), DirectJob())
    return known[1]
