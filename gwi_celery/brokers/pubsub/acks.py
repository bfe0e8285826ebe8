"""Acks and nacks, sent in the background: batched, tried again, never in the worker's way.

One thread per broker and process, which does nothing else that takes time. While one request is on
its way the next ones gather, so that a busy worker makes fewer of them than it has messages. What fails
for now is sent again until the message's lease is surely over; then it is delivered again anyway, and
that is logged.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from gwi_celery import forks
from gwi_celery.brokers.pubsub.client import Client, pb
from gwi_celery.errors import BrokerUnavailable

logger = logging.getLogger(__name__)

#: Ids in one request, and their bytes: Pub/Sub takes 512 KB (an id has about 200).
_BATCH, _BATCH_BYTES = 1000, 480_000
#: Bytes that an id costs in a request beside itself.
_FRAME = 4
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_NEVER = float("inf")


@dataclass(frozen=True)
class _Item:
    #: projects/P/subscriptions/S
    subscription: str
    ack_id: str
    #: None: ack. Else: the message is redelivered after that many seconds.
    seconds: int | None
    #: Monotonic time after which sending it is no use.
    until: float


def fitting(ack_ids: Iterable[str]) -> Iterator[list[str]]:
    """The same ids, in parts that each fit one request."""
    part: list[str] = []
    size = 0
    for ack_id in ack_ids:
        if part and (len(part) >= _BATCH or size >= _BATCH_BYTES):
            yield part
            part, size = [], 0
        part.append(ack_id)
        size += len(ack_id) + _FRAME
    if part:
        yield part


class Acknowledger:
    """Sends what it is told to, soon."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._changed = forks.condition()
        self._waiting: deque[_Item] = deque()
        self._timed: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._wakes_at = _NEVER
        self._sending = 0
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._asleep = False

    def ack(self, subscription: str, ack_id: str, until: float) -> None:
        self._add(_Item(subscription, ack_id, None, until))

    def nack(self, subscription: str, ack_id: str, seconds: float, until: float) -> None:
        """Have it redelivered in ``seconds``, 0 to 600."""
        # Rounded up: a message must not be delivered before its time.
        whole = min(max(-int(-seconds // 1), 0), 600)
        self._add(_Item(subscription, ack_id, whole, until))

    def run_at(self, when: float, job: Callable[[], object]) -> None:
        """Call ``job`` on the thread at that monotonic time, or soon after. A flush leaves it out.

        Only what takes no time: acks wait for it. What it raises is logged.
        """
        if self._pid != os.getpid():
            self._reset()
        with self._changed:
            heapq.heappush(self._timed, (when, next(self._numbers), job))
            if when < self._wakes_at:
                self._wake()

    def flush(self, timeout: float) -> bool:
        """Wait until all is sent; False if ``timeout`` seconds were not enough."""
        if self._pid != os.getpid():
            return True
        deadline = time.monotonic() + timeout
        with self._changed:
            while self._waiting or self._sending:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def stop(self, timeout: float = 2.0) -> None:
        """Flush, and end the thread. Used again, it starts again."""
        if self._pid != os.getpid():
            return
        if not self.flush(timeout):
            logger.warning(
                "%d acks could not be sent in %g s: their messages will be delivered again",
                len(self._waiting) + self._sending,
                timeout,
            )
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=1.0)

    def _add(self, item: _Item) -> None:
        if self._pid != os.getpid():  # forked: what waited is the parent's to send
            self._reset()
        with self._changed:
            self._waiting.append(item)
            self._wake()

    def _wake(self) -> None:
        if self._thread is None:
            self._stopped = False
            self._thread = threading.Thread(target=self._run, name="gwi-acks", daemon=True)
            self._thread.start()
        elif self._asleep:
            self._changed.notify_all()

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            with self._changed:
                due = self._due()
                while not (self._waiting or due or self._stopped):
                    self._asleep = True
                    self._wakes_at = self._timed[0][0] if self._timed else _NEVER
                    left = None if not self._timed else self._wakes_at - time.monotonic()
                    self._changed.wait(left)
                    self._asleep = False
                    due = self._due()
                if self._stopped:
                    return
                self._wakes_at = 0.0  # awake: nobody need wake it
                batch = self._take() if self._waiting else []
                self._sending = len(batch)
            for job in due:
                try:
                    job()
                except Exception:
                    logger.exception("a task in the background failed")
            if not batch:
                continue
            failed: list[_Item] = []
            try:
                self._send(batch)
            except BrokerUnavailable as exc:
                failed = batch
                logger.debug("acks are sent again: %s", exc)
            except Exception as exc:
                # The subscription is gone, or the lease of an exactly-once message is.
                logger.warning(
                    "%d acks or nacks on %s were refused, so these messages may be delivered "
                    "again: %s",
                    len(batch),
                    batch[0].subscription,
                    exc,
                )
            with self._changed:
                now = time.monotonic()
                hopeless = [item for item in failed if item.until <= now]
                self._waiting.extendleft(item for item in reversed(failed) if item.until > now)
                self._sending = 0
                self._changed.notify_all()
                if failed:
                    self._changed.wait_for(lambda: self._stopped, timeout=pause)
            pause = min(pause * 2, _LONGEST_PAUSE) if failed else _FIRST_PAUSE
            if hopeless:
                logger.warning(
                    "%d messages of %s could not be acked before their leases ran out: they will "
                    "be delivered again",
                    len(hopeless),
                    hopeless[0].subscription,
                )

    def _due(self) -> list[Callable[[], object]]:
        now = time.monotonic()
        due = []
        while self._timed and self._timed[0][0] <= now:
            due.append(heapq.heappop(self._timed)[2])
        return due

    def _take(self) -> list[_Item]:
        """The oldest, and those that can go with it in one request."""
        first = self._waiting[0]
        batch: list[_Item] = []
        rest: deque[_Item] = deque()
        size = 0
        while self._waiting and len(batch) < _BATCH and size < _BATCH_BYTES:
            item = self._waiting.popleft()
            same = (item.subscription, item.seconds) == (first.subscription, first.seconds)
            size += same * (len(item.ack_id) + _FRAME)
            (batch if same else rest).append(item)
        rest.extend(self._waiting)
        self._waiting = rest
        return batch

    def _send(self, batch: list[_Item]) -> None:
        subscription, seconds = batch[0].subscription, batch[0].seconds
        ids = [item.ack_id for item in batch]
        if seconds is None:
            request = pb["AcknowledgeRequest"](subscription=subscription, ack_ids=ids)
            self._client.call("Acknowledge", request, subscription)
        else:
            request = pb["ModifyAckDeadlineRequest"](
                subscription=subscription, ack_ids=ids, ack_deadline_seconds=seconds
            )
            self._client.call("ModifyAckDeadline", request, subscription)
