"""What every broker lets an operator do with chosen messages."""

from __future__ import annotations

import time

import pytest

from gwi_celery.brokers.base import (
    DEATH,
    DEATH_ATTEMPTS,
    DEATH_KIND,
    DEATH_REASON,
    REDRIVE,
    Delivery,
    QueueSpec,
    dead_letter_queue,
)
from gwi_celery.errors import BrokerUnavailable, NotFound
from tests.contract.brokers import bodies, send, take, wait_for
from tests.machine import PATIENCE
from tests.workers import eventually

DEAD = dead_letter_queue("q")


def bury(broker, receiver, *data: bytes) -> None:
    send(broker, *data)
    for delivery in polled(receiver, len(data)):
        broker.dead_letter(delivery, "reason")


def polled(receiver, count: int) -> list[Delivery]:
    got: list[Delivery] = []
    while len(got) < count:
        got += receiver.poll("q", count - len(got)) or [wait_for(receiver)]
    return got


def dead(broker, count: int) -> dict[bytes, str]:
    """Data -> id, once so many are there."""
    end = time.monotonic() + PATIENCE
    while len(found := list(broker.browse(DEAD))) != count:
        assert time.monotonic() < end, f"{len(found)} of {count}"
    return {message.data: message.message_id for message in found}


def test_all_messages_of_a_dead_letter_can_be_looked_through(broker, receiver):
    assert list(broker.browse(DEAD)) == []
    names = [b"%d" % n for n in range(12)]
    bury(broker, receiver, *names)
    assert set(dead(broker, 12)) == set(names)
    assert set(dead(broker, 12)) == set(names), "looking takes nothing away"


def test_chosen_messages_are_redriven_and_the_others_stay(broker, receiver):
    bury(broker, receiver, b"1", b"2", b"3")
    ids = dead(broker, 3)
    assert broker.redrive("q", only=["nothing"]) == 0
    assert broker.redrive("q", only=[ids[b"1"], ids[b"3"]]) == 2
    back = polled(receiver, 2)
    assert sorted(bodies(back)) == [b"1", b"3"]
    assert len({d.attributes[REDRIVE] for d in back}) == 2
    assert not DEATH & set(back[0].attributes)
    broker.ack(back)
    assert set(dead(broker, 1)) == {b"2"}
    assert broker.redrive("q", 5, only=[ids[b"2"]]) == 1


def test_chosen_messages_are_discarded_and_the_others_stay(broker, receiver):
    bury(broker, receiver, b"1", b"2", b"3")
    ids = dead(broker, 3)
    assert broker.discard(DEAD, [ids[b"1"], ids[b"3"], "unknown"]) == 2
    assert set(dead(broker, 1)) == {b"2"}
    assert broker.discard(DEAD, [ids[b"1"]]) == 0
    assert broker.discard("nobody.dead", ["1"]) == 0


def test_a_publisher_can_t_say_how_its_message_died(broker, receiver):
    send(broker, b"m", attributes={DEATH_KIND: "forged", DEATH_REASON: "forged"})
    delivery = take(receiver)
    broker.dead_letter(
        # As the transport has it: what the publisher gave is gone.
        type(delivery)(**{**vars(delivery), "attributes": {DEATH_KIND: "failed"}}),
        "reason",
    )
    dead(broker, 1)
    [message] = broker.browse(DEAD)
    assert message.attributes[DEATH_KIND] == "failed"
    assert message.attributes[DEATH_REASON] == "reason"
    assert message.attributes[DEATH_ATTEMPTS].isdigit()


def test_a_queue_at_a_glance(broker, receiver):
    with pytest.raises(NotFound):
        broker.state("nobody")
    broker.declare_queue(QueueSpec("q"))
    state = broker.state("q")
    assert (state.name, state.paused) == ("q", False)
    assert state.ready in (0, None)


