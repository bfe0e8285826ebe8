"""Makes sure that no gRPC call is in flight when this process forks.

gRPC survives a fork of an idle process, but sometimes hangs or crashes the child of one with
calls in flight (https://github.com/grpc/grpc/issues/31885). A prefork worker forks whenever it
replaces a child, from the process that pulls and extends leases. So every call passes a gate: while
a fork is under way new calls wait, long ones are told to end, and the fork waits for what is in
flight. Channels stay open in the parent. The child must make its own client, and never touch or close
an inherited one.

``GRPC_ENABLE_FORK_SUPPORT`` must stay unset: either value of it deadlocks here.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

logger = logging.getLogger(__name__)

#: Longest time, seconds, that a fork waits for calls to end. All short calls have a deadline. After this
#: time the fork goes ahead: a pool that can't replace a child is worse than the small risk.
_PATIENCE = 10.0
#: Seconds between two requests to a long call to end.
_PRESS_EVERY = 0.02


class LongCall(Protocol):
    """A call that may be in flight for long: a blocking pull, a stream."""

    def pause(self, waited: float) -> None:
        """End the call soon, and leave the gate when it has ended. Must not block.

        Called repeatedly while calls are in flight. The call should end gently at first, so that arriving
        messages are not lost, and by force later.

        Args:
            waited: Seconds that the fork has waited so far.
        """

    def resume(self) -> None:
        """The fork is over, in the parent: start the call again. It may never have been paused."""


class _Gate:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._forking = False
        self._in_flight = 0
        self._own = threading.local()
        self._long: weakref.WeakSet[LongCall] = weakref.WeakSet()

    def enter(self) -> None:
        with self._changed:
            while self._forking:
                self._changed.wait()
            self._in_flight += 1

    def try_enter(self) -> bool:
        with self._changed:
            if self._forking:
                return False
            self._in_flight += 1
            return True

    def leave(self) -> None:
        with self._changed:
            self._in_flight -= 1
            if self._forking:
                self._changed.notify_all()

    @contextmanager
    def call(self) -> Iterator[None]:
        self.enter()
        self._own.depth = getattr(self._own, "depth", 0) + 1
        try:
            yield
        finally:
            self._own.depth -= 1
            self.leave()

    def register(self, call: LongCall) -> None:
        with self._changed:
            self._long.add(call)

    def before_fork(self) -> None:
        with self._changed:
            while self._forking:  # two threads fork: one waits for the other
                self._changed.wait()
            self._forking = True
            paused = list(self._long)
        began = time.monotonic()
        waited = 0.0
        own = getattr(self._own, "depth", 0)  # a fork can't wait for the call that it is made in
        while True:
            for call in paused:
                try:
                    call.pause(waited)
                except Exception:
                    logger.exception("a call could not be paused for a fork")
            with self._changed:
                ended = self._changed.wait_for(lambda: self._in_flight <= own, _PRESS_EVERY)
            waited = time.monotonic() - began
            if ended:
                return
            if waited > _PATIENCE:
                logger.warning("forking with %d gRPC calls in flight", self._in_flight - own)
                return

    def after_in_parent(self) -> None:
        with self._changed:
            self._forking = False
            # Includes calls registered during the fork, which wait for this.
            registered = list(self._long)
            self._changed.notify_all()
        for call in registered:
            try:
                call.resume()
            except Exception:
                logger.exception("a call could not be resumed after a fork")


_gate = _Gate()


def in_flight() -> int:
    """Calls in flight in this process now; for tests."""
    return _gate._in_flight


@contextmanager
def call() -> Iterator[None]:
    """Wraps every short call. Waits while another thread forks."""
    with _gate.call():
        yield


def enter() -> None:
    """A call begins that ends elsewhere (in a callback): pair it with :func:`leave`."""
    _gate.enter()


def try_enter() -> bool:
    """As :func:`enter`, but returns False instead of waiting: for a thread that a fork may wait for."""
    return _gate.try_enter()


def leave() -> None:
    _gate.leave()


def register(call: LongCall) -> None:
    """Have a long call paused before each fork. Kept by a weak reference."""
    _gate.register(call)


def _before() -> None:
    _gate.before_fork()


def _in_parent() -> None:
    _gate.after_in_parent()


def _in_child() -> None:
    global _gate  # noqa: PLW0603 the parent's threads don't exist here, and so neither do their calls
    _gate = _Gate()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
