"""How messages arrive: by streams, or by long pulls where there is no other way.

Measured on the emulator (0.8.20) and on the twin, and by what Google documents:

- A StreamingPull that Pub/Sub limits to the room there is (:mod:`.streams`) holds no more than its
  worker can take, and can be ended without a loss. So that is how a task queue is read.
- The emulator sends batches of 100 on a stream whatever limit it is given. There a queue is pulled: a
  unary pull of one message takes 0.3 to 0.6 ms when there is one, and never brings more than was asked.
- A queue with ``priority_levels`` is pulled too: what to ask a level for depends on what the levels
  above it have.
- Pub/Sub holds an empty pull for 90 s, the emulator until its deadline. A pull that its client ends
  earlier goes on at the server: it takes the next message, which stays leased to nobody. So a pull's
  deadline is later than that, and only a fork or a stop ends one early.

Where a consumer with a prefetch limit pulls, it makes one call at a time, and only while there is room.
The emulator answers a waiting pull up to 50 ms late, so there the consumer asks at short intervals while
there is traffic. Queues without a limit (replies, remote control, events) hold little, and somebody waits
for their messages: they are streamed.

Pulls are gRPC futures, whose callbacks run on gRPC's threads. No call is in flight when the process
forks.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import grpc

from gwi_celery import forks
from gwi_celery.backoff import Backoff, jitter
from gwi_celery.brokers.pubsub.client import pb
from gwi_celery.brokers.pubsub.topology import Source
from gwi_celery.errors import BrokerError, BrokerUnavailable, NotFound
from gwi_celery.gcp import fork_gate

if TYPE_CHECKING:
    from gwi_celery.brokers.pubsub.arrivals import Arrivals
    from gwi_celery.brokers.pubsub.receiver import PubSubReceiver

logger = logging.getLogger(__name__)

#: Seconds that one pull waits for its answer: longer than the 90 for which Pub/Sub holds it.
PULL_SECONDS = 120.0
#: The same on an emulator that has been idle. It answers a second before the deadline.
EMULATOR_PULL_SECONDS = 12.0
#: Seconds after a message during which an emulator gets immediate pulls again and again, rather than one
#: that waits, which it serves only every 50 ms. An immediate pull needs no cancelling, and a killed
#: worker leaves none behind.
EMULATOR_LATELY = 3.0
#: Seconds between two of them: the first pause, and by how much it grows with each idle second.
_ASK_EVERY, _ASK_RARER = 0.003, 0.008
#: Seconds after which a pull has answered with what was there when it arrived.
_PRESENT = 0.05
#: Empty answers after which a level counts as empty, because an immediate pull may answer with nothing
#: although there is something (the emulator's never does). Fewer for one that was empty when last asked.
_EMPTY_AFTER, _STILL_EMPTY_AFTER = 3, 2
#: Seconds that an immediate pull may take before it ends by itself.
ENDS_BY_ITSELF = 0.2
#: The most messages that one pull asks for, or that one stream may have outstanding.
MOST = 100

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


class Line:
    """One subscription, however it is read. A LongCall of :mod:`gwi_celery.gcp.fork_gate`."""

    def __init__(self, receiver: PubSubReceiver, arrivals: Arrivals, source: Source) -> None:
        self.receiver = receiver
        self.arrivals = arrivals
        self.source = source
        #: Monotonic time of the next try after an error; None: it is under way, or there was no error.
        self.retry_at: float | None = None
        #: Monotonic time at which to ask an emulator again; None: it will answer by itself.
        self.ask_at: float | None = None
        #: How many more messages there is room for. Streams without a limit ignore it.
        self._wanted = 0
        #: Whether it was logged that nothing can be received.
        self._warned = False
        self._pauses = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        # A future that is done already calls back at once, on the thread that asks it to.
        self._lock = forks.rlock()
        self._stopped = False
        fork_gate.register(self)

    #: Seconds that its calls may take to end once they are cancelled.
    ends_within = ENDS_BY_ITSELF
    #: Whether messages that wait for long are kept: given back, they would return on the same stream.
    keeps = False
    #: Whether a probe is under way.
    probing = False
    #: Seconds for which what it brings is leased; None: the subscription's own ack deadline.
    lease: float | None = None

    def due(self) -> float | None:
        """Monotonic time at which :meth:`fetch` must be called again; None: nothing is due."""
        return self.retry_at

    def fetch(self, limit: int, now: float) -> None:
        """There is room for ``limit`` messages: ask for them, unless they were asked for already."""
        raise NotImplementedError  # each kind's own

    def probe(self, limit: int) -> bool:
        """Ask for what is ready now; False if this line is busy, or can't ask."""
        return False

    def filled(self) -> None:
        """There is no room but for what has arrived: more is wanted once :meth:`fetch` is called."""
        with self._lock:
            self._wanted = 0

    def stop_fetching(self, *, unpolled: bool) -> None:
        """There is no room, not even for all that has arrived: bring nothing until :meth:`fetch`.

        Args:
            unpolled: Whether messages that it brought are being given back.
        """

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
        """Its subscription may exist again: don't wait for the end of the pause."""
        if self.retry_at is not None:
            self.retry_at = min(self.retry_at, time.monotonic())

    def _worked(self) -> None:
        if self._warned:
            logger.info("receiving from %s again", self.source.path)
        self._warned = False
        self.retry_at = None
        self._pauses.reset()

    def _broke(self, error: Exception) -> None:
        """Retry later. The next poll raises an error that would last."""
        missing = isinstance(error, NotFound)
        if missing and self.receiver.broker.client.settling(self.source.path):
            self.retry_at = time.monotonic() + jitter(_FIRST_PAUSE, 0.8, 1.2)
            self.receiver.ring()
            return
        if not missing and not isinstance(error, BrokerUnavailable):
            self.arrivals.failed(error)
            return
        if not self._warned:
            self._warned = True
            logger.warning("can't receive from %s, trying again: %s", self.source.path, error)
        self.retry_at = time.monotonic() + self._pauses.next()
        if missing:
            self.receiver.broker.receivers.recover(self.source, then=self.receiver.ring)
        else:
            self.receiver.ring()


