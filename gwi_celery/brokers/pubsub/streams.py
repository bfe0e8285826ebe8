"""StreamingPull: always open, or open while there is room.

A stream that is half-closed ends with all that Pub/Sub sent on it, so that nothing is left leased to
nobody; a pull that its client ends, be it by its deadline, goes on for a while at Pub/Sub and takes a
message along, which is then late by a lease. Pub/Sub closes every stream now and then, with an error,
and one on which its client says nothing for a minute: so that is no failure, and a heartbeat is sent.

A call of our own makes acks and extends leases; Pub/Sub counts them for the stream all the same.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import grpc

from gwi_celery.brokers.pubsub.client import Client, pb
from gwi_celery.brokers.pubsub.lines import MOST, Line
from gwi_celery.brokers.pubsub.topology import Source
from gwi_celery.errors import BrokerUnavailable, NotFound
from gwi_celery.gcp import fork_gate
from gwi_celery.jitter import jitter

if TYPE_CHECKING:
    from gwi_celery.brokers.pubsub.receiver import Intake, PubSubReceiver

logger = logging.getLogger(__name__)

#: Seconds for which what a stream without a limit brings is leased. Google's shortest: what a process
#: held that was killed is soon delivered again.
STREAM_LEASE = 10
#: Seconds that a half-closed stream may take to end.
ENDS_WITHIN = 1.0
#: Seconds between two heartbeats.
_HEARTBEAT = 30.0
#: Seconds after which the end of a stream that brought nothing is one of those that come to every stream.
_LIVED = 20.0
#: Seconds without a message after which a look ends.
_QUIET = 1.0
#: Seconds in which what is under way arrives.
_SETTLED = 0.1


class _Call:
    """One StreamingPull that is open."""

    def __init__(self, allowance: int) -> None:
        #: Messages that may be out at a time.
        self.allowance = allowance
        #: Ack ids of what it brought and what Pub/Sub may still count.
        self.brought: set[str] = set()
        self.opened = time.monotonic()
        self.worked = False
        self.call: Any = None
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def requests(self, first: Any) -> Iterator[Any]:
        yield first
        while True:
            try:
                request = self._requests.get(timeout=_HEARTBEAT)
            except queue.Empty:
                request = pb["StreamingPullRequest"]()
            if request is None:
                return
            yield request

    def half_close(self) -> None:
        """The server sends what it has, and ends."""
        self._requests.put(None)


def look(client: Client, path: str, limit: int, lease: float) -> list[Any]:
    """What is ready now, ``limit`` messages at most, leased for ``lease`` seconds.

    A stream that brings nothing for a second says that there is no more; an immediate pull may say so
    of any queue. Raises as :meth:`Client.call`.
    """
    while True:
        try:
            with fork_gate.call():
                return _gathered(client, path, limit, lease)
        except NotFound:
            if not client.settling(path):
                raise
        time.sleep(jitter(_SETTLED, 0.8, 1.2))


def _gathered(client: Client, path: str, limit: int, lease: float) -> list[Any]:
    opened = _Call(limit)
    opened.call = client.stream(opened.requests(_first(path, limit, lease)), path)
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def read() -> None:
        try:
            for response in opened.call:
                answers.put(response.received_messages)
            answers.put(None)
        except grpc.RpcError as exc:
            answers.put(exc)

    threading.Thread(target=read, name="gwi-look", daemon=True).start()
    found: list[Any] = []
    closing = False
    try:
        while True:
            if not closing and len(found) >= limit:
                closing = True
                opened.half_close()
            try:
                answer = answers.get(timeout=ENDS_WITHIN if closing else _QUIET)
            except queue.Empty:
                if closing:
                    return found
                closing = True
                opened.half_close()  # what is on its way comes yet
                continue
            if isinstance(answer, grpc.RpcError) and not (found or closing):
                raise client.error(answer, "StreamingPull", path) from answer
            if answer is None or isinstance(answer, grpc.RpcError):
                return found
            found += answer
    finally:
        opened.half_close()
        opened.call.cancel()


def _first(path: str, allowance: int, lease: float) -> Any:
    return pb["StreamingPullRequest"](
        subscription=path,
        stream_ack_deadline_seconds=round(lease),
        max_outstanding_messages=allowance,
    )


class Stream(Line):
    """Always open, each call read by a thread of its own. A queue's that has no limit."""

    ends_within = ENDS_WITHIN
    keeps = True

    def __init__(self, receiver: PubSubReceiver, intake: Intake, source: Source) -> None:
        super().__init__(receiver, intake, source)
        self.lease = float(STREAM_LEASE)
        self._current: _Call | None = None
        #: Those that are open, half-closed ones as well.
        self._calls: set[_Call] = set()
        self._paused = False

    def want(self, limit: int, now: float) -> None:
        with self._lock:
            if self._may_open(now) and self._current is None:
                self._open(MOST)

    def _may_open(self, now: float) -> bool:
        if self._stopped or self._paused:
            return False
        return self.retry_at is None or now >= self.retry_at

    def _open(self, allowance: int) -> None:
        """With the lock held."""
        if not fork_gate.try_enter():
            self._paused = True
            return
        opened = _Call(allowance)
        first = _first(self.source.path, allowance, self.lease or STREAM_LEASE)
        try:
            opened.call = self.receiver.broker.client.stream(
                opened.requests(first), self.source.path
            )
        except BaseException:
            fork_gate.leave()
            raise
        self._current = opened
        self._calls.add(opened)
        threading.Thread(target=self._read, args=(opened,), name="gwi-stream", daemon=True).start()

    def _read(self, opened: _Call) -> None:
        error: Exception | None = None
        try:
            for response in opened.call:
                opened.worked = True
                self._worked()
                self._take_in(opened, list(response.received_messages))
        except grpc.RpcError as exc:
            if exc.code() is not grpc.StatusCode.CANCELLED:
                error = self.receiver.broker.client.error(exc, "StreamingPull", self.source.path)
        except Exception as exc:
            logger.exception("receiving from %s failed", self.source.path)
            error = BrokerUnavailable(f"receiving from {self.source.path} failed: {exc}")
        finally:
            opened.half_close()  # ends the thread that sends the requests
            fork_gate.leave()
        with self._lock:
            self._calls.discard(opened)
            ours = self._current is opened
            if ours:
                self._current = None
            done = self._stopped or self._paused or not ours
        if done:
            return
        lived = opened.worked or time.monotonic() - opened.opened >= _LIVED
        if error is None or (isinstance(error, BrokerUnavailable) and lived):
            self.retry_at = time.monotonic()  # open the next one
            self.receiver.ring()
        else:
            self._broke(error)

    def _take_in(self, opened: _Call, received: list[Any]) -> None:
        self.intake.arrived(self, received)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            self._close()

    def _close(self) -> None:
        """With the lock held: no more than what is on its way."""
        current, self._current = self._current, None
        if current is not None:
            current.half_close()

    def idle(self) -> bool:
        return not self._calls

    def pause(self, waited: float) -> None:
        with self._lock:
            self._paused = True
            self._close()
            calls = list(self._calls)
        if waited > ENDS_WITHIN:
            for opened in calls:
                opened.call.cancel()

    def resume(self) -> None:
        with self._lock:
            self._paused = False
            if self._current is None and not self._stopped:
                self._reopen()

    def _reopen(self) -> None:
        """With the lock held: go on as before."""
        self._open(MOST)


