"""What every broker knows of what others have made, use, or have deleted."""

from __future__ import annotations

import threading
import time

import pytest

from gwi_celery.brokers.base import OutgoingMessage, QueueSpec
from gwi_celery.brokers.pubsub import deliveries
from gwi_celery.errors import ConfigurationError, NotDeleted
from tests.contract.brokers import (
    PATIENCE,
    bodies,
    drain,
    readable,
    send,
    take,
    task_queues,
    wait_for,
    wait_until_settled,
)

# --- deleting only what nobody needs --------------------------------------------------------------


@pytest.mark.parametrize("state", ["ready", "delayed", "leased"])
def test_a_queue_with_a_message_is_not_deleted_as_empty(broker, broker_factory, receiver, state):
    broker.declare_queue(QueueSpec("q"))
    send(broker, b"m", delay=3.0 if state == "delayed" else 0.0)
    held = [take(receiver)] if state == "leased" else []
    broker_factory.settle()
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
    broker_factory.settle()
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
        with pytest.raises(ConfigurationError, match="exists as a permanent one"):
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


def test_waiting_for_its_time_is_not_waiting_too_long(
    broker, broker_factory, receiver, monkeypatch
):
    """A queue's time to live counts from when a message is due."""
    monkeypatch.setattr(deliveries, "_HOLD", 0.1)  # on Pub/Sub it is deferred, and delivered again
    # Pub/Sub defers by whole seconds, so it may come one second late.
    broker.declare_queue(QueueSpec("q", message_ttl=3.0))
    receiver.subscribe("q")
    send(broker, b"m", delay=4.0)
    if broker_factory.held_clock:
        broker_factory.advance(4)
    assert wait_for(receiver).data == b"m"


# --- under a consumer -----------------------------------------------------------------------------


def _known(broker):
    return [(b.queue, b.exchange, b.routing_key) for b in broker.bindings()]


@pytest.mark.parametrize("by", ["unbind", "another's unbind", "delete", "another's delete"])
def test_what_is_unbound_under_a_consumer_stays_so(broker, broker_factory, receiver, by):
    other = broker_factory()
    for exchange in ("x", "y"):
        broker.declare_exchange(exchange, "direct")
    broker.declare_queue(QueueSpec("q"))
    for key in ("k", "l"):
        broker.bind("q", "x", key)
    broker.bind("q", "y", "k")
    receiver.subscribe("q")
    broker.publish("x", "k", OutgoingMessage(b"before"))
    broker.ack([wait_for(receiver)])
    unbinding = broker if "another" not in by else other
    if "unbind" in by:
        unbinding.unbind("q", "x", "k")
    else:
        unbinding.delete_exchange("x")
        unbinding.declare_exchange("x", "direct")
    broker_factory.settle()
    left = [("q", "y", "k")] if "delete" in by else [("q", "x", "l"), ("q", "y", "k")]

    # The consumer goes on, notices, and leaves it at that.
    for n in range(3):
        other.publish("x", "k", OutgoingMessage(b"to nobody"))
        other.publish("y", "k", OutgoingMessage(b"%d" % n))
        delivery = wait_for(receiver)
        assert delivery.data == b"%d" % n
        broker.ack([delivery])
    until = time.monotonic() + 3 * PATIENCE  # what was made just now counts as not settled
    while _known(broker) != left and time.monotonic() < until:
        receiver.poll("q", 1)
        wait_until_settled(receiver, 0.2)
    assert _known(other) == left
    assert _known(broker) == left

    broker.bind("q", "x", "k")
    other.publish("x", "k", OutgoingMessage(b"bound again"))
    assert wait_for(receiver).data == b"bound again"


@pytest.mark.parametrize("settings", [{}, {"auto_delete": True}], ids=["task", "reply"])
@pytest.mark.parametrize("whose", ["this", "another"])
def test_a_queue_made_again_under_a_consumer_is_read_from(broker, broker_factory, whose, settings):
    maker = broker if whose == "this" else broker_factory()
    maker.declare_queue(QueueSpec("q", **settings))
    broker_factory.settle()
    receiver = broker.receiver()
    receiver.subscribe("q")
    send(maker, b"before")
    broker.ack([wait_for(receiver)])
    maker.delete_queue("q")
    wait_until_settled(receiver, 0.0 if broker_factory.held_clock else 1.0)
    maker.declare_queue(QueueSpec("q", **settings))
    send(maker, b"after")
    assert wait_for(receiver).data == b"after"


