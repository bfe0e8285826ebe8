"""The backends on which the broker's contract is checked.

A new backend joins with one entry in ``CASES``; one that several processes can share, with one in
``SHARED`` too. What it can't do is a flag of its factory, and a test that needs it says so with
``@pytest.mark.needs``: it is then not made for that backend.
"""

from __future__ import annotations

import select
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from gwi_celery.brokers.base import (
    DEAD_LETTER_SUFFIX,
    Broker,
    Delivery,
    OutgoingMessage,
    Receiver,
    dead_letter_queue,
)
from gwi_celery.brokers.embedded import EmbeddedBroker, forget_memory, memory_broker
from gwi_celery.brokers.pubsub.broker import PubSubBroker
from gwi_celery.brokers.pubsub.options import parse
from gwi_celery.errors import BrokerUnavailable
from tests import machine
from tests.clocks import FakeClock

#: Seconds. More than anything takes that is waited for; reached only if it never comes.
PATIENCE = machine.PATIENCE
T = TypeVar("T")
#: Queues by priority need a subscription for each level.
PRIORITIES: dict[str, Any] = {"priority_levels": (0, 5, 9), "repair": True}


class BrokerFactory:
    """Makes brokers that are connections to one and the same service, with nothing in it yet."""

    #: Time stands until ``advance`` moves it, so that the very moment of an expiry can be tested.
    held_clock: ClassVar[bool]
    #: ``size`` and ``peek`` tell of every message, whatever its state.
    sees_all: ClassVar[bool] = True
    #: What is delayed is given back by who gets it early, until it is due.
    parks: ClassVar[bool] = False
    #: Nothing is leased before a poll asks for it, and order and counts are exact.
    exact: ClassVar[bool] = True
    #: The fixture without which there is no service; None: it needs none.
    fixture: ClassVar[str | None] = None
    #: More urgent messages come first.
    priorities: ClassVar[bool] = True
    #: A deleted name can't be used again for a while.
    names_rest: ClassVar[bool] = False
    #: Seconds; a power of two, so that sums and halves of it are exact.
    lease_seconds = 32.0

    def __init__(self) -> None:
        self._made: list[Broker] = []

    def __call__(self, **options: Any) -> Broker:
        """``options``: ``lease_seconds``, ``max_deliveries``, ``retention``."""
        broker = self._make(**{"lease_seconds": self.lease_seconds, **options})
        self._made.append(broker)
        return broker

    def _make(self, **options: Any) -> Broker:
        raise NotImplementedError

    def advance(self, seconds: float) -> None:
        """Let seconds of the broker's clock pass."""
        raise NotImplementedError

    def time(self) -> float:
        """The broker's clock."""
        raise NotImplementedError

    def settle(self) -> None:
        """Wait until each connection finds what another has just made."""

    def close(self) -> None:
        for broker in self._made:
            broker.close()


class _Embedded(BrokerFactory):
    held_clock = True

    def __init__(self) -> None:
        super().__init__()
        self._clock = FakeClock()

    def advance(self, seconds: float) -> None:
        self._clock.advance(seconds)

    def time(self) -> float:
        return self._clock.now


class EmbeddedFile(_Embedded):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def _make(self, **options: Any) -> Broker:
        return EmbeddedBroker(self._folder, clock=self._clock, **options)


class EmbeddedMemory(_Embedded):
    def _make(self, **options: Any) -> Broker:
        return memory_broker(f"contract-{id(self)}", clock=self._clock, **options)

    def close(self) -> None:
        super().close()
        forget_memory(f"contract-{id(self)}")


class PubSub(BrokerFactory):
    """The real emulator; each test has a project of its own."""

    held_clock = False
    sees_all = False
    parks = True
    exact = False
    fixture = "pubsub_emulator"

    def __init__(self) -> None:
        super().__init__()
        self._project = f"p-{uuid.uuid4().hex[:20]}"

    def _make(self, **options: Any) -> Broker:
        return connect_pubsub(self._project, **options)

    def time(self) -> float:
        return time.time()


class _Patient(PubSubBroker):
    """Calls that a fault ends are made again, as Celery connects again and the leases' keeper extends."""

    def connect(self) -> None:
        _again(super().connect)

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> list[Delivery]:
        return _again(lambda: super(_Patient, self).extend(deliveries, seconds))


def _again(call: Callable[[], T]) -> T:
    while True:
        try:
            return call()
        except BrokerUnavailable:
            time.sleep(0.05)


class PubSubTwin(PubSub):
    """The twin, strict in all that a test doesn't count: queues are read as on the service."""

    #: Seconds until other connections find what was made, and until a deleted name can be used again.
    SETTLES, NAMES_REST = 0.3, 0.5

    fixture = "pubsub_twin"
    names_rest = True
    #: Set by the fixture.
    endpoint = ""

    def _make(self, **options: Any) -> Broker:
        url = f"pubsub://{self.endpoint}/{self._project}"
        return _Patient(parse(url, {"emulator": "strict", **PRIORITIES, **options}))

    def settle(self) -> None:
        time.sleep(self.SETTLES)


