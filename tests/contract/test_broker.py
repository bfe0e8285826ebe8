"""What every broker keeps of a message, from its publish to its end."""

from __future__ import annotations

import threading

import pytest

from gwi_celery.brokers.base import (
    DEATH_ATTEMPTS,
    DEATH_DELIVERIES,
    DEATH_KIND,
    DEATH_QUEUE,
    DEATH_REASON,
    DEATH_TIME,
    REDRIVE,
    Delivery,
    OutgoingMessage,
    QueueSize,
    QueueSpec,
    dead_letter_queue,
)
from gwi_celery.brokers.embedded import EmbeddedBroker
from gwi_celery.errors import NotFound
from gwi_celery.text import REASON_BYTES, cut
from tests.contract.brokers import (
    assert_empty,
    assert_no_dead_letter,
    assert_reached,
    bodies,
    send,
    take,
    task_queues,
    wait_for,
)
from tests.machine import PATIENCE

DEAD = dead_letter_queue("q")


# --- publish and poll -----------------------------------------------------------------------------


def test_a_message_arrives_as_it_was_sent(broker, broker_factory, receiver):
    attributes = {"tenant": "ä/b", "empty": "", "emoji": "🦀", "half": "\ud83e", "quote": '"'}
    message = OutgoingMessage(b"\x00\xffbody", attributes, priority=4)
    before = broker_factory.time()
    assert_reached(broker.publish("", "q", message), 1)

    delivery = take(receiver)

    assert (delivery.queue, delivery.data) == ("q", b"\x00\xffbody")
    assert dict(delivery.attributes) == attributes
    assert delivery.deliveries == 1
    assert delivery.priority == 4
    assert delivery.lease_seconds == broker.lease_seconds == broker_factory.lease_seconds
    assert before - 1 < delivery.published_at < broker_factory.time() + 1


@pytest.mark.parametrize("data", [b"", b"x" * 1_000_000, bytes(range(256))], ids=len)
def test_any_bytes_arrive(broker, receiver, data):
    send(broker, data)
    assert take(receiver).data == data


def test_each_message_has_an_id_of_its_own(broker, receiver):
    ids = set()
    for _ in range(3):
        send(broker, b"m")
        delivery = take(receiver)
        ids |= {delivery.message_id, delivery.ack_id}
        broker.ack([delivery])
    assert len(ids) == 6


def test_a_poll_gives_no_more_than_asked_for_and_nothing_when_empty(broker, receiver):
    send(broker, b"1", b"2", b"3")
    assert bodies(receiver.poll("q", 0)) == []
    assert bodies(receiver.poll("q", 2)) == [b"1", b"2"]
    assert bodies(receiver.poll("q", 2)) == [b"3"]
    assert bodies(receiver.poll("q", 2)) == []


@pytest.mark.needs("priorities")
def test_higher_priority_first_then_the_older(broker, receiver):
    for body, priority in [(b"a0", 0), (b"b9", 9), (b"c0", 0), (b"d5", 5), (b"e9", 9)]:
        send(broker, body, priority=priority)
    assert bodies(receiver.poll("q", 10)) == [b"b9", b"e9", b"d5", b"a0", b"c0"]


def test_a_queue_that_does_not_exist_is_empty(receiver):
    assert receiver.poll("nowhere", 1) == []


def test_what_one_connection_publishes_another_receives(broker_factory):
    producer, worker = broker_factory(), broker_factory()
    send(producer, b"m")
    broker_factory.settle()
    delivery = take(worker.receiver())
    producer.ack([delivery])
    assert_empty(producer)


def test_publishing_creates_the_queue(broker, receiver):
    assert not broker.has_queue("q")
    send(broker, b"m")
    assert broker.has_queue("q")
    assert task_queues(broker) == ["q"]


def test_many_are_published_in_one_go(broker, receiver):
    broker.declare_exchange("all", "fanout")
    for queue in ("q", "r"):
        broker.declare_queue(QueueSpec(queue))
        broker.bind(queue, "all", "")
    reached = broker.publish_many(
        [
            ("", "q", OutgoingMessage(b"1")),
            ("all", "", OutgoingMessage(b"2")),
            ("", "r", OutgoingMessage(b"3")),
        ]
    )
    for count, queues in zip(reached, [1, 2, 1], strict=True):
        assert_reached(count, queues)
    # They come through two exchanges: no order is promised between these.
    assert sorted(bodies(receiver.poll("q", 10))) == [b"1", b"2"]
    assert sorted(bodies(receiver.poll("r", 10))) == [b"2", b"3"]
    assert broker.publish_many([]) == []