class Pull(Line):
    """Long unary pulls, one at a time.

    ``patient``: few messages come this way, so that an emulator is not asked again and again.
    """

    def __init__(
        self, receiver: PubSubReceiver, arrivals: Arrivals, source: Source, *, patient: bool = False
    ) -> None:
        super().__init__(receiver, arrivals, source)
        self._patient = patient
        self._future: Any = None
        self._paused = False
        self._started = self._active = time.monotonic()
        #: How many probes in a row found nothing.
        self._empty = 0
        #: Whether the level counted as empty when it was last asked.
        self._was_empty = False
        #: Whether the call in flight asks only for what is ready, and so ends by itself.
        self._asks = False

    def due(self) -> float | None:
        return self.retry_at if self._wanted > 0 else None

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
            if self.retry_at is not None and time.monotonic() < self.retry_at:
                return False
            self._wanted = limit
            self._empty = 0
            self.probing = True
            self._start()
            return True

    def _start(self) -> None:
        """With the lock held. During a fork nothing starts, until :meth:`resume`."""
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
            self.probing = False
            fork_gate.leave()
            raise
        self.retry_at = None
        self._future.add_done_callback(self._done)

    def _ask(self) -> None:
        """Pull again, if there is still room and no message came."""
        with self._lock:
            due = self.ask_at is not None and time.monotonic() >= self.ask_at
            busy = self._future is not None or self._stopped or self._paused
            if due and not busy and self._wanted > 0:
                self._start()

    def _plan(self, now: float) -> float:
        """Decide how the next call is made; returns its deadline, seconds."""
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
        # On gRPC's thread, which only prints what is raised here.
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
            # Before its consumer is woken, which may want more at once.
            probed, self.probing, self._future = self.probing, False, None
            asked = self._asks and not probed
            if received:
                self._active, self.ask_at, self._was_empty = time.monotonic(), None, False
            if error is None:
                self._worked()
        arrived = self.arrivals.arrived(self, received) if received else 0
        with self._lock:
            stays = self._future is None and not self._stopped and not self._paused
            idle = error is None and not arrived and stays
            # The event loop has nothing to do: keep waiting without it. Also right after a message that
            # isn't due yet, or that the queue doesn't take: the next one may be for now.
            again = idle and self._wanted > 0 and (bool(received) or not (probed or asked))
            if idle and probed and not received and not self.receiver.broker.options.lax:
                self._empty += 1
                enough = _STILL_EMPTY_AFTER if self._was_empty else _EMPTY_AFTER
                again = self._wanted > 0 and self._empty < enough
                self._was_empty = self._was_empty or self._empty >= enough
            if again:
                self.probing = probed
                self._start()
            elif idle and asked and self.ask_at is not None and self._wanted > 0:
                self.receiver.broker.timers.run(self._ask, self.ask_at)
        if idle and not again and probed:
            self.arrivals.probed(self, self._wanted)
        if error is not None and not self._stopped:
            self._broke(error)

    def stop_fetching(self, *, unpolled: bool) -> None:
        self.filled()  # what is in flight stays: a cancelled pull would still take a message

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
        """Cancel the call in flight, unless it is about to end by itself and bring its messages."""
        with self._lock:
            future = self._future
            age = time.monotonic() - self._started
            ends = self._asks or age < _PRESENT
        if future is not None and (waited > ENDS_BY_ITSELF or not ends):
            future.cancel()

    def resume(self) -> None:
        """Wake the consumer, which then asks again: with levels, the most urgent first."""
        with self._lock:
            self._paused = False
            if self._future is None:
                self.probing = False
        self.receiver.ring()
