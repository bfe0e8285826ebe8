"""Tells jobs that their worker is stopping, in the worker's own process and in its pool children.

The flag is one byte of memory shared with forked children. Celery's signal sets it at SIGTERM, also
while a solo worker is busy in a task; the bootstep sets it for ``control shutdown``.
"""

from __future__ import annotations

import mmap
from typing import Any

from celery import bootsteps, signals

_flag = mmap.mmap(-1, 1)


def worker_is_stopping() -> bool:
    return _flag[0] == 1


def _set(**kwargs: Any) -> None:
    _flag[0] = 1


def _clear(**kwargs: Any) -> None:
    _flag[0] = 0


class StopFlag(bootsteps.StartStopStep):
    """Worker bootstep: lowers the flag at start, raises it as soon as the worker begins to stop."""

    def start(self, worker: Any) -> None:
        _clear()

    def close(self, worker: Any) -> None:
        _set()

    def terminate(self, worker: Any) -> None:
        _set()


signals.worker_shutting_down.connect(_set, weak=False)
