"""How messages come in: long pulls where the number matters, streams where it doesn't.

Measured on the emulator (0.8.20), and by what Google documents:

- A unary pull of one takes 0.3 to 0.6 ms when there is something, and gives exactly the number
  asked for, so that a worker with a prefetch of one holds one message. A StreamingPull delivers
  batches of 100 whatever limit it is given, and what is handed back counts as a delivery.
- Blocked, both get a new message after 0 to 50 ms: that is how often the emulator looks.
- A pull that is cancelled lives on in the emulator until its deadline, and takes one message with
  it. A stream that is half-closed ends within 50 ms and takes none.

So a queue whose consumer has a prefetch limit is pulled from, one call in flight for each of its
subscriptions and only while there is room; it waits up to :data:`PULL_SECONDS`. On the emulator, where a
cancelled pull does harm and a blocked one is late, it is asked at short intervals while there is
traffic. Queues without a limit (replies, remote control, events), which hold little and are waited
for, are streamed.

Pulls are gRPC futures, whose callbacks run on gRPC's threads. No call is in flight when the process
forks.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import grpc

from gwi_celery import forks
from gwi_celery.backoff import Backoff
from gwi_celery.brokers.pubsub.client import pb
from gwi_celery.brokers.pubsub.topology import Source
from gwi_celery.errors import BrokerError, BrokerUnavailable, NotFound
from gwi_celery.gcp import fork_gate
from gwi_celery.gcp.stream import BidiStream

if TYPE_CHECKING:
    from gwi_celery.brokers.pubsub.arrivals import Arrivals
    from gwi_celery.brokers.pubsub.receiver import PubSubReceiver

logger = logging.getLogger(__name__)

#: Seconds one pull waits at Pub/Sub.
PULL_SECONDS = 25.0
#: The same on an emulator that has been idle. It answers a second before the deadline.
EMULATOR_PULL_SECONDS = 12.0
#: Seconds after a message for which an emulator is asked what it has now, again and again, rather than
#: to wait: its own look comes every 50 ms only. Nothing has to be cancelled then, nor is a pull left
#: behind by a killed worker.
EMULATOR_LATELY = 3.0
#: Seconds between two such questions: at first, and how fast they get rarer.
_ASK_EVERY, _ASK_RARER = 0.003, 0.008
#: Seconds after which a pull has said what was there when it came.
_PRESENT = 0.05
#: Seconds that such a pull may take to end by itself.
ENDS_BY_ITSELF = 0.2
#: Seconds that a half-closed stream may take to end.
_STREAM_ENDS = 1.0
#: Messages in one pull or in the hands of one stream at most.
MOST = 100

#: Seconds for which what a stream brings is leased. Google's shortest: what a process held that was
#: killed is soon delivered again.
STREAM_LEASE = 10

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


class Line:
    """One subscription, however it is read. A LongCall of :mod:`gwi_celery.gcp.fork_gate`."""

    def __init__(self, receiver: PubSubReceiver, arrivals: Arrivals, source: Source) -> None:
        self.receiver = receiver
        self.arrivals = arrivals
        self.source = source
        #: Monotonic time of the next try after an error; None: there was none.
        self.retry_at: float | None = None
        #: Monotonic time at which to ask an emulator again; None: it will answer by itself.
        self.ask_at: float | None = None
        self._pauses = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        # A future that is done already calls back at once, on the thread that asks it to.
        self._lock = forks.rlock()
        self._stopped = False
        fork_gate.register(self)

    #: Whether a look is on its way.
    probing = False
    #: Seconds for which what it brings is leased; None: the subscription's own ack deadline.
    lease: float | None = None

    def fetch(self, limit: int, now: float) -> None:
        raise NotImplementedError  # each kind's own

    def probe(self, limit: int) -> bool:
        """Ask what is there now; False if this line is busy, or can't."""
        return False

    def stop_fetching(self) -> None:
        """There is no room: ask for nothing until told what is wanted."""

    def stop(self) -> None:
        raise NotImplementedError  # each kind's own

    def idle(self) -> bool:
        """Whether no call is in flight."""
        raise NotImplementedError  # each kind's own

    def pause(self, waited: float) -> None:
        raise NotImplementedError  # each kind's own

    def resume(self) -> None:
        raise NotImplementedError  # each kind's own

    def retry_soon(self) -> None:
        """What it reads from may be there again."""
        if self.retry_at is not None:
            self.retry_at = min(self.retry_at, time.monotonic())

    def _worked(self) -> None:
        if self.retry_at is not None:
            logger.info("receiving from %s again", self.source.path)
        self.retry_at = None
        self._pauses.reset()

    def _broke(self, error: Exception) -> None:
        """Try again later, or tell whoever polls that it is no use."""
        missing = isinstance(error, NotFound)
        if not missing and not isinstance(error, BrokerUnavailable):
            self.arrivals.failed(error)
            return
        if self.retry_at is None:
            logger.warning("can't receive from %s, trying again: %s", self.source.path, error)
        self.retry_at = time.monotonic() + self._pauses.next()
        if missing:
            self.receiver.broker.recover(self.source, then=self.receiver.ring)
        else:
            self.receiver.ring()


