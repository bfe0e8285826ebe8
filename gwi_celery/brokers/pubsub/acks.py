"""Acks and nacks, sent in the background: batched and retried, without holding up the worker.

A few threads per broker and process, for nothing else. While one request is in flight the next acks
accumulate for some milliseconds, so that a busy worker makes fewer requests than it has messages. A
temporary failure is retried until the message's lease has certainly ended; then the message is
redelivered anyway, and a warning is logged.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gwi_celery import forks
from gwi_celery.background import NEVER, Ticker
from gwi_celery.backoff import Backoff
from gwi_celery.brokers.pubsub.client import Client, pb
from gwi_celery.errors import BrokerUnavailable

logger = logging.getLogger(__name__)

#: Ids in one request, and their bytes: Pub/Sub takes 512 KB (an id has about 200).
_BATCH, _BATCH_BYTES = 1000, 480_000
#: Bytes of overhead per id in a request.
_FRAME = 4
#: Requests on their way at a time, and seconds after which the next one goes without waiting for them: a
#: place is free only once its ack has arrived.
_PIPELINED, _GATHER = 3, 0.003
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


@dataclass(frozen=True)
class _Item:
    #: projects/P/subscriptions/S
    subscription: str
    ack_id: str
    #: None: ack. Else: the message is redelivered after that many seconds.
    seconds: int | None
    #: Monotonic time after which sending it is pointless.
    until: float


def fitting(ack_ids: Iterable[str]) -> Iterator[list[str]]:
    """Split the ids into parts that each fit one request."""
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
    """Sends acks and nacks in the background, batched."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._changed = forks.condition()
        self._tickers = [Ticker(f"gwi-acks-{n}", self._send_some) for n in range(_PIPELINED)]
        self._waiting: deque[_Item] = deque()
        self._sending = 0
        self._pauses = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        #: Monotonic time before which nothing is retried.
        self._retry_at = 0.0

    def ack(self, subscription: str, ack_id: str, until: float) -> None:
        self._add(_Item(subscription, ack_id, None, until))

    def nack(self, subscription: str, ack_id: str, seconds: float, until: float) -> None:
        """Have it redelivered in ``seconds``, 0 to 600."""
        # Rounded up: a message must not be delivered before its time.
        whole = min(max(-int(-seconds // 1), 0), 600)
        self._add(_Item(subscription, ack_id, whole, until))

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
        for ticker in self._tickers:
            ticker.stop(1.0)

    def _add(self, item: _Item) -> None:
        if self._pid != os.getpid():  # forked: the waiting acks are the parent's to send
            self._reset()
        with self._changed:
            self._waiting.append(item)
            busy = self._sending > 0
        self._tickers[0].wake(self._retry_at)
        if busy:
            soon = time.monotonic()
            for n, ticker in enumerate(self._tickers[1:], 1):
                ticker.wake(max(self._retry_at, soon + n * _GATHER))

    def _send_some(self) -> float:
        """Send one request; returns the monotonic time of the next."""
        with self._changed:
            if not self._waiting:
                return NEVER
            if time.monotonic() < self._retry_at:
                return self._retry_at
            batch = self._take()
            self._sending += len(batch)
        failed: list[_Item] = []
        try:
            self._send(batch)
        except BrokerUnavailable as exc:
            failed = batch
            logger.debug("acks are sent again: %s", exc)
        except Exception as exc:
            # The subscription is gone, or the lease of an exactly-once message is.
            logger.warning(
                "%d acks or nacks on %s were refused, so these messages may be delivered again: %s",
                len(batch),
                batch[0].subscription,
                exc,
            )
        with self._changed:
            now = time.monotonic()
            hopeless = [item for item in failed if item.until <= now]
            self._waiting.extendleft(item for item in reversed(failed) if item.until > now)
            self._sending -= len(batch)
            self._changed.notify_all()
        if hopeless:
            logger.warning(
                "%d messages of %s could not be acked before their leases ran out: they will "
                "be delivered again",
                len(hopeless),
                hopeless[0].subscription,
            )
        if failed:
            self._retry_at = now + self._pauses.next()
        else:
            self._pauses.reset()
        return self._retry_at

    def _take(self) -> list[_Item]:
        """The oldest item, and those that fit in one request with it."""
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
