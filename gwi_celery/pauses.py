"""Paused queues of a broker that can't pause: a flag in the store, which workers obey."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Protocol


class Listener(Protocol):
    def wake(self) -> None:
        """Look again whether there is anything to do. Any thread may call this."""


class Pauses:
    """The paused queues of one app, as this process last read them. Only worker processes read them.

    Args:
        ask: Returns the queues that are paused. Raises StoreError.
    """

    def __init__(self, ask: Callable[[], frozenset[str]]) -> None:
        self._ask = ask
        self._listeners: weakref.WeakSet[Listener] = weakref.WeakSet()
        self.queues: frozenset[str] = frozenset()

    def listen(self, listener: Listener) -> None:
        """Have it woken when a queue is paused or resumed, for as long as it lives."""
        self._listeners.add(listener)

    def refresh(self) -> bool:
        """Ask; if the answer has changed, wake the listeners and return True. Raises StoreError."""
        queues = self._ask()
        if queues == self.queues:
            return False
        self.queues = queues
        for listener in list(self._listeners):
            listener.wake()
        return True
