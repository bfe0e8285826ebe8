"""How many calls this process has made to Google Cloud, by name: what jobs cost."""

from __future__ import annotations

import os
from collections import Counter

from gwi_celery import forks

_lock = forks.lock()
_counts: Counter[str] = Counter()
#: As far as :func:`news` has told.
_told: Counter[str] = Counter()
_pid = os.getpid()


def count(name: str) -> None:
    """One more call, such as ``Publish`` or ``Commit``."""
    with _lock:
        _own()
        _counts[name] += 1


def total() -> dict[str, int]:
    """All of this process, since it began."""
    with _lock:
        _own()
        return dict(_counts)


def news() -> dict[str, int]:
    """Those since it was asked last."""
    with _lock:
        _own()
        fresh = _counts - _told
        _told.update(fresh)
        return dict(fresh)


def _own() -> None:
    """A forked child begins at 0: what its parent did, its parent tells."""
    global _pid  # noqa: PLW0603 the counts are the process's
    if _pid != os.getpid():
        _pid = os.getpid()
        _counts.clear()
        _told.clear()
