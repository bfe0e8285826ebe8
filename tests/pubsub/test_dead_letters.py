"""Whatever Pub/Sub takes can be kept in a dead letter, and comes back out of it as it was."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from gwi_celery.brokers.base import (
    DEATH_DELIVERIES,
    DEATH_ERROR,
    DEATH_KIND,
    DEATH_QUEUE,
    DEATH_REASON,
    DEATH_TIME,
    REDRIVE,
    Delivery,
    OutgoingMessage,
    QueueSpec,
    Receiver,
)
from gwi_celery.brokers.letters import letter_of
from gwi_celery.brokers.pubsub.broker import PubSubBroker
from gwi_celery.brokers.pubsub.client import pb
from gwi_celery.errors import BrokerUnusable, StoreUnavailable
from tests.workers import eventually

pytestmark = pytest.mark.emulator

FULL = {f"foreign-{n:03}": "v" * 1024 for n in range(100)}

#: What others publish: data, attributes.
FOREIGN = {
    "98 attributes": (b"data", {f"k{n}": "v" for n in range(98)}),
    "100 attributes": (b"data", {f"k{n}": "v" for n in range(100)}),
    "100 attributes of 1 KB": (b"data", FULL),
    "10 MB": (b"x" * 9_999_900, {}),
    "10 MB and attributes": (b"x" * (9_999_900 - 105_000), FULL),
    "no data": (b"", {"only": "this"}),
}


def take(receiver: Receiver, queue: str) -> Delivery:
    found: list[Delivery] = []
    eventually(lambda: found.extend(receiver.poll(queue, 1)) or found)
    return found[0]


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("way", ["dead_letter", "bury"])
def test_a_message_of_any_size_is_kept_and_comes_back(
    name: str, way: str, connect: Callable[..., PubSubBroker]
) -> None:
    data, attributes = FOREIGN[name]
    broker = connect()
    broker.declare_queue(QueueSpec("q"))
    message = pb["PubsubMessage"](data=data, attributes=attributes)
    broker.publisher.send(broker.topology.route("", "q"), [message])
    receiver = broker.receiver()
    receiver.subscribe("q")

    delivery = take(receiver, "q")
    if way == "bury":
        broker.bury(delivery, "no message: " + "é" * 20_000)
        broker.ack([delivery])
    else:
        broker.dead_letter(delivery, "no message: " + "é" * 20_000)

    [dead] = eventually(lambda: broker.peek("q.dead"))
    assert dead.data == data
    assert dead.attributes[DEATH_REASON].startswith("no message: é")
    assert dead.attributes[DEATH_QUEUE] == "q"
    assert dead.attributes[DEATH_DELIVERIES] == "1"
    assert {k: v for k, v in dead.attributes.items() if not k.startswith("gwi-")} == attributes

    assert broker.redrive("q") == 1
    again = take(receiver, "q")
    assert again.data == data
    assert {k: v for k, v in again.attributes.items() if k != REDRIVE} == attributes
    broker.ack([again])
    broker.flush()
    assert broker.peek("q.dead") == []


def test_what_can_take_nothing_more_is_not_redriven_twice_in_one_go(
    connect: Callable[..., PubSubBroker],
) -> None:
    broker = connect()
    broker.declare_queue(QueueSpec("q"))
    topic = broker.topology.route("", "q")
    broker.publisher.send(topic, [pb["PubsubMessage"](data=b"data", attributes=FULL)])
    receiver = broker.receiver()
    receiver.subscribe("q")
    for _ in range(3):
        broker.dead_letter(take(receiver, "q"), "no message")
        assert broker.redrive("q") == 1
    assert take(receiver, "q").data == b"data"
    broker.flush()
    assert broker.peek("q.dead") == []


def test_a_publisher_can_t_say_how_what_was_delivered_too_often_died(
    connect: Callable[..., PubSubBroker],
) -> None:
    broker = connect(max_deliveries=1)
    broker.declare_queue(QueueSpec("q"))
    forged = {DEATH_KIND: "mismatch", DEATH_ERROR: "Forged", DEATH_TIME: "soon"}
    broker.publish("", "q", OutgoingMessage(b"data", forged))
    receiver = broker.receiver()
    receiver.subscribe("q")
    broker.nack(take(receiver, "q"))
    eventually(lambda: receiver.poll("q", 1) or broker.peek("q.dead"))
    [dead] = map(partial(letter_of, "q"), eventually(lambda: broker.peek("q.dead")))
    assert (dead.reason, dead.error) == ("deliveries", "")
    assert dead.died_at == pytest.approx(dead.published_at, abs=60)


class Recorded:
    """An app's authority, as far as a dead letter needs it; its store may be unavailable."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.down = False

    def about_to(self, what: str, queue: str) -> None: ...

    def redrive_mark(self, death: str, from_step: str | None = "") -> str:
        return death

    def died(self, letter: Any) -> None:
        self.there.add(letter.id)

    def ended(self, ids: Any) -> None:
        if self.down:
            raise StoreUnavailable("it is down")
        self.there -= set(ids)


def delivered(broker: PubSubBroker) -> tuple[PubSubBroker, Recorded, Delivery]:
    """The broker, what it records, and a message that it delivered."""
    broker.operators = records = Recorded()
    broker.publish("", "q", OutgoingMessage(b"data", {}))
    receiver = broker.receiver()
    receiver.subscribe("q")
    return broker, records, take(receiver, "q")


def refused(*args: Any, **kwargs: Any) -> None:
    raise BrokerUnusable("it may not publish there")


def test_what_can_t_be_kept_is_neither_recorded_nor_acked(
    connect: Callable[..., PubSubBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, records, delivery = delivered(connect())
    acked: list[Delivery] = []
    monkeypatch.setattr(broker.publisher, "send_dead", refused)
    monkeypatch.setattr(broker.deliveries, "ack", acked.extend)
    with pytest.raises(BrokerUnusable):
        broker.bury(delivery, "no message")
    broker.dead_letter(delivery, "no message")
    assert not acked
    assert not records.there


@pytest.mark.parametrize("what", ["its copy can't be published", "its record can't be ended"])
def test_what_can_t_be_redriven_now_stays_in_its_dead_letter(
    what: str, connect: Callable[..., PubSubBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, records, delivery = delivered(connect())
    broker.dead_letter(delivery, "no message")
    eventually(lambda: broker.peek("q.dead"))
    if what.startswith("its record"):
        records.down = True
    else:
        monkeypatch.setattr(broker, "publish", refused)
    acked: list[Delivery] = []
    monkeypatch.setattr(broker, "ack", acked.extend)
    with pytest.raises((BrokerUnusable, StoreUnavailable)):
        broker.redrive("q")
    assert not acked
    assert len(records.there) == 1
