"""Messages that are pushed before they are due.

Pub/Sub has no delayed push, and a request that is held until its message is due takes one of the
instance's places until then. So an instance holds the requests of messages that are due within seconds,
and of the others only one: that of the message due last. All others are postponed: a copy goes to
``<queue>.later``, which is pulled from and so can wait in Pub/Sub, and the request is answered at once.
Each instance reads that queue, and publishes a message to its own queue when it is due.

The one held request keeps the instance alive, with a CPU, until all that it postponed is due: so this
works where instances scale to zero, too. Where nothing can be postponed (another broker,
``mode=provisioned`` without such a queue, a missing permission) every request is held.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from dataclasses import replace
from typing import Any

from gwi_celery import forks
from gwi_celery.brokers.base import Delivery, OutgoingMessage, QueueSpec
from gwi_celery.brokers.wakeups import wait_readable
from gwi_celery.errors import BrokerError, BrokerUnavailable, ConfigurationError, GwiError
from gwi_celery.service.admission import Admission
from gwi_celery.service.execute import Executor
from gwi_celery.service.push import Pushed
from gwi_celery.transport.settlement import Settlement

logger = logging.getLogger(__name__)

#: Added to a queue's name, for the queue of its postponed messages.
SUFFIX = ".later"
#: Seconds for which a request is held in any case.
_NEAR = 15.0
#: Seconds: a message that is due this soon is due now.
_IS_NOW = 0.05
#: When a postponed message expires, seconds since the epoch: an attribute of the copy.
_EXPIRES = "gwi-parked-expires"
#: Postponed messages in the reader's hands at a time.
_ROOM = 100
#: Seconds until a message that could not be published is tried again, and between two checks of the
#: reader whether it is to stop.
_AGAIN, _LOOK = 10.0, 0.5


class Early:
    """Early messages of one instance and its queue. Used on the event loop only."""

    def __init__(self, executor: Executor, admission: Admission, queue: str) -> None:
        self._executor = executor
        self._admission = admission
        self._later = queue + SUFFIX
        self._reader = _Reader(executor, self._later, queue)
        #: When the message whose request is held is due; the event that says that a later one is held.
        self._last: tuple[float, asyncio.Event] | None = None

    def start(self) -> None:
        """Publish what earlier instances postponed, when it is due."""
        threading.Thread(target=self._reader.resume, name="gwi-later-start", daemon=True).start()

    async def stop(self) -> None:
        await asyncio.to_thread(self._reader.stop)

    def holds_until(self, due: float) -> bool:
        """Whether a held request already keeps the instance alive until ``due``."""
        return self._last is not None and self._last[0] >= due

    async def until_due(self, pushed: Pushed, at_most: float) -> Settlement | None:
        """None once the message is due; else how it was settled: a copy will be pushed when it is due.

        ``at_most``: seconds for which a request may be held.
        """
        now = time.time()
        if pushed.expires <= now:
            return Settlement.ACKED
        wait = pushed.not_before - now
        if wait <= 0:
            return None
        if wait > _NEAR and await asyncio.to_thread(self._reader.begin):
            if not await self._held_as_last(pushed, at_most):
                return await self._postpone(pushed)
        else:
            await self._admission.hold(min(wait, at_most))
        if pushed.not_before - time.time() < _IS_NOW:
            return None
        return await self._again(pushed)  # the wait is too long, or the instance stops

    async def _held_as_last(self, pushed: Pushed, at_most: float) -> bool:
        """Hold the request while its message is the last one due; False once another is."""
        due = pushed.not_before
        if self.holds_until(due):
            return False
        if self._last is not None:
            self._last[1].set()
        displaced = asyncio.Event()
        mine = self._last = (due, displaced)
        waits = [
            asyncio.ensure_future(displaced.wait()),
            asyncio.ensure_future(self._admission.hold(min(due - time.time(), at_most))),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiting in waits:
                waiting.cancel()
            if self._last is mine:
                self._last = None
        return not displaced.is_set()

    async def _postpone(self, pushed: Pushed) -> Settlement:
        delivery = pushed.delivery
        if pushed.expires != math.inf:
            attributes = {**delivery.attributes, _EXPIRES: f"{pushed.expires:.3f}"}
            delivery = replace(delivery, attributes=attributes)
        return await self._again(pushed, replace(delivery, queue=self._later))

    async def _again(self, pushed: Pushed, delivery: Delivery | None = None) -> Settlement:
        """Republish it: a refusal would count as a delivery."""
        left = max(pushed.not_before - time.time(), 0.0)
        ttl = pushed.expires - pushed.not_before
        return await asyncio.to_thread(
            self._executor.postpone,
            delivery or pushed.delivery,
            left,
            None if math.isinf(ttl) else ttl,
        )


class _Reader:
    """A thread that publishes postponed messages to the pushed queue when they are due."""

    def __init__(self, executor: Executor, later: str, queue: str) -> None:
        self._executor = executor
        self._later = later
        self._queue = queue
        self._lock = forks.lock()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        #: Nothing can be postponed: this was found out once.
        self._impossible = False

    def resume(self) -> None:
        """Read, if anything was ever postponed."""
        broker = self._executor.broker
        with contextlib.suppress(GwiError):  # reported when a message is to be postponed
            pubsub = hasattr(broker, "options")
            if pubsub and self._can_postpone(broker) and broker.has_queue(self._later):
                self.begin()

    def begin(self) -> bool:
        """Read from now on. False if nothing can be postponed."""
        with self._lock:
            if self._thread is not None or self._impossible or self._stopping.is_set():
                return self._thread is not None and not self._stopping.is_set()
            broker: Any = self._executor.broker
            if not hasattr(broker, "options"):  # not Pub/Sub, the only one that pushes
                self._impossible = True
                return False
            try:
                if not self._can_postpone(broker):
                    raise ConfigurationError(f"the option 'queues' doesn't name {self._later!r}")
                broker.declare_queue(QueueSpec(self._later))
                broker.peek(self._later, 1)  # without the right to read, nothing would leave it
                receiver = broker.receiver()
                receiver.subscribe(self._later)
            except BrokerUnavailable:
                return False  # for now
            except GwiError as exc:
                self._impossible = True
                logger.warning(
                    "a message that waits for its ETA holds a request: it can't be put into %r (%s)",
                    self._later,
                    exc,
                )
                return False
            if self._stopping.is_set():
                return False
            self._thread = threading.Thread(
                target=self._read, args=(broker, receiver), name="gwi-later", daemon=True
            )
            self._thread.start()
            return True

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(2.0)

    def _can_postpone(self, broker: Any) -> bool:
        return bool(broker.options.managed or self._later in broker.options.queues)

    def _read(self, broker: Any, receiver: Any) -> None:
        warned = False
        while not self._stopping.is_set():
            try:
                receiver.clear()
                found = receiver.poll(self._later, _ROOM)
                for delivery in found:
                    self._move(broker, delivery)
                warned = False
            except Exception as exc:
                if not warned:
                    logger.warning(
                        "what is postponed in %r can't be read now: %s", self._later, exc
                    )
                warned = True
                self._stopping.wait(_AGAIN)
                continue
            if not found:
                due = receiver.next_due()
                wait_readable([receiver.fileno()], _LOOK if due is None else min(due, _LOOK))
        with contextlib.suppress(BrokerError):
            receiver.close()

    def _move(self, broker: Any, delivery: Delivery) -> None:
        attributes = dict(delivery.attributes)
        left = _seconds(attributes.pop(_EXPIRES, "")) - time.time()
        try:
            if left > 0:
                message = OutgoingMessage(
                    delivery.data,
                    attributes,
                    delivery.priority,
                    ttl=None if math.isinf(left) else left,
                )
                broker.publish("", self._queue, message)
        except BrokerError as exc:
            logger.warning("a postponed message is published later: %s", exc)
            broker.nack(delivery, _AGAIN)
        else:
            broker.ack([delivery])


def _seconds(expires: str) -> float:
    """An attribute as seconds since the epoch; infinity if it is not a number."""
    try:
        found = float(expires)
    except ValueError:
        return math.inf
    return math.inf if math.isnan(found) else found