class Pull(Line):
    """Long unary pulls, one at a time.

    ``patient``: hardly anything comes this way, so that an emulator is not asked again and again.
    """

    def __init__(
        self, receiver: PubSubReceiver, arrivals: Arrivals, source: Source, *, patient: bool = False
    ) -> None:
        super().__init__(receiver, arrivals, source)
        self._patient = patient
        self._future: Any = None
        self._wanted = 0
        self._paused = False
        self._started = self._active = time.monotonic()
        #: Whether the call in flight asks for what is there, and so ends by itself.
        self._asks = False

    def fetch(self, limit: int, now: float) -> None:
        with self._lock:
            self._wanted = limit
            if self._future is not None or self._stopped or self._paused:
                return
            if self.retry_at is not None and now < self.retry_at:
                return
            if self.ask_at is not None and now < self.ask_at:
                return
            self._start()

    def probe(self, limit: int) -> bool:
        with self._lock:
            if self._future is not None or self._stopped or self._paused:
                return False
            if self.retry_at is not None:
                return False
            self._wanted = limit
            self.probing = True
            self._start()
            return True

    def _start(self) -> None:
        """With the lock held. During a fork nothing starts: resume() does."""
        if not fork_gate.try_enter():
            self._paused = True
            return
        self._started = time.monotonic()
        seconds = self._plan(self._started)
        request = pb["PullRequest"](
            subscription=self.source.path,
            max_messages=self._wanted,
            return_immediately=self._asks,
        )
        try:
            self._future = self.receiver.broker.client.start(
                "Pull", request, self.source.path, seconds
            )
        except BaseException:
            fork_gate.leave()
            raise
        self._future.add_done_callback(self._done)

    def _ask(self) -> None:
        """Once more, if there is still room and no message came."""
        with self._lock:
            due = self.ask_at is not None and time.monotonic() >= self.ask_at
            busy = self._future is not None or self._stopped or self._paused
            if due and not busy and self._wanted > 0:
                self._start()

    def _plan(self, now: float) -> float:
        """How the next call is made; its deadline, seconds."""
        idle = now - self._active
        asks = self.receiver.broker.options.lax and not self._patient
        lately = asks and idle < EMULATOR_LATELY
        self._asks = self.probing or lately
        again = lately and not self.probing
        self.ask_at = now + _ASK_EVERY + _ASK_RARER * idle if again else None
        if not self.receiver.broker.options.lax:
            return PULL_SECONDS
        return min(2 * max(idle, EMULATOR_LATELY), EMULATOR_PULL_SECONDS)

    def _done(self, future: Any) -> None:
        # On gRPC's thread, which prints what is raised here and goes on.
        try:
            self._take_in(future)
        except Exception as exc:
            logger.exception("receiving from %s failed", self.source.path)
            self.arrivals.failed(BrokerError(f"receiving from {self.source.path} failed: {exc}"))

    def _take_in(self, future: Any) -> None:
        response, error = None, None
        try:
            response = future.result()
        except grpc.FutureCancelledError:
            pass
        except grpc.RpcError as exc:
            if exc.code() not in (
                grpc.StatusCode.DEADLINE_EXCEEDED,  # nothing came
                grpc.StatusCode.CANCELLED,
            ):
                error = self.receiver.broker.client.error(exc, "Pull", self.source.path)
        finally:
            fork_gate.leave()
        received = [] if response is None else list(response.received_messages)
        with self._lock:
            # Before its user is woken, who may want more at once.
            probed, self.probing, self._future = self.probing, False, None
            asked = self._asks and not probed
            if received:
                self._active, self.ask_at = time.monotonic(), None
            if error is None:
                self._worked()
        arrived = self.arrivals.arrived(self, received) if received else 0
        with self._lock:
            stays = self._future is None and not self._stopped and not self._paused
            idle = error is None and not arrived and stays
            # Nothing for the loop to do: go on waiting without it. Also at once after a message that
            # was not for now, or that a filter should have kept away: the next may be.
            again = idle and self._wanted > 0 and (bool(received) or not (probed or asked))
            if again:
                self.probing = probed
                self._start()
            elif idle and asked and self.ask_at is not None and self._wanted > 0:
                self.receiver.broker.later(self.ask_at, self._ask)
        if idle and not again and probed:
            self.arrivals.probed(self, self._wanted)
        if error is not None and not self._stopped:
            self._broke(error)

    def stop_fetching(self) -> None:
        with self._lock:
            self._wanted = 0
        if not self.receiver.broker.options.lax:  # there a cancelled pull lives on
            self._cancel(0.0)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
        self._cancel(0.0)

    def idle(self) -> bool:
        return self._future is None

    def pause(self, waited: float) -> None:
        with self._lock:
            self._paused = True
        self._cancel(waited)

    def _cancel(self, waited: float) -> None:
        """Cancel what is in flight, unless it is about to end by itself, with what it brings."""
        with self._lock:
            future = self._future
            age = time.monotonic() - self._started
            ends = self._asks or age < _PRESENT
        if future is not None and (waited > ENDS_BY_ITSELF or not ends):
            future.cancel()

    def resume(self) -> None:
        with self._lock:
            self._paused = False
            if self._future is None and not self._stopped and self._wanted > 0:
                self._start()


