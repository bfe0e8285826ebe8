"""What each process makes for itself, and never takes over from the one that it was forked from."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from gwi_celery import forks

T = TypeVar("T")

#: What parents made. It must not be collected: that would close the parent's connection, or hang.
_inherited: list[Any] = []


class PerProcess(Generic[T]):
    """One thing per process, made when it is first asked for. Any thread may ask.

    Args:
        make: Makes it. What it raises, :meth:`get` raises, and the next call tries again.
        close: Ends it, in the process that made it.
    """

    def __init__(self, make: Callable[[], T], close: Callable[[T], object]) -> None:
        self._make = make
        self._close = close
        self._lock = forks.lock()
        self._made: tuple[int, T] | None = None

    def get(self) -> T:
        made = self._made
        if made is None or made[0] != os.getpid():
            made = self._anew()
        return made[1]

    def close(self) -> None:
        """End this process's. Safe to call twice; the next :meth:`get` makes another."""
        with self._lock:
            made, self._made = self._made, None
        if made is not None and made[0] == os.getpid():
            self._close(made[1])
        elif made is not None:
            _inherited.append(made[1])

    def _anew(self) -> tuple[int, T]:
        with self._lock:
            made = self._made
            if made is not None and made[0] != os.getpid():
                _inherited.append(made[1])
                made = self._made = None
            if made is None:
                made = self._made = os.getpid(), self._make()
            return made
