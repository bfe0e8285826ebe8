"""When every broker wakes its receivers: never too late, however the threads fall."""

from __future__ import annotations

import threading

import pytest

from gwi_celery.brokers.base import OutgoingMessage, QueueSpec, dead_letter_queue
from gwi_celery.errors import NotFound
from tests.contract.brokers import bodies, drain, readable, send, take, wait_for, woken

DEAD = dead_letter_queue("q")


@pytest.fixture
def subscribed(broker, receiver):
    """A receiver that has seen that ``q`` and its dead letter are empty."""
    for queue in ("q", DEAD):
        broker.declare_queue(QueueSpec(queue))
        receiver.subscribe(queue)
    receiver.clear()
    assert drain(receiver) == []
    return receiver


def test_subscribing_to_a_missing_queue(receiver):
    with pytest.raises(NotFound, match="missing"):
        receiver.subscribe("missing")


def test_what_was_there_before_wakes_a_new_subscriber(broker, receiver):
    send(broker, b"m")
    receiver.subscribe("q")
    assert woken(receiver)


def test_a_publish_wakes(broker_factory, subscribed):
    # A stream that fails for now wakes its receiver, too.
    assert not (broker_factory.exact and readable(subscribed, 0))
    send(broker_factory(), b"m")
    assert woken(subscribed)
    subscribed.clear()
    assert not (broker_factory.exact and readable(subscribed, 0))
    assert wait_for(subscribed).data == b"m"


@pytest.mark.needs("exact")
def test_a_publish_through_an_exchange_wakes_every_receiver(broker, subscribed):
    broker.declare_exchange("x", "fanout")
    broker.declare_queue(QueueSpec("r"))
    other, same = broker.receiver(), broker.receiver()
    other.subscribe("r")
    same.subscribe("q")
    for receiver in (other, same):
        receiver.clear()
    for queue in ("q", "r"):
        broker.bind(queue, "x", "")
    broker.publish_many([("x", "", OutgoingMessage(b"m"))])
    assert all(readable(receiver) for receiver in (subscribed, other, same))


@pytest.mark.needs("exact")
@pytest.mark.parametrize("verb", ["nack", "give_back", "dead_letter", "redrive", "shorten"])
def test_what_makes_a_message_ready_wakes(broker, subscribed, verb):
    worker = broker.receiver()
    send(broker, b"m")
    delivery = take(worker)
    if verb == "redrive":
        broker.dead_letter(delivery, "reason")
    subscribed.clear()
    assert not readable(subscribed, 0)

    if verb == "dead_letter":
        broker.dead_letter(delivery, "reason")
    elif verb == "redrive":
        assert broker.redrive("q") == 1
    elif verb == "shorten":
        assert broker.extend([delivery], 0.0) == []
    else:
        getattr(broker, verb)(delivery)

    assert readable(subscribed)
    subscribed.clear()
    assert take(subscribed, DEAD if verb == "dead_letter" else "q").data == b"m"


@pytest.mark.needs("exact")
def test_the_dead_letter_of_worn_out_messages_wakes(broker_factory, subscribed):
    broker = broker_factory(max_deliveries=1)
    worker = broker.receiver()
    send(broker, b"m")
    broker.nack(take(worker))
    subscribed.clear()
    assert worker.poll("q", 1) == []
    assert readable(subscribed)
    assert take(subscribed, DEAD).data == b"m"


def test_after_unsubscribing_nothing_is_due(broker, subscribed):
    subscribed.unsubscribe("q")
    subscribed.unsubscribe("q")
    subscribed.unsubscribe(DEAD)
    send(broker, b"m", delay=1.0)
    assert subscribed.next_due() is None
    assert not readable(subscribed, 0)


def test_a_queue_made_again_still_wakes_its_subscriber(broker, subscribed):
    broker.delete_queue("q")
    assert subscribed.poll("q", 1) == []
    subscribed.clear()
    send(broker, b"m")
    assert woken(subscribed)
    assert wait_for(subscribed).data == b"m"  # it may have woken in vain before