class Stream(Line):
    """A StreamingPull that is always open, read by a thread of its own."""

    lease = float(STREAM_LEASE)

    def __init__(self, receiver: PubSubReceiver, arrivals: Arrivals, source: Source) -> None:
        super().__init__(receiver, arrivals, source)
        self._stream: BidiStream | None = None
        self._paused = False

    def fetch(self, limit: int, now: float) -> None:
        with self._lock:
            if self._stream is not None or self._stopped or self._paused:
                return
            if self.retry_at is not None and now < self.retry_at:
                return
            self._open()

    def _open(self) -> None:
        """With the lock held."""
        path = self.source.path
        first = pb["StreamingPullRequest"](
            subscription=path,
            stream_ack_deadline_seconds=STREAM_LEASE,
            max_outstanding_messages=MOST,
        )
        self._stream = BidiStream.open(
            lambda requests: self.receiver.broker.client.stream(requests, path),
            [first],
            on_response=self._take_in,
            on_end=self._ended,
            thread_name="gwi-stream",
        )
        if self._stream is None:
            self._paused = True

    def _take_in(self, response: Any) -> None:
        self._worked()
        self.arrivals.arrived(self, list(response.received_messages))

    def _ended(self, error: Exception | None) -> None:
        with self._lock:
            self._stream = None
            done = self._stopped or self._paused
        if isinstance(error, grpc.RpcError):
            error = self.receiver.broker.client.error(error, "StreamingPull", self.source.path)
        elif error is not None:
            logger.error("receiving from %s failed", self.source.path, exc_info=error)
            error = BrokerUnavailable(f"receiving from {self.source.path} failed: {error}")
        if done:
            return
        if error is None:  # Pub/Sub ends every stream now and then: open the next one
            self.retry_at = time.monotonic()
            self.receiver.ring()
        else:
            self._broke(error)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            stream = self._stream
        if stream is not None:
            stream.half_close()

    def idle(self) -> bool:
        return self._stream is None

    def pause(self, waited: float) -> None:
        with self._lock:
            self._paused = True
            stream = self._stream
        if stream is None:
            return
        if waited <= 0:
            stream.half_close()
        elif waited > _STREAM_ENDS:
            stream.cancel()

    def resume(self) -> None:
        with self._lock:
            self._paused = False
            if self._stream is None and not self._stopped:
                self._open()
