"""Counts this process's calls to Google Cloud by name, to show what jobs cost."""

from __future__ import annotations

import os
from collections import Counter

from gwi_celery import forks

_lock = forks.lock()
_counts: Counter[str] = Counter()
#: The counts that :func:`news` has returned so far.
_returned: Counter[str] = Counter()
_pid = os.getpid()


def count(name: str) -> None:
    """Count a call, such as ``Publish`` or ``Commit``."""
    with _lock:
        _own()
        _counts[name] += 1


def total() -> dict[str, int]:
    """All calls of this process so far."""
    with _lock:
        _own()
        return dict(_counts)


def news() -> dict[str, int]:
    """The calls since this was last asked for."""
    with _lock:
        _own()
        fresh = _counts - _returned
        _returned.update(fresh)
        return dict(fresh)


def _own() -> None:
    """Begin at 0 in a forked child: its parent reports its own calls."""
    global _pid  # noqa: PLW0603 the counts are the process's
    if _pid != os.getpid():
        _pid = os.getpid()
        _counts.clear()
        _returned.clear()