def test_of_many_all_are_published_or_none(broker, receiver):
    with pytest.raises(NotFound, match="missing"):
        broker.publish_many(
            [("", "q", OutgoingMessage(b"1")), ("missing", "k", OutgoingMessage(b"2"))]
        )
    assert receiver.poll("q", 10) == []
    assert not broker.has_queue("q")


# --- leases ---------------------------------------------------------------------------------------


def test_a_leased_message_goes_to_nobody_else(broker_factory):
    broker = broker_factory()
    send(broker, b"m")
    broker_factory.settle()
    first, second = broker.receiver(), broker_factory().receiver()
    take(first)
    assert second.poll("q", 1) == []
    assert first.poll("q", 1) == []


@pytest.mark.needs("held_clock")
def test_a_lease_ends_on_the_dot(broker, broker_factory, receiver):
    send(broker, b"m")
    first = take(receiver)

    broker_factory.advance(broker_factory.lease_seconds - 1 / 16)
    assert receiver.poll("q", 1) == []
    broker_factory.advance(1 / 16)
    second = take(receiver)

    assert (first.deliveries, second.deliveries) == (1, 2)
    assert second.message_id == first.message_id
    assert second.ack_id != first.ack_id
    assert second.published_at == first.published_at


def test_an_ack_ends_a_message(broker, receiver):
    send(broker, b"m", b"n")
    broker.ack(receiver.poll("q", 2))
    assert_empty(broker)


@pytest.mark.needs("held_clock")
def test_an_ack_ends_a_message_for_good(broker, broker_factory, receiver):
    send(broker, b"m", b"n")
    broker.ack(receiver.poll("q", 2))
    broker_factory.advance(broker_factory.lease_seconds + 1)
    assert receiver.poll("q", 2) == []


@pytest.mark.needs("held_clock")
def test_an_ack_tells_what_is_anothers(broker, broker_factory, receiver):
    send(broker, b"a", b"b")
    first, second = receiver.poll("q", 2)
    broker_factory.advance(broker_factory.lease_seconds)
    [again] = broker_factory().receiver().poll("q", 1)
    assert broker.ack([first, second]) == [first]
    assert broker.ack([again]) == []


def test_acking_nothing_or_twice_is_no_error(broker, receiver):
    send(broker, b"m")
    delivery = take(receiver)
    broker.ack([])
    broker.ack([delivery])
    broker.ack([delivery])


@pytest.mark.needs("held_clock")
@pytest.mark.parametrize("verb", ["ack", "nack", "give_back", "dead_letter", "extend"])
def test_a_holder_that_lost_its_lease_changes_nothing(broker, broker_factory, receiver, verb):
    send(broker, b"m")
    late = take(receiver)
    broker_factory.advance(broker_factory.lease_seconds + 1)
    holder = take(receiver)

    lost = None
    if verb == "ack":
        broker.ack([late])
    elif verb == "dead_letter":
        broker.dead_letter(late, "too late")
    elif verb == "extend":
        lost = broker.extend([late], 1000.0)
    else:
        getattr(broker, verb)(late)

    assert lost == ([late] if verb == "extend" else None)
    assert receiver.poll("q", 1) == []
    assert_no_dead_letter(broker)
    broker_factory.advance(broker_factory.lease_seconds / 2)
    assert broker.extend([holder], broker_factory.lease_seconds) == []
    broker.ack([holder])
    assert_empty(broker)


@pytest.mark.needs("held_clock")
def test_extending_counts_from_now(broker, broker_factory, receiver):
    send(broker, b"m")
    delivery = take(receiver)
    broker_factory.advance(20)
    assert broker.extend([delivery], 64.0) == []
    broker_factory.advance(63)
    assert receiver.poll("q", 1) == []
    broker_factory.advance(1)
    assert take(receiver).deliveries == 2


@pytest.mark.needs("held_clock")
def test_an_extension_may_shorten(broker, broker_factory, receiver):
    send(broker, b"m")
    broker.extend([take(receiver)], 4.0)
    broker_factory.advance(4)
    assert take(receiver).deliveries == 2


@pytest.mark.needs("held_clock")
def test_extending_for_hours(broker, broker_factory, receiver):
    send(broker, b"m")
    delivery = take(receiver)
    for _ in range(100):
        broker_factory.advance(broker_factory.lease_seconds * 3 / 4)
        assert broker.extend([delivery], broker_factory.lease_seconds) == []
    assert receiver.poll("q", 1) == []