# --- what nobody wakes for ------------------------------------------------------------------------


@pytest.mark.needs("held_clock")
def test_a_delayed_publish_makes_it_due(broker, broker_factory, subscribed):
    due = subscribed.next_due()
    assert due is None or due >= 10
    send(broker, b"m", delay=4.0)
    assert readable(subscribed)  # so that it can ask again
    subscribed.clear()
    assert drain(subscribed) == []
    assert subscribed.next_due() == 4.0
    broker_factory.advance(3)
    assert subscribed.next_due() == 1.0
    broker_factory.advance(1)
    assert take(subscribed).data == b"m"


@pytest.mark.needs("held_clock")
def test_another_ones_lease_running_out_is_due(broker_factory, subscribed):
    broker = broker_factory(lease_seconds=8.0)
    send(broker, b"m")
    delivery = take(broker.receiver())
    assert drain(subscribed) == []
    assert subscribed.next_due() == 8.0
    broker_factory.advance(2)
    broker.extend([delivery], 7.0)
    assert subscribed.next_due() == 7.0
    broker_factory.advance(7)
    assert take(subscribed).deliveries == 2


@pytest.mark.needs("held_clock")
def test_the_first_of_all_queues_is_due(broker, broker_factory, subscribed):
    send(broker, b"late", delay=8.0)
    send(broker, b"sooner", delay=5.0, queue=DEAD)
    send(broker, b"not ours", delay=1.0, queue="other")
    assert drain(subscribed) == drain(subscribed, DEAD) == []
    assert subscribed.next_due() == 5.0


@pytest.mark.needs("held_clock")
def test_what_became_due_between_poll_and_question_is_not_missed(
    broker, broker_factory, subscribed
):
    send(broker, b"m", delay=4.0)
    broker_factory.advance(3)
    assert drain(subscribed) == []
    broker_factory.advance(1)
    assert subscribed.next_due() == 0.0
    assert take(subscribed).data == b"m"


@pytest.mark.needs("held_clock")
def test_what_another_made_ready_and_left_wakes(broker, broker_factory, subscribed):
    """Another's poll comes between ours, before the due time, and our question, after it."""
    send(broker, b"1", b"2", delay=4.0)
    subscribed.clear()
    assert drain(subscribed) == []
    broker_factory.advance(4)
    assert bodies(broker.receiver().poll("q", 1)) == [b"1"]
    assert readable(subscribed, 0) or subscribed.next_due() == 0.0
    assert take(subscribed).data == b"2"


# --- no wake-up is lost ---------------------------------------------------------------------------


@pytest.mark.needs("exact")
def test_a_publish_after_clear_is_polled_or_wakes(broker, subscribed):
    """Publish at each point of the loop clear, poll, wait."""
    send(broker, b"before clear")
    subscribed.clear()
    send(broker, b"between clear and poll")
    assert bodies(drain(subscribed)) == [b"before clear", b"between clear and poll"]
    subscribed.clear()
    assert drain(subscribed) == []
    send(broker, b"after poll")
    assert readable(subscribed)


def test_no_wake_is_lost_in_a_race(broker, broker_factory, subscribed):
    """A thread publishes as fast as it can to one that waits for each; nothing else wakes it."""
    # Where an empty level is asked several times, each message takes half a second.
    total, go = 30 if broker_factory.names_rest else 300, threading.Semaphore(1)

    def publish():
        for number in range(total):
            go.acquire()
            send(broker, b"%d" % number)

    publisher = threading.Thread(target=publish)
    publisher.start()
    seen = []
    while len(seen) < total:
        assert woken(subscribed), f"asleep after {len(seen)} messages"
        subscribed.clear()
        for delivery in drain(subscribed):
            broker.ack([delivery])
            seen.append(delivery.data)
            go.release()
    publisher.join()
    assert seen == [b"%d" % number for number in range(total)]
