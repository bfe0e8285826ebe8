"""What counts towards the dead letter: attempts, and nothing else."""

from __future__ import annotations

import pytest

from gwi_celery.brokers.base import DEATH_DELIVERIES, OutgoingMessage, QueueSpec
from tests.contract.brokers import assert_no_dead_letter, bodies, send, take, wait_for
from tests.workers import eventually


@pytest.fixture
def strict(broker_factory):
    """Two attempts, then the dead letter."""
    broker = broker_factory(max_deliveries=2)
    broker.declare_queue(QueueSpec("q"))
    return broker


def test_what_is_given_back_untouched_never_dies(strict):
    receiver = strict.receiver()
    strict.publish("", "q", OutgoingMessage(b"m", {"tenant": "acme"}, priority=3))
    for _ in range(25):
        delivery = take(receiver)
        assert (delivery.deliveries, delivery.attempts) == (1, 0)
        assert (delivery.data, dict(delivery.attributes)) == (b"m", {"tenant": "acme"})
        assert delivery.priority == 3
        strict.give_back(delivery)
    assert_no_dead_letter(strict)


def test_being_looked_at_is_no_attempt(strict):
    send(strict, b"1", b"2")
    for _ in range(25):
        assert sorted(bodies(strict.peek("q"))) == [b"1", b"2"]
    assert {m.deliveries for m in strict.peek("q")} == {0}
    assert_no_dead_letter(strict)


def test_attempts_before_a_message_is_given_back_are_kept(strict):
    receiver = strict.receiver()
    send(strict, b"m")
    strict.nack(take(receiver))
    for _ in range(5):
        delivery = take(receiver)
        assert (delivery.deliveries, delivery.attempts) == (2, 1)
        strict.give_back(delivery)
    strict.nack(take(receiver))
    assert receiver.poll("q", 1) == []
    [dead] = eventually(lambda: strict.has_queue("q.dead") and strict.peek("q.dead"))
    assert dead.attributes[DEATH_DELIVERIES] == "2"


def test_a_copy_given_back_expires_when_the_message_would(broker_factory):
    broker = broker_factory(max_deliveries=2)
    receiver = broker.receiver()
    ttl = 8.0 if broker_factory.names_rest else 2.0  # the twin fails now and then, which takes time
    broker.publish("", "q", OutgoingMessage(b"m", ttl=ttl))
    broker.give_back(take(receiver))
    assert take(receiver).data == b"m"
    broker.declare_queue(QueueSpec("short", message_ttl=ttl))
    send(broker, b"m", queue="short")
    broker.give_back(take(receiver, "short"))
    if broker_factory.held_clock:
        broker_factory.advance(2.5)
    eventually(lambda: broker.peek("short") == [])


def test_waiting_for_its_time_is_no_attempt(broker_factory):
    broker = broker_factory(max_deliveries=1)
    receiver = broker.receiver()
    broker.declare_queue(QueueSpec("q"))
    receiver.subscribe("q")
    broker.publish("", "q", OutgoingMessage(b"m", delay=6.0))
    if hasattr(broker, "options"):  # Pub/Sub delivers it at once, and it is parked
        delivery = wait_for(receiver)
    else:
        assert receiver.poll("q", 1) == []
        broker_factory.advance(6)
        delivery = take(receiver)
    assert (delivery.data, delivery.deliveries) == (b"m", 1)
    broker.ack([delivery])
    assert_no_dead_letter(broker)


@pytest.mark.needs("held_clock")
@pytest.mark.parametrize("begun", [True, False])
def test_a_lease_that_runs_out_counts_if_the_message_was_begun(broker_factory, begun):
    broker = broker_factory(max_deliveries=2)
    receiver = broker.receiver()
    send(broker, b"m")
    for _ in range(2):
        [delivery] = receiver.poll("q", 1, begun=False)
        if begun:
            broker.begin(delivery)
            broker.begin(delivery)  # once is enough
        broker_factory.advance(broker_factory.lease_seconds)
    found = receiver.poll("q", 1)
    assert found == [] if begun else [d.attempts for d in found] == [0]