def test_extending_tells_which_leases_are_lost(broker, broker_factory, receiver):
    send(broker, b"acked", b"held", b"nacked")
    acked, held, nacked = receiver.poll("q", 3)
    broker.ack([acked])
    broker.nack(nacked)
    assert broker.extend([acked, held, nacked], 60.0) == [acked, nacked]
    assert broker.extend([], 60.0) == []


@pytest.mark.needs("held_clock")
def test_a_queue_has_its_own_lease(broker, broker_factory, receiver):
    broker.declare_queue(QueueSpec("q", lease_seconds=8.0))
    send(broker, b"m")
    assert take(receiver).lease_seconds == 8.0
    broker_factory.advance(8)
    assert take(receiver).deliveries == 2


def test_a_nack_gives_the_message_back_at_once_and_counts(broker, receiver):
    send(broker, b"m")
    first = take(receiver)
    broker.nack(first)
    second = take(receiver)
    assert (second.deliveries, second.message_id) == (2, first.message_id)


@pytest.mark.needs("held_clock")
def test_a_nack_with_a_delay(broker, broker_factory, receiver):
    send(broker, b"m")
    broker.nack(take(receiver), 100.0)
    broker_factory.advance(99)
    assert receiver.poll("q", 1) == []
    assert broker.size("q") == QueueSize(ready=0, delayed=1, leased=0)
    broker_factory.advance(1)
    assert take(receiver).deliveries == 2


# --- delay and time to live -----------------------------------------------------------------------


@pytest.mark.needs("held_clock")
def test_a_delayed_message_waits(broker, broker_factory, receiver):
    send(broker, b"m", delay=100.0)
    assert broker.size("q") == QueueSize(ready=0, delayed=1, leased=0)
    broker_factory.advance(99)
    assert receiver.poll("q", 1) == []
    broker_factory.advance(1)
    assert broker.size("q") == QueueSize(ready=1, delayed=0, leased=0)
    assert take(receiver).deliveries == 1


@pytest.mark.needs("held_clock")
def test_priority_holds_among_what_became_due(broker, broker_factory, receiver):
    send(broker, b"low", delay=1.0)
    send(broker, b"high", delay=2.0, priority=9)
    send(broker, b"ready", priority=5)
    broker_factory.advance(2)
    assert bodies(receiver.poll("q", 3)) == [b"high", b"ready", b"low"]


@pytest.mark.needs("held_clock")
@pytest.mark.parametrize("whose", ["message", "queue", "broker"])
def test_a_message_past_its_time_is_dropped(broker_factory, whose):
    broker = broker_factory(retention=64.0)
    receiver = broker.receiver()
    ttl = {"message": 16.0, "queue": 32.0, "broker": 64.0}[whose]
    broker.declare_queue(QueueSpec("q", message_ttl=None if whose == "broker" else 32.0))
    for body in (b"taken", b"left"):
        send(broker, body, ttl=16.0 if whose == "message" else None)

    broker_factory.advance(ttl - 1)
    assert broker.size("q").total == 2
    broker.ack(receiver.poll("q", 1))
    broker_factory.advance(1)
    assert_empty(broker)
    assert broker.peek("q") == []
    assert receiver.poll("q", 1) == []
    assert_no_dead_letter(broker)


@pytest.mark.needs("held_clock")
def test_many_past_their_time_do_not_hide_the_next(broker, broker_factory, receiver):
    send(broker, *[b"old"] * 30, ttl=1.0, priority=9)
    send(broker, b"delayed", ttl=1.0, delay=500.0)
    send(broker, b"fresh")
    broker_factory.advance(2)
    assert broker.size("q") == QueueSize(ready=1, delayed=0, leased=0)
    assert bodies(broker.peek("q")) == [b"fresh"]
    assert take(receiver).data == b"fresh"


@pytest.mark.needs("held_clock")
def test_what_is_in_hand_is_not_dropped(broker, broker_factory, receiver):
    send(broker, b"m", ttl=10.0)
    delivery = take(receiver)
    broker_factory.advance(20)
    assert broker.size("q").leased == 1
    assert bodies(broker.peek("q")) == [b"m"]
    assert broker.extend([delivery], 60.0) == []
    broker.ack([delivery])


