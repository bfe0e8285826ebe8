"""A flag that tells jobs that their worker is stopping, in its main process and pool children.

The flag is one byte of memory that is shared with forked children. Celery's signal sets it at SIGTERM,
even while a solo worker is busy in a task; the bootstep sets it for ``control shutdown``.
"""

from __future__ import annotations

import mmap
from typing import Any

from celery import signals

_flag = mmap.mmap(-1, 1)


def worker_is_stopping() -> bool:
    return _flag[0] == 1


def raise_flag(**kwargs: Any) -> None:
    """Set the flag: this worker begins to stop. Safe in a signal handler."""
    _flag[0] = 1


def lower_flag(**kwargs: Any) -> None:
    """Clear the flag: this worker has started."""
    _flag[0] = 0


signals.worker_shutting_down.connect(raise_flag, weak=False)