class Flow(Stream):
    """Open while there is room, and never brings more than that: Pub/Sub counts what is out.

    What was parked counts as out as well, until its time: then the stream is opened anew.
    """

    keeps = False

    def __init__(self, receiver: PubSubReceiver, intake: Intake, source: Source) -> None:
        super().__init__(receiver, intake, source)
        self.lease = receiver.broker.topology.first_lease(source.queue)
        self._wanted = 0
        self._looks_again = False

    def want(self, limit: int, now: float) -> None:
        with self._lock:
            self._wanted = limit
            if not self._may_open(now):
                return
            current = self._current
            if current is None:
                self._open(limit)
            elif self._short(current):
                if self._parked(current):
                    self._open_anew()
                elif not self._looks_again:
                    # What it lacks may have arrived this very moment.
                    self._looks_again = True
                    self.receiver.broker.later(now + _SETTLED, self._look_again)

    def _short(self, opened: _Call) -> bool:
        """Whether it may bring less than half of what is wanted. More isn't worth a new stream."""
        return 2 * self._free(opened) < self._wanted

    def _free(self, opened: _Call) -> int:
        """How many more Pub/Sub may send."""
        return opened.allowance - len(self.receiver.broker.outstanding(opened.brought))

    def _parked(self, opened: _Call) -> bool:
        return self.receiver.broker.any_parked(opened.brought)

    def _look_again(self) -> None:
        with self._lock:
            self._looks_again = False
            current = self._current
            if current is not None and self._short(current):
                self._open_anew()

    def _open_anew(self) -> None:
        """With the lock held: it is full, and there is room: for who was told to take more, say."""
        self._close()
        if not (self._stopped or self._paused):
            self._open(self._wanted)

    def _take_in(self, opened: _Call, received: list[Any]) -> None:
        path = self.source.path
        with self._lock:
            opened.brought = self.receiver.broker.outstanding(opened.brought)
            opened.brought.update(f"{path} {item.ack_id}" for item in received)
            self._wanted -= len(received)
        ready = self.intake.arrived(self, received)
        with self._lock:
            self._wanted += len(received) - ready
            wanted = self._wanted
        if not ready and wanted > 0:  # nobody is woken, who would ask for more
            self.want(wanted, time.monotonic())

    def rest(self, *, unpolled: bool) -> None:
        with self._lock:
            self._wanted = 0
            current = self._current
            # Full of what its user has: it may stay open, and goes on with the next ack.
            if current is not None and (unpolled or self._free(current) > 0):
                self._close()

    def _reopen(self) -> None:
        if self._wanted > 0:
            self._open(self._wanted)