@pytest.mark.needs("held_clock")
def test_a_delay_longer_than_the_retention_loses_nothing(broker_factory):
    broker = broker_factory(retention=64.0)
    send(broker, b"m", delay=1000.0)
    broker_factory.advance(1063)
    assert take(broker.receiver()).data == b"m"


# --- dead letters ---------------------------------------------------------------------------------


@pytest.mark.needs("held_clock")
@pytest.mark.parametrize("how", ["lease runs out", "nack"])
@pytest.mark.parametrize("whose", ["queue", "broker"])
def test_too_many_deliveries_lead_to_the_dead_letter(broker_factory, how, whose):
    broker = broker_factory(max_deliveries=3 if whose == "broker" else 20)
    broker.declare_queue(QueueSpec("q", max_deliveries=3 if whose == "queue" else None))
    receiver = broker.receiver()
    broker.publish("", "q", OutgoingMessage(b"m", {"tenant": "acme"}, priority=7))
    for number in (1, 2, 3):
        delivery = take(receiver)
        assert delivery.deliveries == number
        if how == "nack":
            broker.nack(delivery)
        else:
            broker_factory.advance(broker_factory.lease_seconds)

    assert receiver.poll("q", 1) == []

    assert_empty(broker)
    dead = take(receiver, DEAD)
    assert (dead.data, dead.priority, dead.deliveries) == (b"m", 7, 1)
    assert dict(dead.attributes) == {
        "tenant": "acme",
        DEATH_KIND: "deliveries",
        DEATH_ATTEMPTS: "3",
        DEATH_REASON: "delivered 3 times without an ack",
        DEATH_QUEUE: "q",
        DEATH_DELIVERIES: "3",
        DEATH_TIME: dead.attributes[DEATH_TIME],
    }
    assert float(dead.attributes[DEATH_TIME]) == broker_factory.time()
    assert broker.extend([delivery], 60.0) == [delivery]


def test_a_dying_message_does_not_hide_the_next(broker_factory):
    broker = broker_factory(max_deliveries=1)
    receiver = broker.receiver()
    send(broker, b"1", b"2", b"3", priority=9)
    for delivery in receiver.poll("q", 3):
        broker.nack(delivery)
    send(broker, b"4")
    assert take(receiver).data == b"4"
    found = bodies(broker.peek(DEAD))
    # Pub/Sub promises no order of messages that have no ordering key.
    assert (found if isinstance(broker, EmbeddedBroker) else sorted(found)) == [b"1", b"2", b"3"]


def test_without_a_limit_a_message_is_delivered_for_ever(broker_factory):
    broker = broker_factory(max_deliveries=2)
    broker.declare_queue(QueueSpec("q", max_deliveries=0))
    receiver = broker.receiver()
    receiver.subscribe("q")
    send(broker, b"m")
    before = 0
    for _ in range(40):
        delivery = wait_for(receiver)
        assert delivery.deliveries > before  # not one more: a pull whose answer is lost counts, too
        before = delivery.deliveries
        broker.nack(delivery)


def test_a_dead_letter_is_empty_until_something_dies(broker):
    broker.declare_queue(QueueSpec("q"))
    # Pub/Sub makes it along with its queue, and can't count.
    empty = None if broker.has_queue(DEAD) else QueueSize(0, 0, 0)
    assert broker.size(DEAD) == empty
    assert broker.peek(DEAD) == []
    assert broker.redrive("q") == 0
    assert broker.size("unknown.dead") == QueueSize(0, 0, 0)
    with pytest.raises(NotFound):
        broker.size("nobody")


def test_what_came_another_way_can_be_kept_in_the_dead_letter_too(broker, receiver):
    """A pushed message has no lease: nothing of the queue's own is touched."""
    pushed = Delivery("q", "none", "id", b"pushed", {"tenant": "a"}, 3, 0.0, 0, 0.0)
    broker.bury(pushed, "no message")
    [dead] = broker.peek(DEAD)
    assert dead.data == b"pushed"
    assert dead.attributes["tenant"] == "a"
    assert dead.attributes[DEATH_REASON] == "no message"
    assert dead.attributes[DEATH_QUEUE] == "q"
    assert dead.attributes[DEATH_DELIVERIES] == "3"
    assert broker.redrive("q") == 1
    again = take(receiver)
    assert again.data == b"pushed"
    assert DEATH_REASON not in again.attributes
    broker.ack([again])


