"""Locks that a forked child finds free.

A lock that another thread holds at the fork would stay held in the child for ever. So this package makes
its locks by :func:`lock`, :func:`rlock` or :func:`condition`; only the fork gate has one of its own.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

#: Every lock of ours in this process.
_locks: weakref.WeakSet[Any] = weakref.WeakSet()


def lock() -> threading.Lock:
    """A lock that is free in a forked child, whoever held it in the parent."""
    made = threading.Lock()
    _locks.add(made)
    return made


def rlock() -> threading.RLock:
    """As :func:`lock`, but reentrant."""
    made = threading.RLock()
    _locks.add(made)
    return made


def condition() -> threading.Condition:
    """A condition whose lock is free in a forked child, where nobody waits on it."""
    made = threading.Condition()
    _locks.add(made)
    return made


def _in_child() -> None:
    for held in list(_locks):
        held._at_fork_reinit()  # as threading and logging do with their own


os.register_at_fork(after_in_child=_in_child)
