"""What every broker knows of what others have made, use, or have deleted."""

from __future__ import annotations

import pytest

from gwi_celery.brokers.base import OutgoingMessage, QueueSpec
from gwi_celery.errors import ConfigurationError, NotDeleted
from tests.contract.brokers import (
    bodies,
    drain,
    send,
    take,
    task_queues,
    wait_for,
)

# --- deleting only what nobody needs --------------------------------------------------------------


@pytest.mark.parametrize("state", ["ready", "delayed", "leased"])
def test_a_queue_with_a_message_is_not_deleted_as_empty(broker, broker_factory, receiver, state):
    broker.declare_queue(QueueSpec("q"))
    send(broker, b"m", delay=3.0 if state == "delayed" else 0.0)
    held = [take(receiver)] if state == "leased" else []
    for other in (broker, broker_factory()):
        with pytest.raises(NotDeleted, match="'q'"):
            other.delete_queue("q", if_empty=True)
    for delivery in held:
        broker.nack(delivery)
    if state == "delayed" and broker_factory.held_clock:
        broker_factory.advance(3)
    receiver.subscribe("q")
    assert wait_for(receiver).data == b"m"


@pytest.mark.parametrize("whose", ["this", "another"])
def test_a_queue_that_is_read_is_not_deleted_as_unused(broker, broker_factory, whose):
    broker.declare_queue(QueueSpec("q"))
    receiver = (broker if whose == "this" else broker_factory()).receiver()
    receiver.subscribe("q")
    with pytest.raises(NotDeleted, match="'q'"):
        broker.delete_queue("q", if_unused=True)
    send(broker, b"m")
    assert wait_for(receiver).data == b"m"


@pytest.mark.needs("sees_all")
def test_an_empty_and_unused_queue_is_deleted(broker, receiver):
    broker.declare_queue(QueueSpec("q"))
    receiver.subscribe("q")
    receiver.unsubscribe("q")
    send(broker, b"m")
    broker.ack([take(receiver)])
    broker.delete_queue("q", if_unused=True, if_empty=True)
    assert not broker.has_queue("q")


def test_deleting_what_is_not_there_is_no_error(broker):
    broker.delete_queue("q", if_unused=True, if_empty=True)
    broker.delete_exchange("x", if_unused=True)


def test_an_exchange_is_deleted_once_nothing_is_bound_to_it(broker, broker_factory):
    other = broker_factory()
    broker.declare_exchange("x", "direct")
    broker.declare_queue(QueueSpec("q"))
    broker.bind("q", "x", "k")
    for user in (broker, other):
        with pytest.raises(NotDeleted, match="'x' is used: queue 'q'"):
            user.delete_exchange("x", if_unused=True)
    broker.publish("x", "k", OutgoingMessage(b"m"))
    assert take(broker.receiver()).data == b"m"
    broker.unbind("q", "x", "k")
    other.delete_exchange("x", if_unused=True)
    assert not other.has_exchange("x")


# --- queues that come and go ----------------------------------------------------------------------


def test_a_queue_that_stays_is_not_made_one_that_goes(broker, broker_factory):
    broker.declare_queue(QueueSpec("q"))
    send(broker, b"m")
    other = broker_factory()
    for settings in ({"auto_delete": True}, {"expires": 60.0}):
        with pytest.raises(ConfigurationError, match="exists as one that stays"):
            other.declare_queue(QueueSpec("q", **settings))
    assert take(broker.receiver()).data == b"m"


def test_an_answer_to_nobody_makes_no_queue(broker, broker_factory):
    asker, worker = broker_factory(), broker_factory()
    asker.declare_queue(QueueSpec("answers", auto_delete=True))
    receiver = asker.receiver()
    receiver.subscribe("answers", bulk=True)
    worker.publish("", "answers", OutgoingMessage(b"first", reply=True))
    assert wait_for(receiver, "answers").data == b"first"
    asker.close()

    for sender in (worker, broker_factory()):
        sender.publish("", "answers", OutgoingMessage(b"late", reply=True))
        sender.publish_many([("", "answers", OutgoingMessage(b"late", reply=True))] * 2)
    assert broker.queues() == []
    # The name is free for the next one who asks.
    again = broker_factory()
    again.declare_queue(QueueSpec("answers", auto_delete=True))
    worker.publish("", "answers", OutgoingMessage(b"second", reply=True))
    assert bodies(drain(again.receiver(), "answers")) == [b"second"]


def test_a_batch_with_an_answer_to_nobody_loses_nothing_else(broker, broker_factory):
    broker.publish_many(
        [
            ("", "q", OutgoingMessage(b"late", reply=True)),
            ("", "q", OutgoingMessage(b"job")),
            ("", "answers", OutgoingMessage(b"late", reply=True)),
        ]
    )
    assert task_queues(broker) == ["q"]
    assert b"job" in bodies(drain(broker.receiver()))


# --- time to live ---------------------------------------------------------------------------------


def test_waiting_for_its_time_is_not_waiting_too_long(broker, broker_factory, receiver):
    """A queue's time to live counts from when a message is due."""
    broker.declare_queue(QueueSpec("q", message_ttl=1.0))
    receiver.subscribe("q")
    send(broker, b"m", delay=2.0)
    if broker_factory.held_clock:
        broker_factory.advance(2)
    assert wait_for(receiver).data == b"m"