def test_a_message_can_be_sent_to_the_dead_letter(broker, receiver):
    send(broker, b"m", attributes={"tenant": "acme"})
    reason = "not a Celery message: \ud83e 'x'\n" + "long " * 1000
    broker.dead_letter(take(receiver), reason)
    assert_empty(broker)
    [dead] = broker.peek(DEAD)
    assert (dead.queue, dead.data, dead.state, dead.deliveries) == (DEAD, b"m", "ready", 0)
    assert dead.attributes["tenant"] == "acme"
    assert dead.attributes[DEATH_REASON] in (reason, cut(reason, REASON_BYTES))
    assert dead.attributes[DEATH_DELIVERIES] == "1"


@pytest.mark.needs("exact")
@pytest.mark.parametrize("spec", [{"auto_delete": True}, {"expires": 1000.0}], ids=str)
def test_a_temporary_queue_keeps_no_dead_letter(broker, receiver, spec):
    broker.declare_queue(QueueSpec("q", max_deliveries=1, **spec))
    send(broker, b"told", b"worn out")
    told, worn_out = receiver.poll("q", 2)
    broker.dead_letter(told, "reason")
    broker.nack(worn_out)
    assert receiver.poll("q", 2) == []
    assert_empty(broker)
    assert_no_dead_letter(broker)


@pytest.mark.needs("held_clock")
def test_a_dead_letter_is_a_queue_without_one_of_its_own(broker, broker_factory, receiver):
    send(broker, b"m")
    broker.dead_letter(take(receiver), "first reason")
    for number in range(1, 50):
        delivery = take(receiver, DEAD)
        assert delivery.deliveries == number
        broker.nack(delivery)

    broker.dead_letter(take(receiver, DEAD), "refused here too")

    broker_factory.advance(broker_factory.lease_seconds)
    delivery = take(receiver, DEAD)
    assert delivery.attributes[DEATH_REASON] == "first reason"
    assert not broker.has_queue(dead_letter_queue(DEAD))
    broker.ack([delivery])
    assert_empty(broker, DEAD)


@pytest.mark.needs("held_clock")
def test_a_dead_letter_is_kept_for_the_whole_retention(broker_factory):
    broker = broker_factory(retention=1000.0)
    receiver = broker.receiver()
    broker.declare_queue(QueueSpec("q", message_ttl=600.0))
    send(broker, b"m")
    broker_factory.advance(599)
    broker.dead_letter(take(receiver), "reason")
    broker_factory.advance(999)
    assert bodies(broker.peek(DEAD)) == [b"m"]
    broker_factory.advance(1)
    assert broker.peek(DEAD) == []


def test_the_dead_letter_outlives_its_queue(broker, receiver):
    send(broker, b"m")
    broker.dead_letter(take(receiver), "reason")
    broker.delete_queue("q")
    assert bodies(broker.peek(DEAD)) == [b"m"]


def test_redrive_brings_messages_back_as_new_ones(broker_factory):
    broker = broker_factory(max_deliveries=2)
    receiver = broker.receiver()
    send(broker, b"m", attributes={"tenant": "acme"})
    broker.nack(take(receiver))
    broker.dead_letter(take(receiver), "reason")

    assert broker.redrive("q") == 1

    assert_empty(broker, DEAD)
    delivery = take(receiver)
    assert (delivery.data, delivery.deliveries) == (b"m", 1)
    assert set(delivery.attributes) == {"tenant", REDRIVE}
    assert delivery.attributes["tenant"] == "acme"

    broker.dead_letter(delivery, "again")
    assert broker.redrive("q") == 1
    again = take(receiver)
    assert again.attributes[REDRIVE] != delivery.attributes[REDRIVE]
    assert DEATH_REASON not in again.attributes


def test_redrive_takes_up_to_a_limit_the_oldest_first(broker, receiver):
    assert broker.redrive("q") == 0
    send(broker, b"1", b"2", b"3")
    for delivery in receiver.poll("q", 3):
        broker.dead_letter(delivery, "reason")
    assert broker.redrive("q", 0) == 0
    assert broker.redrive("q", 2) == 2
    assert bodies(receiver.poll("q", 3)) == [b"1", b"2"]
    assert bodies(broker.peek(DEAD)) == [b"3"]
    assert broker.redrive("q", 5) == 1


def test_redrive_leaves_what_somebody_holds(broker, receiver):
    send(broker, b"1", b"2")
    for delivery in receiver.poll("q", 2):
        broker.dead_letter(delivery, "reason")
    [held] = receiver.poll(DEAD, 1)
    assert broker.redrive("q") == 1
    assert bodies(receiver.poll("q", 2)) == [b"2"]
    assert broker.extend([held], 60.0) == []


