"""Tells jobs that their worker is stopping, in the worker's own process and in its pool children.

The flag is one byte of memory shared with forked children. Celery's signal sets it at SIGTERM, also
while a solo worker is busy in a task; the bootstep sets it for ``control shutdown``.
"""

from __future__ import annotations

import mmap
from typing import Any

from celery import bootsteps, signals

from gwi_celery import shield

_flag = mmap.mmap(-1, 1)


def worker_is_stopping() -> bool:
    return _flag[0] == 1


def raise_flag(**kwargs: Any) -> None:
    """This worker begins to stop. Safe in a signal handler."""
    _flag[0] = 1


def lower_flag(**kwargs: Any) -> None:
    """This worker has started."""
    _flag[0] = 0


class StopFlag(bootsteps.StartStopStep):
    """Worker bootstep: lowers the flag at start, raises it as soon as the worker begins to stop.

    From its start on, the process holds signals back where library code is at work.
    """

    def start(self, worker: Any) -> None:
        lower_flag()
        shield.arm()

    def close(self, worker: Any) -> None:
        raise_flag()

    def terminate(self, worker: Any) -> None:
        raise_flag()


signals.worker_shutting_down.connect(raise_flag, weak=False)