@pytest.mark.needs("sees_all")
def test_a_glance_counts(broker, broker_factory, receiver):
    send(broker, b"1", b"2")
    send(broker, b"3", delay=100.0)
    broker.dead_letter(receiver.poll("q", 1)[0], "reason")
    broker_factory.advance(5.0)
    state = broker.state("q")
    assert (state.ready, state.delayed, state.leased, state.dead) == (1, 1, 0, 1)
    assert state.oldest == pytest.approx(5.0)


@pytest.mark.needs("sees_all")
def test_a_paused_queue_gives_nothing_until_it_is_resumed(broker, broker_factory, receiver):
    send(broker, b"1", b"2")
    [held] = receiver.poll("q", 1)
    broker.set_paused("q", True)
    assert broker_factory().state("q").paused
    assert receiver.poll("q", 5) == []
    assert receiver.poll("q", 5) == [], "nor to one that is busy with it"
    broker.ack([held])
    broker.set_paused("q", False)
    assert bodies(receiver.poll("q", 5)) == [b"2"]


@pytest.mark.needs("sees_all")
def test_what_is_delayed_can_be_had_now(broker, receiver):
    send(broker, b"1", b"2", delay=100.0)
    one, _ = broker.browse("q")
    assert one.state == "delayed"
    assert one.due is not None
    assert broker.hasten("q", [one.message_id, "77"]) == 1
    assert bodies(receiver.poll("q", 5)) == [one.data]


@pytest.mark.needs("parks")
@pytest.mark.parametrize("delay", [100.0, 3.5], ids=["given back", "held"])
def test_what_is_parked_can_be_had_now_or_dropped_by_who_parked_it(broker, receiver, delay):
    broker.declare_queue(QueueSpec("q"))
    receiver.subscribe("q")
    send(broker, b"now", delay=delay, attributes={"task_id": "now"})
    send(broker, b"never", delay=delay, attributes={"task_id": "never"})

    def parked(name: str) -> Delivery | None:
        for late in receiver.poll("q", 10):  # a fault has kept it for a lease
            broker.ack([late])
            send(broker, late.data, delay=delay, attributes=late.attributes)
        return broker.parked.find("q", name)

    eventually(lambda: parked("now") and parked("never"))
    assert broker.parked.find("other", "now") is None
    both = [parked("now"), parked("never")]
    assert broker.parked.publish_now(both[:1]) == both[:1]
    got = wait_for(receiver)
    assert (got.data, got.attempts, time.time() - got.published_at < delay) == (b"now", 0, True)
    broker.ack([got])
    assert broker.parked.drop(both[1:]) == both[1:]
    assert broker.parked.drop(both) == [], "they are done with"
    assert broker.early.rows() == []
    assert receiver.poll("q", 10) == []
    eventually(lambda: receiver.poll("q", 10) or receiver.next_due() > 10, "nothing held")
    assert receiver.poll("q", 10) == []


@pytest.mark.needs("parks")
def test_what_can_t_be_published_now_stays_parked(broker, receiver, monkeypatch):
    broker.declare_queue(QueueSpec("q"))
    receiver.subscribe("q")
    send(broker, b"m", delay=100.0)
    eventually(lambda: receiver.poll("q", 1) or broker.early.rows())
    [row] = broker.early.rows()
    parked = broker.parked.find("q", row["id"])

    def fails(*given: object) -> None:
        raise BrokerUnavailable("the network is down")

    with monkeypatch.context() as patched:
        patched.setattr(broker.publisher, "send", fails)
        with pytest.raises(BrokerUnavailable):
            broker.parked.publish_now([parked])
    assert broker.parked.find("q", row["id"]) is parked
    assert broker.parked.publish_now([parked]) == [parked]
    assert wait_for(receiver).data == b"m"


@pytest.mark.needs("sees_all")
def test_one_that_dies_again_meanwhile_is_redriven_once(broker, receiver):
    bury(broker, receiver, b"1", b"2")
    ids = dead(broker, 2)

    def die_again(moved: int) -> None:
        for delivery in receiver.poll("q", 5):
            broker.dead_letter(delivery, "again")

    assert broker.redrive("q", only=[ids[b"1"]], moved=die_again) == 1