def test_other_settings_under_a_consumer(broker, broker_factory):
    broker.declare_queue(QueueSpec("q", auto_delete=True, message_ttl=0.5))
    receiver = broker.receiver()
    receiver.subscribe("q")
    broker.declare_queue(QueueSpec("q", auto_delete=True))
    send(broker, b"m")
    time.sleep(0.6)
    if broker_factory.held_clock:
        broker_factory.advance(0.6)
    assert wait_for(receiver).data == b"m"


# --- one name -------------------------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["this", "another"])
@pytest.mark.parametrize("bound", ["elsewhere", "both", "nowhere", "by another key"])
def test_a_queue_and_an_exchange_of_one_name_do_not_mix(broker, broker_factory, whose, bound):
    broker.declare_exchange("x", "topic")
    broker.declare_exchange("y", "direct")
    for queue in ("x", "z"):
        broker.declare_queue(QueueSpec(queue))
    broker.bind("z", "x", "#")
    if bound in ("elsewhere", "both"):
        broker.bind("x", "y", "k")
    if bound == "both":
        broker.bind("x", "x", "x")
    if bound == "by another key":
        broker.bind("x", "x", "b.*")
    user = broker if whose == "this" else broker_factory()
    broker_factory.settle()
    if bound == "nowhere":
        user.declare_queue(QueueSpec("x"))
    for exchange, key in [("x", "a"), ("x", "b.c"), ("", "x"), ("y", "k")]:
        broker.publish(exchange, key, OutgoingMessage(f"{exchange} {key}".encode()))
    if bound == "both":
        broker.publish("x", "x", OutgoingMessage(b"x x"))
    expected = {
        "elsewhere": [b" x", b"y k"],
        "both": [b" x", b"x x", b"y k"],
        "nowhere": [b" x"],
        "by another key": [b" x", b"x b.c"],
    }[bound]
    assert sorted(bodies(drain(user.receiver(), "x"))) == expected
    assert {b"x a", b"x b.c"} <= set(bodies(drain(user.receiver(), "z")))


# --- at once --------------------------------------------------------------------------------------


def test_declaring_and_deleting_at_once(broker_factory):
    """Whoever declared and published last finds a queue that works."""
    failures: list[BaseException] = []
    times = 1 if broker_factory.names_rest else 5  # on the twin each name rests for seconds

    def change(n: int) -> None:
        own = broker_factory()
        try:
            for _ in range(times):
                own.declare_queue(QueueSpec("q"))
                own.delete_queue("q")
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=change, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert failures == []
    last = broker_factory()
    last.declare_queue(QueueSpec("q"))
    send(last, b"m")
    assert take(last.receiver()).data == b"m"


# --- shared queues that go ------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1], ids=["its maker", "who joined"])
@pytest.mark.parametrize("declares", [True, False], ids=["declared by both", "used by the other"])
def test_an_auto_delete_queue_stays_while_another_connection_reads(broker_factory, first, declares):
    brokers = [broker_factory(), broker_factory()]
    brokers[0].declare_queue(QueueSpec("q", auto_delete=True))
    if declares:
        brokers[1].declare_queue(QueueSpec("q", auto_delete=True))
    broker_factory.settle()
    receivers = [broker.receiver() for broker in brokers]
    for receiver in receivers:
        receiver.subscribe("q")
    leaving, staying = brokers[first], brokers[1 - first]
    leaving.close()

    assert staying.has_queue("q")
    sent = [b"%d" % n for n in range(6)]
    for body in sent:
        staying.publish("", "q", OutgoingMessage(body, reply=True))
    got = []
    while len(got) < 6:
        delivery = wait_for(receivers[1 - first])
        staying.ack([delivery])
        got.append(delivery.data)
    assert sorted(got) == sent
    staying.close()
    observer = broker_factory()
    assert observer.queues() == []
    assert observer.bindings() == []


def test_who_joins_a_queue_takes_nothing_from_the_others(broker_factory):
    maker, joining = broker_factory(), broker_factory()
    maker.declare_queue(QueueSpec("q", auto_delete=True))
    theirs = maker.receiver()
    theirs.subscribe("q")
    sent = [b"%d" % n for n in range(6)]
    send(maker, *sent)
    time.sleep(0.005)  # the emulator's times have milliseconds
    joining.declare_queue(QueueSpec("q", auto_delete=True))
    ours = joining.receiver()
    ours.subscribe("q")
    got: list[bytes] = []
    until = time.monotonic() + 3 * PATIENCE  # what the wrong one got comes back after a second
    while len(got) < 6 and time.monotonic() < until:
        for broker, receiver in ((joining, ours), (maker, theirs)):
            readable(receiver, 0.05)
            receiver.clear()
            for delivery in receiver.poll("q", 1):
                broker.ack([delivery])
                got.append(delivery.data)
    assert sorted(got) == sent
