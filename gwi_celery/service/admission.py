"""Admission to the pool: free places, waiting requests, and draining at shutdown."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import Future
from typing import Any

from gwi_celery.brokers.base import Delivery
from gwi_celery.service.execute import Executor
from gwi_celery.transport.settlement import Settlement

#: Requests that may wait for a place at the same time; the next one is refused at once.
MAX_WAITING = 100


class Refused(Exception):
    """The message is not run now. Pub/Sub redelivers it."""

    def __init__(self, status: int, reason: str, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after


class Admission:
    """Admits requests to the executor. Used on the event loop only.

    Args:
        wait: Seconds a request waits for a place; 0: it is refused at once.
    """

    def __init__(self, executor: Executor, *, wait: float) -> None:
        self._executor = executor
        self._wait = wait
        self._free = executor.size
        self._waiting: deque[asyncio.Future[bool]] = deque()
        #: Set when the shutdown stops waiting for unfinished requests.
        self._over: asyncio.Task[bool] | None = None
        self._give_up = asyncio.Event()
        self._stopping = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False

    @property
    def in_flight(self) -> int:
        """Jobs that hold a place."""
        return self._executor.size - self._free

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def run(self, delivery: Delivery, *, hand_back_at: float, answer_by: float) -> Settlement:
        """Run the message; returns how it was settled. Raises Refused.

        A job that is still running at ``answer_by`` (both times are monotonic) keeps its place and
        continues; its message is refused, so that the redelivery finds the outcome or the job.
        """
        if self.draining:
            raise _stopping()
        await self._take_place()
        try:
            future = self._executor.submit(delivery, hand_back_at=hand_back_at)
        except RuntimeError:  # the pool has just been stopped
            self._give_place()
            raise _stopping() from None
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._give_place))
        return await self._settled(future, answer_by)

    async def _settled(self, future: Future[Settlement], answer_by: float) -> Settlement:
        answer = asyncio.wrap_future(future)
        if self._over is None:
            self._over = asyncio.ensure_future(self._give_up.wait())
        pending: set[asyncio.Future[Any]] = {answer, self._over}
        await asyncio.wait(
            pending,
            timeout=max(answer_by - time.monotonic(), 0.0),
            return_when=asyncio.FIRST_COMPLETED,
        )
        if answer.done():
            return answer.result()
        if self.draining:
            raise _stopping()
        raise Refused(503, "the job is still running: its message has to be redelivered")

    async def hold(self, seconds: float) -> bool:
        """Wait; True if the time has passed, False if the shutdown came first."""
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except (TimeoutError, asyncio.TimeoutError):
            return True
        return False

    # --- places -------------------------------------------------------------------------------

    async def _take_place(self) -> None:
        if self._free and not self._waiting:
            self._free -= 1
            self._idle.clear()
            return
        if not self._wait or len(self._waiting) >= MAX_WAITING:
            raise self._busy()
        place: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await asyncio.wait({place}, timeout=self._wait)
        except asyncio.CancelledError:
            if place.done() and place.result():
                self._give_place()  # the place was just assigned, but its request has ended
            raise
        finally:
            if place in self._waiting:
                self._waiting.remove(place)
        if not place.done():
            raise self._busy()
        if not place.result():
            raise _stopping()

    def _give_place(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(True)
                return
        self._free += 1
        if self._free == self._executor.size:
            self._idle.set()

    def _busy(self) -> Refused:
        return Refused(429, "busy with other jobs", retry_after=max(round(self._wait), 1))

    # --- shutdown -----------------------------------------------------------------------------

    def drain(self) -> None:
        """Admit nothing more; waiting requests are refused now."""
        self.draining = True
        self._stopping.set()
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(False)

    async def drained(self, patience: float) -> bool:
        """Wait until no job is left, ``patience`` seconds at most; then the rest is refused."""
        try:
            await asyncio.wait_for(self._idle.wait(), patience)
        except (TimeoutError, asyncio.TimeoutError):
            self._give_up.set()
            return False
        return True


def _stopping() -> Refused:
    return Refused(503, "this instance is shutting down", retry_after=1)
