"""StreamingPull: always open, or open while there is room.

A stream that is half-closed still brings everything that Pub/Sub sent on it, so no message is left leased
to nobody. When a client ends a pull, even by its deadline, Pub/Sub keeps it open for a while: it takes a
message, which is then late by a lease. Pub/Sub closes every stream now and then with an error, which is
no failure, and also a stream whose client is silent for a minute, so heartbeats are sent.

Acks and extensions are calls of their own; Pub/Sub counts them toward the stream nevertheless.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import grpc

from gwi_celery.brokers.pubsub.client import Client, pb
from gwi_celery.brokers.pubsub.lines import MOST, Line
from gwi_celery.brokers.pubsub.topology import Source
from gwi_celery.errors import BrokerUnavailable
from gwi_celery.gcp.stream import BidiStream

if TYPE_CHECKING:
    from gwi_celery.brokers.pubsub.arrivals import Arrivals
    from gwi_celery.brokers.pubsub.receiver import PubSubReceiver

logger = logging.getLogger(__name__)

#: Seconds for which the messages of a stream without a limit are leased. Google's shortest, so that what
#: a killed process held is redelivered soon.
STREAM_LEASE = 10
#: Seconds that a half-closed stream may take to end.
ENDS_WITHIN = 1.0
#: Seconds of silence after which a heartbeat is sent.
_HEARTBEAT = 30.0
#: Seconds after which a stream that brought nothing has not failed, but ended as every stream does.
_LIVED = 20.0
#: Seconds within which messages that were already sent arrive.
_SETTLED = 0.1


class _Call:
    """One StreamingPull that is open."""

    def __init__(self, allowance: int) -> None:
        #: The most messages that may be outstanding.
        self.allowance = allowance
        #: Ack ids of what it brought and Pub/Sub may still count as outstanding.
        self.brought: set[str] = set()
        self.opened = time.monotonic()
        self.worked = False
        self.stream: BidiStream


def open_stream(
    client: Client, path: str, allowance: int, lease: float, **callbacks: Any
) -> BidiStream | None:
    """A StreamingPull, with heartbeats; None while a fork is under way. See :meth:`BidiStream.open`."""
    first = pb["StreamingPullRequest"](
        subscription=path,
        stream_ack_deadline_seconds=round(lease),
        max_outstanding_messages=allowance,
    )
    return BidiStream.open(
        lambda requests: client.stream(requests, path),
        [first],
        thread_name="gwi-stream",
        heartbeat=(_HEARTBEAT, pb["StreamingPullRequest"]()),
        **callbacks,
    )


class Stream(Line):
    """Always open, for a queue whose reader has no limit."""

    ends_within = ENDS_WITHIN
    keeps = True

    def __init__(self, receiver: PubSubReceiver, arrivals: Arrivals, source: Source) -> None:
        super().__init__(receiver, arrivals, source)
        self.lease = float(STREAM_LEASE)
        self._current: _Call | None = None
        #: All that are open, half-closed ones as well.
        self._calls: set[_Call] = set()
        self._paused = False

    def fetch(self, limit: int, now: float) -> None:
        with self._lock:
            if self._may_open(now) and self._current is None:
                self._open(MOST)

    def _may_open(self, now: float) -> bool:
        if self._stopped or self._paused:
            return False
        return self.retry_at is None or now >= self.retry_at

    def _open(self, allowance: int) -> None:
        """With the lock held."""
        opened = _Call(allowance)
        self._current = opened
        self._calls.add(opened)
        stream = None
        try:
            stream = open_stream(
                self.receiver.broker.client,
                self.source.path,
                allowance,
                self.lease or STREAM_LEASE,
                on_response=lambda response: self._answered(opened, response),
                on_end=lambda error: self._ended(opened, error),
            )
        finally:
            if stream is None:
                self._current = None
                self._calls.discard(opened)
        if stream is None:
            self._paused = True  # for the fork that is under way
        else:
            opened.stream = stream
            self.retry_at = None

    def _answered(self, opened: _Call, response: Any) -> None:
        opened.worked = True
        self._worked()
        self._take_in(opened, list(response.received_messages))

    def _take_in(self, opened: _Call, received: list[Any]) -> None:
        self.arrivals.arrived(self, received)

    def _ended(self, opened: _Call, error: Exception | None) -> None:
        with self._lock:
            self._calls.discard(opened)
            ours = self._current is opened
            if ours:
                self._current = None
            if self._stopped or self._paused or not ours:
                return
        if isinstance(error, grpc.RpcError):
            error = self.receiver.broker.client.error(error, "StreamingPull", self.source.path)
        elif error is not None:
            logger.error("receiving from %s failed", self.source.path, exc_info=error)
            error = BrokerUnavailable(f"receiving from {self.source.path} failed: {error}")
        lived = opened.worked or time.monotonic() - opened.opened >= _LIVED
        if error is None or (isinstance(error, BrokerUnavailable) and lived):
            self.retry_at = time.monotonic()  # open the next one
            self.receiver.ring()
        else:
            self._broke(error)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            self._close()

    def _close(self) -> None:
        """Half-close the stream: what was already sent still arrives. The lock is held."""
        current, self._current = self._current, None
        if current is not None:
            current.stream.half_close()

    def idle(self) -> bool:
        return not self._calls

    def pause(self, waited: float) -> None:
        with self._lock:
            self._paused = True
            self._close()
            calls = list(self._calls)
        if waited > ENDS_WITHIN:
            for opened in calls:
                opened.stream.cancel()

    def resume(self) -> None:
        with self._lock:
            self._paused = False
            if self._current is None and not self._stopped:
                self._reopen()

    def _reopen(self) -> None:
        """Go on as before a fork. The lock is held."""
        self._open(MOST)


class Flow(Stream):
    """Open while there is room, and never brings more than that: Pub/Sub counts what is outstanding.

    It counts deferred messages too, until they are due. If they take the room, a new stream is opened.
    """

    keeps = False

    def __init__(self, receiver: PubSubReceiver, arrivals: Arrivals, source: Source) -> None:
        super().__init__(receiver, arrivals, source)
        self.lease = receiver.broker.topology.first_lease(source.queue)
        self._looks_again = False

    def due(self) -> float | None:
        return self.retry_at if self._wanted > 0 else None

    def fetch(self, limit: int, now: float) -> None:
        with self._lock:
            self._wanted = limit
            if not self._may_open(now):
                return
            current = self._current
            if current is None:
                self._open(limit)
            elif self._short(current):
                if self.receiver.broker.deliveries.any_deferred(current.brought):
                    self._open_anew()
                elif not self._looks_again:
                    # What it lacks may have arrived this very moment.
                    self._looks_again = True
                    self.receiver.broker.timers.run(self._look_again, now + _SETTLED)

    def _short(self, opened: _Call) -> bool:
        """Whether it may bring less than half of what is wanted. More isn't worth a new stream."""
        return 2 * self._free(opened) < self._wanted

    def _free(self, opened: _Call) -> int:
        """How many more messages Pub/Sub may send."""
        return opened.allowance - len(self.receiver.broker.deliveries.outstanding(opened.brought))

    def _look_again(self) -> None:
        with self._lock:
            self._looks_again = False
            current = self._current
            if current is not None and self._short(current):
                self._open_anew()

    def _open_anew(self) -> None:
        """Replace a stream that is full although there is room. The lock is held.

        As when the consumer's limit was raised.
        """
        self._close()
        if not (self._stopped or self._paused):
            self._open(self._wanted)

    def _take_in(self, opened: _Call, received: list[Any]) -> None:
        path = self.source.path
        with self._lock:
            opened.brought = self.receiver.broker.deliveries.outstanding(opened.brought)
            opened.brought.update(f"{path} {item.ack_id}" for item in received)
            self._wanted -= len(received)
        ready = self.arrivals.arrived(self, received)
        with self._lock:
            self._wanted += len(received) - ready
            wanted = self._wanted
        if not ready and wanted > 0:  # nobody is woken to ask for more
            self.fetch(wanted, time.monotonic())

    def stop_fetching(self, *, unpolled: bool) -> None:
        with self._lock:
            self.filled()
            current = self._current
            # If its consumer holds all that it may send, it stays open: it sends more after an ack.
            if current is not None and (unpolled or self._free(current) > 0):
                self._close()

    def _reopen(self) -> None:
        if self._wanted > 0:
            self._open(self._wanted)
