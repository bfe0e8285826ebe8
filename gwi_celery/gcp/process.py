"""Objects that each process creates for itself and never inherits from the parent of a fork."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from gwi_celery import forks

T = TypeVar("T")

#: Objects of parents, kept from garbage collection: it would close the parent's connection, or hang.
_inherited: list[Any] = []


class PerProcess(Generic[T]):
    """One object per process, created at the first :meth:`get`. Any thread may call.

    Args:
        make: Creates the object. If it raises, so does :meth:`get`, and the next call tries again.
        close: Closes the object, in the process that created it.
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
        """Close this process's object. Safe to call twice; the next :meth:`get` creates another."""
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
