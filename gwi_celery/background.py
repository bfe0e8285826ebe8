"""Background threads: renewals, leases, acks, restores, sweeps.

Whatever may have to wait for a service has a thread of its own, so that nothing queues behind it: an
ack never waits for a restore that stalls. Threads start on demand, end after some idle time, and survive
any error; a forked child starts its own.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable

from gwi_celery import forks

logger = logging.getLogger(__name__)

NEVER = float("inf")
#: Seconds after which a tick that raised is tried again.
_RETRY = 1.0
#: Seconds after which an idle thread ends.
_LINGER = 30.0


class Ticker:
    """A thread that calls ``tick`` whenever it is due.

    Args:
        name: The thread's name.
        tick: Does what is due, and returns the monotonic time of the next call, or :data:`NEVER`.
            What it raises is logged, and it is called again a second later.
    """

    def __init__(self, name: str, tick: Callable[[], float]) -> None:
        self._name = name
        self._tick = tick
        self._changed = forks.condition()
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        #: Earliest time that was asked for since the latest tick began.
        self._asked = NEVER
        #: Monotonic time until which the thread sleeps; 0: it is awake.
        self._sleeps_until = 0.0

    def wake(self, at: float = 0.0) -> None:
        """Have ``tick`` called by that monotonic time. Cheap if it is due by then anyway."""
        with self._changed:
            if self._pid != os.getpid():
                self._reset()
            self._asked = min(self._asked, at)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            elif at < self._sleeps_until:
                self._changed.notify_all()

    def stop(self, timeout: float) -> None:
        """End the thread after its current tick; wait up to ``timeout`` seconds for that.

        Woken again, it starts again. In a forked child it does nothing: the thread is the parent's.
        """
        if self._pid != os.getpid():
            return
        with self._changed:
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    @property
    def is_own_thread(self) -> bool:
        """Whether this code is called by ``tick``."""
        return threading.current_thread() is self._thread

    def _run(self) -> None:
        me = threading.current_thread()
        next_at = NEVER
        while self._sleep(me, next_at):
            try:
                next_at = self._tick()
            except Exception:
                logger.exception("%s: failed, and is tried again", self._name)
                next_at = time.monotonic() + _RETRY

    def _sleep(self, me: threading.Thread, next_at: float) -> bool:
        """Sleep until the next tick; False if the thread is to end instead."""
        with self._changed:
            while self._thread is me:
                at = min(next_at, self._asked)
                left = at - time.monotonic()
                if left <= 0:
                    break
                self._sleeps_until = at
                woken = self._changed.wait(_LINGER if at == NEVER else left)
                if not woken and at == self._asked == NEVER:
                    self._thread = None
            if self._thread is not me:
                return False  # what was asked for since is the next thread's
            self._sleeps_until, self._asked = 0.0, NEVER
            return True


class Scheduler:
    """Calls jobs on a thread of its own, one after the other. What they raise is logged.

    In a forked child the waiting jobs remain the parent's.
    """

    def __init__(self, name: str) -> None:
        self._changed = forks.condition()
        self._ticker = Ticker(name, self._run_due)
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._jobs: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._running = False

    def run(self, job: Callable[[], object], at: float = 0.0) -> None:
        """Call ``job`` soon, or soon after that monotonic time."""
        with self._changed:
            if self._pid != os.getpid():
                self._reset()
            heapq.heappush(self._jobs, (at, next(self._numbers), job))
        self._ticker.wake(at)

    def flush(self, timeout: float) -> bool:
        """Wait until no job is due any more; False if ``timeout`` seconds were not enough."""
        if self._pid != os.getpid():
            return True
        deadline = time.monotonic() + timeout
        with self._changed:
            while self._running or self._next_at() <= time.monotonic():
                left = deadline - time.monotonic()
                if left <= 0 or self._ticker.is_own_thread:
                    return False
                self._changed.wait(left)
        return True

    def stop(self, timeout: float) -> None:
        """Flush, then drop the jobs that have not begun. :meth:`run` starts it again."""
        if self._pid != os.getpid():
            return
        if not self.flush(timeout):
            logger.info("some background jobs were not finished within %g s", timeout)
        with self._changed:
            self._jobs.clear()
        self._ticker.stop(0.0)

    def _next_at(self) -> float:
        return self._jobs[0][0] if self._jobs else NEVER

    def _run_due(self) -> float:
        with self._changed:
            if self._next_at() > time.monotonic():
                return self._next_at()
            job = heapq.heappop(self._jobs)[2]
            self._running = True
        try:
            job()
        except Exception:
            logger.exception("a background job failed")
        finally:
            with self._changed:
                self._running = False
                self._changed.notify_all()
        return 0.0