# --- looking in -----------------------------------------------------------------------------------


@pytest.mark.needs("sees_all")
def test_size_counts_by_state(broker, receiver):
    send(broker, *[b"m"] * 6)
    send(broker, *[b"later"] * 3, delay=1000.0)
    broker.nack(receiver.poll("q", 3)[0], 1000.0)
    size = broker.size("q")
    assert size == QueueSize(ready=3, delayed=4, leased=2)
    assert size.total == 9


def test_size_of_a_missing_queue(broker):
    with pytest.raises(NotFound, match="missing"):
        broker.size("missing")


@pytest.mark.needs("sees_all")
def test_purge_leaves_what_somebody_holds(broker, broker_factory, receiver):
    send(broker, b"held")
    held = take(receiver)
    send(broker, b"1", b"2")
    send(broker, b"3", delay=1000.0)
    assert broker.purge("q") == 3
    assert broker.purge("q") == 0
    assert broker.size("q") == QueueSize(ready=0, delayed=0, leased=1)
    broker.nack(held)
    assert take(receiver).data == b"held"


def test_a_purge_touches_no_other_queue(broker, receiver):
    send(broker, b"mine")
    send(broker, b"other", queue="other")
    assert broker.purge("q") == 1
    assert take(receiver, "other").data == b"other"


@pytest.mark.needs("sees_all")
def test_peek_leases_nothing(broker, broker_factory, receiver):
    send(broker, b"held")
    held = take(receiver)
    send(broker, b"low", b"second")
    send(broker, b"high", priority=9)
    send(broker, b"later", delay=1000.0)

    peeked = broker.peek("q")

    assert [(m.data, m.state) for m in peeked[:3]] == [
        (b"high", "ready"),
        (b"low", "ready"),
        (b"second", "ready"),
    ]
    assert {(m.data, m.state) for m in peeked[3:]} == {(b"held", "leased"), (b"later", "delayed")}
    assert broker.peek("q", 2) == peeked[:2]
    assert broker.peek("q", 4) == peeked[:4]
    assert {m.deliveries for m in peeked if m.data != b"held"} == {0}
    assert {m.queue for m in peeked} == {"q"}
    assert [m.message_id for m in peeked if m.data == b"held"] == [held.message_id]
    assert bodies(receiver.poll("q", 10)) == [b"high", b"low", b"second"]


# --- lifecycle ------------------------------------------------------------------------------------


def test_connecting_proves_that_the_broker_is_there(broker):
    broker.connect()
    broker.connect()


def test_closing_twice_and_what_was_published_stays(broker_factory):
    broker = broker_factory()
    send(broker, b"m")
    broker.close()
    broker.close()
    broker_factory.settle()
    assert take(broker_factory().receiver()).data == b"m"


def test_closing_a_receiver_touches_no_lease(broker, broker_factory, receiver):
    receiver.subscribe(_declared(broker))
    send(broker, b"m")
    delivery = wait_for(receiver)
    receiver.close()
    receiver.close()
    assert broker.extend([delivery], 60.0) == []
    assert broker.receiver().poll("q", 1) == []


def test_threads_share_a_broker(broker):
    """Four publish, four receive, with a thread beside them that extends: none lost, none twice."""
    total, taken, lock, done = 120, [], threading.Lock(), threading.Event()
    errors: list[BaseException] = []

    def guarded(work):
        def run(*args):
            try:
                work(*args)
            except BaseException as exc:
                errors.append(exc)
                done.set()

        return run

    def publish(n):
        for i in range(total // 4):
            send(broker, b"%d/%d" % (n, i))

    def consume():
        receiver = broker.receiver()
        while not done.is_set():
            for delivery in receiver.poll("q", 2):
                assert broker.extend([delivery], 60.0) == []
                broker.ack([delivery])
                with lock:
                    taken.append(delivery.data)
                    if len(taken) >= total:
                        done.set()
        receiver.close()

    threads = [threading.Thread(target=guarded(publish), args=(n,)) for n in range(4)]
    threads += [threading.Thread(target=guarded(consume)) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert done.wait(PATIENCE)
    for thread in threads:
        thread.join(PATIENCE)
    assert errors == []
    assert sorted(taken) == sorted(b"%d/%d" % (n, i) for n in range(4) for i in range(total // 4))


def _declared(broker, name="q"):
    broker.declare_queue(QueueSpec(name))
    return name
