"""Acks and nacks: sent without waiting for an answer, batched, and retried in the background.

Several requests may be in flight: Pub/Sub sends the next message only once the ack of an earlier one has
arrived, so no ack may wait for the answer to another. While a request is in flight a busy worker's acks
accumulate for some milliseconds, so that it makes fewer requests than it has messages. Two kinds are sent
at once: the ack of the last message that the worker held, and, where answers take longer than that, every
ack, because each ack that waits keeps a place empty (``python -m benchmarks twin`` measures that at 20 ms
and prefetch 4). There the thread that acks sends them, as waking another takes longer. All else is sent
by a thread that each process has for each broker, so that the worker goes on meanwhile.

What fails is retried until the message's lease has certainly ended, as the lease's extension is: after a
temporary failure, and while a permission or the credentials are missing, which somebody may give back.
Then the message is redelivered anyway, and a warning is logged. Only what the server can never take is
dropped at once: the lease of an exactly-once message that has run out, a malformed request. Each
subscription has pauses of its own, as permissions are granted on each.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gwi_celery import forks, shield
from gwi_celery.background import NEVER, Ticker
from gwi_celery.backoff import Backoff
from gwi_celery.brokers.pubsub.client import AckIdsRefused, Client, pb
from gwi_celery.errors import BrokerUnavailable, BrokerUnusable, NotFound

logger = logging.getLogger(__name__)

#: Ids in one request, and their bytes: Pub/Sub takes 512 KB (an id has about 200).
_BATCH, _BATCH_BYTES = 1000, 480_000
#: Bytes of overhead per id in a request.
_FRAME = 4
#: Requests in flight at a time.
_PIPELINED = 8
#: Seconds that acks accumulate while a request is in flight and the worker has other messages.
_GATHER = 0.003
#: Seconds: where answers take longer than this on average, acks don't accumulate.
_FAR = 0.006
#: Weight of the latest answer in that average.
_WEIGHT = 0.1
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


@dataclass(frozen=True)
class _Item:
    #: projects/P/subscriptions/S
    subscription: str
    ack_id: str
    #: None: an ack. Otherwise a nack: the message is redelivered after that many seconds.
    seconds: int | None
    #: Monotonic time after which sending it is pointless.
    until: float


@dataclass
class _Outage:
    """A subscription whose acks fail for now."""

    pauses: Backoff = field(default_factory=lambda: Backoff(_FIRST_PAUSE, _LONGEST_PAUSE))
    #: Monotonic time before which nothing is sent to it.
    retry_at: float = 0.0
    #: Whether it was logged what is missing.
    told: bool = False


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
        self._ticker = Ticker("gwi-acks", self._send_some)
        self._waiting: deque[_Item] = deque()
        #: Monotonic time at which the waiting ones are sent.
        self._due = NEVER
        #: Requests in flight, and the items in them.
        self._requests = self._sending = 0
        #: Seconds that an answer takes, on average.
        self._answer_seconds = 0.0
        #: By subscription.
        self._outages: dict[str, _Outage] = {}

    def ack(self, *leases: tuple[str, str, float], last: bool = False) -> None:
        """Ack messages: of each its subscription, ack id, and the monotonic time until which to retry.

        ``last``: the worker holds no others.
        """
        at = self._add([_Item(path, id, None, until) for path, id, until in leases], last)
        if self._answer_seconds > _FAR:
            with shield.section():
                at = self._send_some(wait=False)
        if at < NEVER:
            self._ticker.wake(at)

    def nack(
        self, subscription: str, ack_id: str, seconds: float, until: float, *, last: bool = False
    ) -> None:
        """Have a message redelivered in ``seconds``, 0 to 600. Otherwise as :meth:`ack`."""
        # Rounded up: a message must not be delivered before its time.
        whole = min(max(-int(-seconds // 1), 0), 600)
        self._ticker.wake(self._add([_Item(subscription, ack_id, whole, until)], last))

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
        """Flush, then end the thread. The next ack starts it again."""
        if self._pid != os.getpid():
            return
        if not self.flush(timeout):
            logger.warning(
                "%d acks could not be sent in %g s: their messages will be redelivered",
                len(self._waiting) + self._sending,
                timeout,
            )
        self._ticker.stop(1.0)

    def _add(self, items: list[_Item], last: bool) -> float:
        """Keep them until they are sent; returns the monotonic time of that."""
        if self._pid != os.getpid():  # forked: the waiting acks are the parent's to send
            self._reset()
        with self._changed:
            self._waiting.extend(items)
            soon = last or not self._requests or self._answer_seconds > _FAR
            self._due = min(self._due, 0.0 if soon else time.monotonic() + _GATHER)
            return max(self._due, self._next_retry())

    def _send_some(self, *, wait: bool = True) -> float:
        """Send one request if it is time; returns the monotonic time of the next.

        ``wait`` until a fork that is under way is over. A thread that a fork may wait for must not.
        """
        with self._changed:
            if not self._waiting or self._requests >= _PIPELINED:
                return NEVER  # an answer, or the next item, wakes the thread
            now = time.monotonic()
            at = max(self._due, self._next_retry())
            if now < at:
                return at
            batch = self._take(now)
            self._requests += 1
            self._sending += len(batch)
            self._due = 0.0 if self._waiting else NEVER
            due = self._due
        try:
            rpc, request, subscription = _request(batch)
            future = self._client.begin(rpc, request, subscription, wait=wait)
        except Exception as exc:
            self._answered(batch, exc)
        else:
            future.add_done_callback(partial(self._done, batch, rpc, time.monotonic()))
        return due

    def _done(self, batch: list[_Item], rpc: str, sent_at: float, future: Any) -> None:
        """On gRPC's thread."""
        took = time.monotonic() - sent_at
        self._answer_seconds += (took - self._answer_seconds) * _WEIGHT
        error = future.exception()
        if error is not None:
            error = self._client.error(error, rpc, batch[0].subscription)
        self._answered(batch, error)

    def _answered(self, batch: list[_Item], error: Exception | None) -> None:
        subscription = batch[0].subscription
        failed: list[_Item] = []
        refused: Sequence[_Item] = ()
        new = isinstance(error, NotFound) and self._client.settling(subscription)
        if isinstance(error, AckIdsRefused):  # those that it doesn't name are settled
            failed = [item for item in batch if item.ack_id in error.retryable]
            refused = [item for item in batch if item.ack_id in error.lost]
        elif new or isinstance(error, (BrokerUnavailable, BrokerUnusable)):
            failed = batch
        elif isinstance(error, NotFound):
            # Its messages are deleted too: a reply to a connection that has ended, say.
            logger.debug("%d acks or nacks of a deleted subscription: %s", len(batch), error)
        elif error is not None:
            refused = batch
        if refused:
            # The leases of exactly-once messages have run out, or the request is not a valid one.
            logger.warning(
                "%d acks or nacks on %s were refused, so these messages may be redelivered: %s",
                len(refused),
                subscription,
                error,
            )
        with self._changed:
            now = time.monotonic()
            hopeless = [item for item in failed if item.until <= now]
            self._waiting.extendleft(item for item in reversed(failed) if item.until > now)
            ended = unusable = False
            if failed:
                outage = self._outages.setdefault(subscription, _Outage())
                if now >= outage.retry_at:  # else it is the same failure
                    outage.retry_at = now + outage.pauses.next()
                unusable = isinstance(error, BrokerUnusable) and not outage.told
                outage.told = outage.told or unusable
            elif (over := self._outages.pop(subscription, None)) is not None:
                ended = over.told and error is None
            self._requests -= 1
            self._sending -= len(batch)
            if self._waiting:
                self._due = 0.0
                self._ticker.wake(self._next_retry())
            self._changed.notify_all()
        if unusable:
            logger.warning(
                "acks and nacks on %s fail, now %d, and are retried until the messages' leases end: %s",
                subscription,
                len(failed),
                error,
            )
        elif failed:
            logger.debug("%d acks or nacks failed and are retried: %s", len(failed), error)
        if ended:
            logger.info("acks on %s are taken again", subscription)
        if hopeless:
            logger.warning(
                "%d messages of %s could not be acked before their leases ran out: they will be "
                "redelivered",
                len(hopeless),
                subscription,
            )

    def _retry_at(self, subscription: str) -> float:
        """Monotonic time before which nothing is sent to it."""
        outage = self._outages.get(subscription)
        return 0.0 if outage is None else outage.retry_at

    def _next_retry(self) -> float:
        """Monotonic time from which one of the waiting items may be sent."""
        if not self._outages:
            return 0.0
        return min(map(self._retry_at, {item.subscription for item in self._waiting}))

    def _take(self, now: float) -> list[_Item]:
        """Take the oldest item that may be sent, and those that fit into one request with it."""
        first: _Item | None = None
        batch: list[_Item] = []
        rest: deque[_Item] = deque()
        size = 0
        while self._waiting and len(batch) < _BATCH and size < _BATCH_BYTES:
            item = self._waiting.popleft()
            if first is None and not (self._outages and self._retry_at(item.subscription) > now):
                first = item
            same = first is not None and (
                (item.subscription, item.seconds) == (first.subscription, first.seconds)
            )
            size += same * (len(item.ack_id) + _FRAME)
            (batch if same else rest).append(item)
        rest.extend(self._waiting)
        self._waiting = rest
        return batch


def _request(batch: list[_Item]) -> tuple[str, Any, str]:
    """Name of the RPC, its request and the subscription."""
    subscription, seconds = batch[0].subscription, batch[0].seconds
    told = {"subscription": subscription, "ack_ids": [item.ack_id for item in batch]}
    if seconds is None:
        return "Acknowledge", pb["AcknowledgeRequest"](**told), subscription
    request = pb["ModifyAckDeadlineRequest"](**told, ack_deadline_seconds=seconds)
    return "ModifyAckDeadline", request, subscription
