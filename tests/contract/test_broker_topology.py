"""What every broker keeps of queues, exchanges and bindings."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from gwi_celery.brokers.base import Binding, OutgoingMessage, QueueSpec
from gwi_celery.errors import ConfigurationError, NotFound
from tests.contract.brokers import (
    assert_empty,
    assert_reached,
    bodies,
    poll_each,
    send,
    take,
    task_queues,
)

#: Names that something might take for another, or choke on.
ODD_NAMES = [
    "a/b",
    "a/b/../c",
    ".",
    "a.b",
    "a_b",
    "A.B",
    "é",
    "e\u0301",
    "🦀",
    "nul\x00",
    "nul\x00l",
    "half a pair \ud83e",
    "x" * 2000,
    "x" * 2001,
    "%41",
    "A",
    "a*",
    "a#",
    "'; DROP TABLE queues; --",
    " ",
]


# --- queues ---------------------------------------------------------------------------------------


def test_declaring_again_keeps_what_is_there(broker):
    broker.declare_queue(QueueSpec("q"))
    send(broker, b"m")
    broker.declare_queue(QueueSpec("q"))
    broker.declare_queue(QueueSpec("q", durable=False))
    assert task_queues(broker) == ["q"]
    assert take(broker.receiver()).data == b"m"


def test_declaring_again_changes_the_settings(broker, receiver):
    broker.declare_queue(QueueSpec("q", lease_seconds=24.0, max_deliveries=1))
    broker.declare_queue(QueueSpec("q", lease_seconds=16.0))
    send(broker, b"m")
    delivery = take(receiver)
    assert delivery.lease_seconds == 16.0
    broker.nack(delivery)
    assert take(receiver).deliveries == 2


def test_a_queue_that_can_not_work_is_refused(broker):
    times = (0, -1.0, math.nan, math.inf, 1e12, 10**400, "60", True)
    for spec in (
        {"name": ""},
        *({"name": "q", of: time} for of in TIMES for time in times),
        *({"name": "q", "max_deliveries": most} for most in (-1, 2.5, math.nan, 10**30, "5")),
    ):
        with pytest.raises(ConfigurationError, match=r"a queue needs a name|queue 'q': "):
            broker.declare_queue(QueueSpec(**spec))
    assert task_queues(broker) == []


#: A queue's settings that are times.
TIMES = ("expires", "message_ttl", "lease_seconds")


def test_a_deleted_queue_takes_everything_with_it(broker, receiver):
    broker.declare_exchange("x", "fanout")
    broker.declare_queue(QueueSpec("q"))
    broker.bind("q", "x", "")
    send(broker, b"held", b"ready")
    held = receiver.poll("q", 1)

    broker.delete_queue("q")
    broker.delete_queue("q")

    assert not broker.has_queue("q")
    assert (task_queues(broker), broker.bindings()) == ([], [])
    assert receiver.poll("q", 1) == []
    broker.ack(held)
    assert broker.extend(held, 60.0) == held
    broker.declare_queue(QueueSpec("q"))
    assert_empty(broker)
    assert_reached(broker.publish("x", "", OutgoingMessage(b"m")), 0)


def test_odd_names_never_meet(broker, receiver):
    broker.declare_exchange("x", "direct")
    for name in ODD_NAMES:
        broker.declare_exchange(name, "fanout")
        broker.declare_queue(QueueSpec(name))
        broker.bind(name, "x", name)
        broker.bind(name, name, "")
    assert sorted(task_queues(broker)) == sorted(ODD_NAMES)

    for number, name in enumerate(ODD_NAMES):
        for exchange, key in (("", name), ("x", name), (name, "")):
            assert_reached(broker.publish(exchange, key, OutgoingMessage(b"%d" % number)), 1)

    deliveries = poll_each(broker, receiver, ODD_NAMES)
    found = [(d.queue, d.data) for d in deliveries]
    assert Counter(found) == {(name, b"%d" % n): 3 for n, name in enumerate(ODD_NAMES)}


# --- temporary queues -----------------------------------------------------------------------------


def test_an_auto_delete_queue_goes_with_its_last_subscriber(broker, receiver):
    broker.declare_queue(QueueSpec("q", auto_delete=True))
    send(broker, b"m")
    assert broker.has_queue("q")  # nobody has subscribed yet

    other = broker.receiver()
    receiver.subscribe("q")
    other.subscribe("q")
    receiver.subscribe("q")
    receiver.unsubscribe("q")
    receiver.unsubscribe("q")
    assert broker.has_queue("q")
    other.close()
    assert not broker.has_queue("q")
    assert task_queues(broker) == []


def test_closing_the_connection_ends_its_subscriptions(broker_factory):
    broker, observer = broker_factory(), broker_factory()
    broker.declare_queue(QueueSpec("q", auto_delete=True))
    broker.declare_queue(QueueSpec("kept"))
    receiver = broker.receiver()
    receiver.subscribe("q")
    receiver.subscribe("kept")
    broker.close()
    assert task_queues(observer) == ["kept"]


@pytest.mark.needs("held_clock")
def test_a_queue_that_nobody_uses_expires(broker, broker_factory, receiver):
    broker.declare_exchange("x", "fanout")
    broker.declare_queue(QueueSpec("q", expires=60.0))
    broker.bind("q", "x", "")
    send(broker, b"m")

    broker_factory.advance(59)
    assert_reached(broker.publish("x", "", OutgoingMessage(b"m")), 1)
    broker_factory.advance(1)

    assert not broker.has_queue("q")
    assert (task_queues(broker), broker.bindings()) == ([], [])
    assert receiver.poll("q", 1) == []
    assert broker.peek("q") == []
    assert broker.purge("q") == 0
    assert_reached(broker.publish("x", "", OutgoingMessage(b"m")), 0)
    for refused in (
        lambda: broker.size("q"),
        lambda: receiver.subscribe("q"),
        lambda: broker.bind("q", "x", ""),
    ):
        with pytest.raises(NotFound, match="'q'"):
            refused()


@pytest.mark.needs("held_clock")
@pytest.mark.parametrize("again", ["declare", "publish"])
def test_an_expired_queue_comes_back_empty(broker, broker_factory, receiver, again):
    broker.declare_exchange("x", "fanout")
    broker.declare_queue(QueueSpec("q", expires=60.0))
    broker.bind("q", "x", "")
    send(broker, b"old")
    broker_factory.advance(60)
    if again == "declare":
        broker.declare_queue(QueueSpec("q", expires=60.0))
    send(broker, b"new")
    assert bodies(receiver.poll("q", 10)) == [b"new"]
    assert broker.bindings() == []
    broker_factory.advance(60)
    assert broker.has_queue("q") == (again == "publish")  # which makes a durable one


@pytest.mark.needs("held_clock")
def test_a_subscriber_keeps_its_queue(broker, broker_factory, receiver):
    broker.declare_queue(QueueSpec("q", expires=60.0))
    receiver.subscribe("q")
    broker_factory.advance(10_000)
    send(broker, b"m")
    broker.ack([take(receiver)])

    receiver.unsubscribe("q")
    broker_factory.advance(59)
    assert broker.has_queue("q")
    broker_factory.advance(1)
    assert not broker.has_queue("q")


@pytest.mark.needs("held_clock")
def test_declaring_again_starts_the_time_anew(broker, broker_factory):
    for _ in range(3):
        broker.declare_queue(QueueSpec("q", expires=60.0))
        broker_factory.advance(50)
    assert broker.has_queue("q")
    broker.declare_queue(QueueSpec("q"))
    broker_factory.advance(10_000)
    assert broker.has_queue("q")


# --- exchanges ------------------------------------------------------------------------------------


def test_an_exchange_is_declared_and_deleted(broker):
    assert broker.has_exchange("")
    assert not broker.has_exchange("x")
    broker.declare_exchange("x", "topic")
    broker.declare_exchange("x", "topic")
    assert broker.has_exchange("x")
    broker.declare_queue(QueueSpec("q"))
    broker.bind("q", "x", "#")
    broker.delete_exchange("x")
    broker.delete_exchange("x")
    assert not broker.has_exchange("x")
    assert broker.bindings() == []
    assert task_queues(broker) == ["q"]
    broker.declare_exchange("x", "topic")
    assert_reached(broker.publish("x", "k", OutgoingMessage(b"m")), 0)


def test_an_exchange_keeps_its_type(broker):
    broker.declare_exchange("x", "topic")
    with pytest.raises(ConfigurationError, match="'topic', not 'fanout'"):
        broker.declare_exchange("x", "fanout")
    with pytest.raises(ConfigurationError, match="direct, topic, fanout"):
        broker.declare_exchange("y", "headers")
    assert not broker.has_exchange("y")


def test_publishing_to_an_exchange_that_does_not_exist(broker):
    with pytest.raises(NotFound, match="'x'"):
        broker.publish("x", "k", OutgoingMessage(b"m"))


def test_binding_needs_both_ends(broker):
    broker.declare_queue(QueueSpec("q"))
    with pytest.raises(NotFound, match="'x'"):
        broker.bind("q", "x", "k")
    broker.declare_exchange("x", "direct")
    with pytest.raises(NotFound, match="'r'"):
        broker.bind("r", "x", "k")
    assert broker.bindings() == []


def test_bindings_are_listed_and_undone(broker):
    broker.declare_exchange("x", "direct")
    broker.declare_queue(QueueSpec("q"))
    for key in ("k", "k", "l"):
        broker.bind("q", "x", key)
    assert broker.bindings() == [Binding("q", "x", "k"), Binding("q", "x", "l")]
    broker.unbind("q", "x", "k")
    broker.unbind("q", "x", "k")
    broker.unbind("missing", "x", "k")
    assert broker.bindings() == [Binding("q", "x", "l")]
    assert_reached(broker.publish("x", "k", OutgoingMessage(b"m")), 0)


def test_the_default_exchange_has_every_queue_by_its_name(broker):
    broker.declare_queue(QueueSpec("q"))
    broker.bind("q", "", "q")
    with pytest.raises(ConfigurationError, match="default exchange"):
        broker.bind("q", "", "another key")
    assert broker.bindings() == []
    with pytest.raises(NotFound):
        broker.publish("", "", OutgoingMessage(b"m"))


def _reached(broker, receiver, exchange, routing_key):
    """The queues that one publish reaches; each holds one copy."""
    count = broker.publish(exchange, routing_key, OutgoingMessage(b"m"))
    deliveries = poll_each(broker, receiver, task_queues(broker))
    broker.ack(deliveries)
    reached = sorted(d.queue for d in deliveries)
    assert_reached(count, len(reached))
    return reached


def test_a_direct_exchange_goes_by_the_key(broker, receiver):
    broker.declare_exchange("x", "direct")
    for queue, key in [("q1", "k"), ("q2", "k"), ("q3", "K"), ("q4", "*"), ("q5", "")]:
        broker.declare_queue(QueueSpec(queue))
        broker.bind(queue, "x", key)
    assert _reached(broker, receiver, "x", "k") == ["q1", "q2"]
    assert _reached(broker, receiver, "x", "K") == ["q3"]
    assert _reached(broker, receiver, "x", "") == ["q5"]
    assert _reached(broker, receiver, "x", "q1") == []


def test_a_fanout_exchange_reaches_all(broker, receiver):
    broker.declare_exchange("x", "fanout")
    broker.declare_exchange("y", "fanout")
    for queue in ("q1", "q2"):
        broker.declare_queue(QueueSpec(queue))
        broker.bind(queue, "x", "whatever")
    assert _reached(broker, receiver, "x", "k") == ["q1", "q2"]
    assert _reached(broker, receiver, "y", "k") == []


@pytest.mark.parametrize("type", ["direct", "topic", "fanout"])
def test_a_queue_bound_twice_gets_one_copy(broker, receiver, type):
    broker.declare_exchange("x", type)
    broker.declare_queue(QueueSpec("q"))
    for key in ("a.b", "a.*", "#"):
        broker.bind("q", "x", key)
    assert _reached(broker, receiver, "x", "a.b") == ["q"]


def test_a_topic_exchange_goes_by_words(broker, receiver):
    broker.declare_exchange("x", "topic")
    patterns = ["#", "*", "a", "a.*", "a.#", "#.b", "a.#.b", "*.*", "*.#", "worker.*.heartbeat"]
    for pattern in patterns:
        broker.declare_queue(QueueSpec(pattern))
        broker.bind(pattern, "x", pattern)
    for key, expected in {
        "": ["#"],
        "a": ["#", "*", "*.#", "a", "a.#"],
        "b": ["#", "*", "*.#", "#.b"],
        "a.b": ["#", "*.#", "*.*", "#.b", "a.#", "a.*", "a.#.b"],
        "a.x.y.b": ["#", "*.#", "#.b", "a.#", "a.#.b"],
        "a.": ["#", "*.#", "*.*", "a.#", "a.*"],
        "ab": ["#", "*", "*.#"],
        "worker.h1.heartbeat": ["#", "*.#", "worker.*.heartbeat"],
        "worker.h1.x.heartbeat": ["#", "*.#"],
    }.items():
        assert _reached(broker, receiver, "x", key) == sorted(expected), key


def test_a_copy_for_each_queue_goes_its_own_way(broker, receiver):
    broker.declare_exchange("x", "fanout")
    for queue in ("q", "r"):
        broker.declare_queue(QueueSpec(queue))
        broker.bind(queue, "x", "")
    broker.publish("x", "", OutgoingMessage(b"m"))
    broker.ack([take(receiver, "q")])
    broker.nack(take(receiver, "r"))
    assert take(receiver, "r").deliveries == 2
    assert_empty(broker)