def connect_pubsub(project: str, **options: Any) -> Broker:
    """A connection to the emulator that the environment names."""
    # Leases have whole seconds, 10 or more.
    options = {**PRIORITIES, **options}
    return PubSubBroker(parse(f"pubsub://{project}", options))


@contextmanager
def _closing(factory: BrokerFactory) -> Iterator[BrokerFactory]:
    try:
        yield factory
    finally:
        factory.close()


@contextmanager
def embedded_file(folder: Path) -> Iterator[BrokerFactory]:
    with _closing(EmbeddedFile(folder / "broker")) as factory:
        yield factory


@contextmanager
def embedded_memory(folder: Path) -> Iterator[BrokerFactory]:
    with _closing(EmbeddedMemory()) as factory:
        yield factory


@contextmanager
def pubsub(folder: Path) -> Iterator[BrokerFactory]:
    with _closing(PubSub()) as factory:
        yield factory


@contextmanager
def pubsub_twin(folder: Path) -> Iterator[BrokerFactory]:
    with _closing(PubSubTwin()) as factory:
        yield factory


#: Backend -> (its factory's class, a new service in a folder).
CASES: dict[
    str,
    tuple[type[BrokerFactory], Callable[[Path], AbstractContextManager[BrokerFactory]]],
] = {
    "embedded-file": (EmbeddedFile, embedded_file),
    "embedded-memory": (EmbeddedMemory, embedded_memory),
    "pubsub": (PubSub, pubsub),
    "twin": (PubSubTwin, pubsub_twin),
}

#: Backend -> connects to a service at a place that a command line can carry, by the real clock.
SHARED: dict[str, Callable[[str, float], Broker]] = {
    "embedded-file": lambda place, lease_seconds: EmbeddedBroker(
        Path(place), lease_seconds=lease_seconds
    ),
}


# --- what tests say -------------------------------------------------------------------------------


def send(broker: Broker, *bodies: bytes, queue: str = "q", **options: Any) -> None:
    """Publish to a queue, in this order."""
    for body in bodies:
        broker.publish("", queue, OutgoingMessage(body, **options))


def take(receiver: Receiver, queue: str = "q") -> Delivery:
    """The one message that is there for the taking."""
    [delivery] = receiver.poll(queue, 10)
    return delivery


def assert_empty(broker: Broker, queue: str = "q") -> None:
    """Nothing is there any more: not ready, nor, where that can be seen, leased or delayed."""
    size = broker.size(queue)
    if size is not None:
        assert size.total == 0
    else:
        assert broker.receiver().poll(queue, 10) == []


def assert_no_dead_letter(broker: Broker, queue: str = "q") -> None:
    """None was kept. A broker may make a queue's dead letter with it, empty."""
    dead = dead_letter_queue(queue)
    assert not broker.has_queue(dead) or broker.peek(dead) == []


def assert_reached(published: int | None, queues: int) -> None:
    """What publish answered, where the broker can say."""
    assert published in (None, queues)


def task_queues(broker: Broker) -> list[str]:
    """All queues but the dead letters."""
    return [name for name in broker.queues() if not name.endswith(DEAD_LETTER_SUFFIX)]


def bodies(messages: Sequence[Any]) -> list[bytes]:
    return [message.data for message in messages]


def readable(receiver: Receiver, seconds: float = PATIENCE) -> bool:
    """Whether the receiver is woken within that time."""
    return bool(select.select([receiver.fileno()], [], [], seconds)[0])


def woken(receiver: Receiver) -> bool:
    """Whether the receiver is woken, or says when it is to ask again, as after a fault of a stream."""
    due = receiver.next_due()
    return readable(receiver, PATIENCE if due is None else due) or due is not None


def poll_each(broker: Broker, receiver: Receiver, queues: Sequence[str]) -> list[Delivery]:
    """What is ready in each queue; at the same time where an empty one takes its time."""

    def look(queue: str) -> list[Delivery]:
        return receiver.poll(queue, 10)

    if not isinstance(broker, PubSubBroker):
        return [delivery for found in map(look, queues) for delivery in found]
    with ThreadPoolExecutor(len(queues)) as threads:
        return [delivery for found in threads.map(look, queues) for delivery in found]


def drain(receiver: Receiver, queue: str = "q") -> list[Delivery]:
    """All that can be had now."""
    found = []
    while batch := receiver.poll(queue, 100):
        found += batch
    return found


def wait_for(receiver: Receiver, queue: str = "q") -> Delivery:
    """The next message of a queue subscribed to, waiting as a worker does."""
    until = time.monotonic() + PATIENCE
    while True:
        receiver.clear()
        for delivery in receiver.poll(queue, 1):
            return delivery
        more = woken(receiver) and time.monotonic() < until
        assert more, f"nothing came to {queue!r} in {PATIENCE} s"


def wait_until_settled(receiver: Receiver, seconds: float) -> None:
    """Serve a consumer that has no room for a while, so that it notices what others changed."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        receiver.clear()
        due = receiver.next_due()
        readable(receiver, left if due is None else min(due, left))
