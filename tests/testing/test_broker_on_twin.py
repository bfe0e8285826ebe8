"""The Pub/Sub broker on the twin: what the emulator lets pass and the service refuses."""

from __future__ import annotations

import dataclasses
import logging
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from gwi_celery.brokers.base import OutgoingMessage, QueueSpec
from gwi_celery.brokers.pubsub import (
    arrivals,
    client,
    deliveries,
    looks,
    publisher,
    streams,
    wire,
)
from gwi_celery.brokers.pubsub.broker import PubSubBroker
from gwi_celery.brokers.pubsub.client import FieldMask, pb
from gwi_celery.brokers.pubsub.options import parse
from gwi_celery.brokers.pubsub.receiver import PubSubReceiver
from gwi_celery.brokers.pubsub.streams import Flow
from gwi_celery.brokers.pubsub.sweep import sweep
from gwi_celery.errors import BrokerUnavailable, BrokerUnusable, NotFound, TooLarge
from gwi_celery.gcp import fork_gate
from gwi_celery.testing.twin import STRICT, Twin, start_twin
from tests.contract.brokers import PATIENCE, send, wait_for
from tests.machine import Stopwatch
from tests.workers import eventually


@pytest.fixture(scope="module")
def twin() -> Iterator[Twin]:
    with start_twin() as started:
        yield started


@pytest.fixture(autouse=True)
def _behaviour(twin: Twin) -> None:
    """Strict in all that a test doesn't time or count."""
    twin.switch(**dataclasses.asdict(STRICT.changed(faults=0, early_expiry=0, admin_quota=0)))


Connect = Callable[..., PubSubBroker]


@pytest.fixture
def connect(twin: Twin) -> Iterator[Connect]:
    """Makes connections to the test's project."""
    url = f"pubsub://{twin.endpoint}/p-{uuid4().hex[:20]}?emulator=strict&lease_seconds=10"
    with ExitStack() as stack:

        def make(**options: Any) -> PubSubBroker:
            broker = PubSubBroker(parse(url, options))
            stack.callback(broker.close)
            return broker

        yield make


@pytest.fixture
def broker(connect: Connect) -> PubSubBroker:
    return connect(ordering=True)


def _of(tenant: str, body: bytes) -> tuple[str, str, OutgoingMessage]:
    return "", "q", OutgoingMessage(body, {"tenant": tenant, "run": "r"})


def test_messages_of_several_tenants_are_published_in_one_go(
    broker: PubSubBroker, twin: Twin
) -> None:
    broker.publish_many([_of("a", b"a1"), _of("b", b"b1"), _of("a", b"a2"), _of("b", b"b2")])
    subscription = broker.topology.subscription("q")
    assert twin.counts(subscription)["waiting"] == 4
    receiver = broker.receiver()
    found: list[bytes] = []
    while len(found) < 4:
        deliveries = receiver.poll("q", 10)
        found += [delivery.data for delivery in deliveries]
        broker.ack(deliveries)
        broker.flush()
    assert [body for body in found if body.startswith(b"a")] == [b"a1", b"a2"]
    assert [body for body in found if body.startswith(b"b")] == [b"b1", b"b2"]


def test_what_was_just_created_can_be_used(broker: PubSubBroker, twin: Twin) -> None:
    for n in range(5):
        broker.publish("", f"queue-{n}", OutgoingMessage(b"x"))
        assert twin.counts(broker.topology.subscription(f"queue-{n}"))["waiting"] == 1


@pytest.mark.parametrize("many", [False, True], ids=["one", "batch"])
def test_a_reply_reaches_a_queue_that_others_do_not_find_yet(
    connect: Connect, twin: Twin, many: bool
) -> None:
    """Whoever asks makes the queue for the answer, asks, and is answered within milliseconds."""
    asker, worker = connect(), connect()
    worker.declare_queue(QueueSpec("q"))
    asker.declare_queue(QueueSpec("answers", auto_delete=True))
    receiver = asker.receiver()
    receiver.subscribe("answers", bulk=True)
    twin.switch(settle=1, settle_misses=1)
    answer = "", "answers", OutgoingMessage(b"x", reply=True)
    if many:
        worker.publish_many([answer])
    else:
        worker.publish(*answer)
    twin.switch(settle=0)
    assert wait_for(receiver, "answers").data == b"x"
    assert worker.queues() == ["answers", "q", "q.dead"], "and none was made for it"


def test_an_event_holds_up_nobody_unless_many_are_in_flight(
    connect: Connect, twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker sends one every two seconds, from its event loop."""
    monkeypatch.setattr(publisher, "_MOST_EVENTS", 1)
    broker = connect(publish_timeout=1)
    event = "", "q", OutgoingMessage(b"x", event=True)
    broker.publish(*event)
    assert broker.flush(PATIENCE), "its topic is known now"
    with twin.paused():
        broker.publish(*event)
        with pytest.raises(BrokerUnavailable):
            broker.publish(*event)
    assert broker.flush(PATIENCE)
    assert twin.counts(broker.topology.subscription("q"))["waiting"] >= 2


def test_a_queues_topic_may_be_found_later_than_the_queue(connect: Connect, twin: Twin) -> None:
    """Another connection is just making the queue: its levels have to wait for its topic."""
    twin.switch(settle=0)
    maker, other = connect(), connect(priority_levels=(0, 5), repair=True)
    spec = QueueSpec("q")
    topology = other.topology
    _, own = next(
        iter(topology.desired.subscriptions(spec, topology.dead_topic("q")[: -len(".dead")]))
    )
    maker.topology.admin.create_topic(own.topic, {})
    maker.topology.admin.create_subscription(own)
    other.client.on_call = lambda rpc: twin.switch(settle=int(rpc == "CreateSubscription"))
    twin.switch(settle_misses=1)
    other.declare_queue(spec)
    assert other.topology.admin.get_subscription(f"{own.name}~p5").topic == own.topic


def test_a_dead_letters_topic_may_be_found_later_than_the_rest(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = connect()
    broker.declare_queue(QueueSpec("q"))
    broker.declare_exchange("news", "direct")
    dead = broker.topology.dead_topic("q")
    known = {path: until for path, until in broker.client._young.items() if path == dead}
    monkeypatch.setattr(broker.client, "_young", known)  # all others are old
    call, missed = broker.client._call_once, iter([True, True])

    def missing(rpc: str, request: Any, *others: Any) -> Any:
        if rpc == "CreateSubscription" and next(missed, False):
            raise NotFound(f"{request.dead_letter_policy.dead_letter_topic} does not exist")
        return call(rpc, request, *others)

    monkeypatch.setattr(broker.client, "_call_once", missing)
    broker.bind("q", "news", "sports")
    assert [binding.routing_key for binding in broker.bindings()] == ["sports"]


def test_a_queue_that_lost_its_dead_letter_is_repaired(connect: Connect, twin: Twin) -> None:
    """Pub/Sub takes no policy whose topic doesn't exist."""
    twin.switch(settle=0, name_rest=0)
    broker = connect()
    broker.declare_queue(QueueSpec("q"))
    path, dead = broker.topology.subscription("q"), broker.topology.dead_topic("q")
    lost = _subscription(broker, path)
    lost.ClearField("dead_letter_policy")
    _update(broker, lost, "dead_letter_policy")
    broker.topology.admin.delete_subscription(broker.topology.subscription("q.dead"))
    broker.topology.admin.delete_topic(dead)
    connect(repair=True).declare_queue(QueueSpec("q"))
    assert _subscription(broker, path).dead_letter_policy.dead_letter_topic == dead


def test_asking_whether_it_answers_costs_no_admin_call(
    connect: Connect, twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probes and stopping workers ask every second; a project has 6,000 admin calls a minute."""
    twin.switch(settle=0)
    monkeypatch.setattr(client, "_SETTLES", 0.0)
    broker = connect()
    broker.connect()
    broker.connect()
    before = Counter(twin.cost()["rpcs"])
    for _ in range(20):
        broker.connect()
    assert set(Counter(twin.cost()["rpcs"]) - before) == {"Pull"}
    assert (broker.queues(), broker.bindings()) == ([], [])
    twin.reset()
    broker.connect()
    twin.deny("pubsub.subscriptions.consume")
    try:
        with pytest.raises(BrokerUnusable, match=r"pubsub\.subscriber"):
            broker.connect()
    finally:
        twin.allow("pubsub.subscriptions.consume")


def test_an_ack_outlasts_a_permission_that_is_taken_away_for_a_moment(
    connect: Connect, twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else all that a worker holds by then is redelivered, and run again if it is no reliable job."""
    broker = connect()
    send(broker, b"x")
    [delivery] = eventually(lambda: broker.receiver().poll("q", 1))
    counts = partial(twin.counts, broker.topology.subscription("q"))
    refused = threading.Event()
    monkeypatch.setattr(
        broker.client, "on_call", lambda rpc: rpc == "Acknowledge" and refused.set()
    )
    twin.deny("pubsub.subscriptions.consume")
    try:
        broker.ack([delivery])
        assert refused.wait(PATIENCE)
        assert not broker.flush(0.1)
    finally:
        twin.allow("pubsub.subscriptions.consume")
    assert broker.flush(PATIENCE)
    assert (counts()["acked"], counts()["expired"]) == (1, 0)


def test_queues_that_killed_processes_left_are_found(
    connect: Connect, twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a busy process reads is none of them, nor is a queue that stays."""
    lives, dead, operator = connect(), connect(), connect()
    for broker, name in ((lives, "lives"), (dead, "dead")):
        broker.declare_exchange("news", "fanout")
        broker.declare_queue(QueueSpec(name, auto_delete=True))
        broker.bind(name, "news", "")
    lives.declare_queue(QueueSpec("stays"))
    busy = lives.receiver()
    busy.subscribe("lives", bulk=True)
    subscription = lives.topology.subscription("lives")
    eventually(lambda: busy.poll("lives", 1) or twin.counts(subscription)["readers"])
    lives.publish("news", "", OutgoingMessage(b"for all"))
    twin.switch(settle=0)  # it was long ago
    with monkeypatch.context() as patch:
        slow = SimpleNamespace(time=lambda: time.time() - 60, monotonic=time.monotonic)
        patch.setattr(deliveries, "time", slow)  # a reader's clock may be behind
        assert sweep(operator, patience=1) == 1
    assert operator.queues() == ["lives", "stays", "stays.dead"]
    assert [binding.queue for binding in operator.bindings()] == ["lives"]
    assert wait_for(busy, "lives").data == b"for all"
    assert busy.poll("lives", 10) == [], "the probe is no message"
    assert sweep(operator, patience=1) == 0


def test_a_queue_whose_making_was_not_answered_is_ones_own(
    connect: Connect, twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call took effect and failed; made again, the queue exists, but is no other process's."""
    twin.switch(settle=0)
    broker = connect()
    call, failed = broker.client._call_once, []

    def lose_answers(rpc: str, request: Any, *others: Any) -> Any:
        answer = call(rpc, request, *others)
        if rpc == "CreateSubscription" and request.name not in failed:
            failed.append(request.name)
            raise BrokerUnavailable("the answer was lost")
        return answer

    monkeypatch.setattr(broker.client, "_call_once", lose_answers)
    broker.declare_exchange("news", "fanout")
    broker.declare_queue(QueueSpec("answers", auto_delete=True))
    broker.bind("answers", "news", "")
    receiver = broker.receiver()
    receiver.subscribe("answers", bulk=True)
    send(broker, b"x", queue="answers")
    broker.ack([wait_for(receiver, "answers")])
    broker.close()
    assert failed
    assert list(connect().topology.admin.subscriptions()) == []


def test_a_queue_is_not_deleted_under_its_reader_whose_sign_is_new(
    connect: Connect, twin: Twin
) -> None:
    """It is the project's first: its topic may not be found yet by who looks for signs."""
    twin.switch(settle=0)
    maker, reader = connect(), connect()
    maker.declare_queue(QueueSpec("q", auto_delete=True))
    own, joined = maker.receiver(), reader.receiver()
    own.subscribe("q")
    joined.subscribe("q")
    missed: list[str] = []

    def miss(rpc: str) -> None:
        missed.append(rpc)
        twin.switch(settle=60 * (missed == ["ListTopicSubscriptions"]))

    twin.switch(settle_misses=1)
    maker.client.on_call = miss
    own.unsubscribe("q")
    maker.client.on_call = None
    assert missed[:2] == ["ListTopicSubscriptions", "CreateTopic"]
    assert connect().queues() == ["q"]
    reader.close()
    assert connect().queues() == []


def _wait_until_read(receiver: PubSubReceiver, twin: Twin, subscription: str) -> None:
    """Nothing is taken: who polls is to give back what it got."""

    def read() -> int:
        receiver.want("q", 4)
        return twin.counts(subscription)["readers"]

    eventually(read)


def test_workers_that_come_and_go_leave_no_message_to_its_lease(
    connect: Connect, twin: Twin
) -> None:
    """A pull that its client ends takes the next message along; a stream ends without one."""
    sender, stays = connect(), connect()
    for broker in (sender, stays):
        broker.declare_queue(QueueSpec("q"))
    subscription = sender.topology.subscription("q")
    for n in range(5):
        goes = connect()
        goes.declare_queue(QueueSpec("q"))
        receiver = goes.receiver()
        receiver.subscribe("q")
        _wait_until_read(receiver, twin, subscription)
        goes.close()
        eventually(lambda: not twin.counts(subscription)["readers"], "its end is seen")
        send(sender, str(n).encode())
    receiver = stays.receiver()
    receiver.subscribe("q")
    found = []
    for _ in range(5):
        delivery = wait_for(receiver)
        stays.ack([delivery])  # on a busy machine all five may take longer than a lease
        found.append(delivery.data)
    assert sorted(found) == [b"0", b"1", b"2", b"3", b"4"]
    assert twin.counts(subscription)["expired"] == 0


def test_a_worker_is_sent_no_more_than_it_has_room_for(connect: Connect, twin: Twin) -> None:
    broker = connect()
    send(broker, *(str(n).encode() for n in range(10)))
    subscription = broker.topology.subscription("q")
    receiver = broker.receiver()
    receiver.subscribe("q")
    held = []
    while len(held) < 3:
        held += receiver.poll("q", 3 - len(held))
    receiver.return_unpolled("q")
    assert twin.counts(subscription)["leased"] == 3
    for left in (6, 5):
        broker.ack([held.pop()])
        while len(held) < 3:
            held += receiver.poll("q", 3 - len(held))
        broker.flush()
        counts = twin.counts(subscription)
        assert (counts["leased"], counts["waiting"]) == (3, left)
    broker.ack(held)


def test_what_was_wanted_while_it_arrived_is_not_fetched_twice(connect: Connect) -> None:
    """The stream brings it between the consumer's look at what has arrived and its asking for more."""
    broker = connect()
    send(broker, b"0", b"1")
    receiver = broker.receiver()
    receiver.subscribe("q")
    held = wait_for(receiver)
    [flow] = receiver._queues["q"].lines
    assert isinstance(flow, Flow)
    stream = flow._current
    assert stream is not None
    flow._looks_again = True  # not by itself
    receiver.want("q", 1)
    receiver.poll("q", 0)  # here it takes what has arrived, and is full
    flow._look_again()
    assert flow._current is stream
    broker.ack([held])


def test_what_waits_for_its_time_takes_nobodys_place(connect: Connect) -> None:
    """Parked, it is still out by Pub/Sub's count: a stream full of it would bring nothing more."""
    broker = connect()
    send(broker, *(str(n).encode() for n in range(6)), delay=3600)
    receiver = broker.receiver()
    receiver.subscribe("q")
    receiver.poll("q", 2)
    send(broker, b"now")
    assert wait_for(receiver).data == b"now"


def test_a_level_that_is_said_to_be_empty_is_asked_again(connect: Connect, twin: Twin) -> None:
    """An immediate pull may answer with nothing although there is something."""
    twin.switch(settle=0)
    broker = connect(priority_levels=(0, 5, 9))
    send(broker, *(b"low" for _ in range(30)))
    send(broker, *(b"high" for _ in range(30)), priority=9)
    receiver = broker.receiver()
    receiver.subscribe("q")
    found: list[bytes] = []
    while found.count(b"high") < 30:
        delivery = wait_for(receiver)
        found.append(delivery.data)
        broker.ack([delivery])
    assert found.count(b"low") <= 5, "by chance: without asking again a third of the time"
    receiver.return_unpolled("q")
    assert twin.counts(broker.topology.subscription("q"))["expired"] == 0


def test_a_level_that_was_empty_is_asked_twice_before_the_next(
    connect: Connect, twin: Twin
) -> None:
    """At first, and after it had a message, three times."""
    twin.switch(settle=0, immediate_empty=0)
    broker = connect(priority_levels=(0, 5, 9))
    send(broker, *(b"low" for _ in range(4)))
    receiver = broker.receiver()
    receiver.subscribe("q")
    calls: list[str] = []
    broker.client.on_call = calls.append

    def cost() -> int:
        calls.clear()
        broker.ack([wait_for(receiver)])
        return calls.count("Pull")

    assert [cost() for _ in range(3)] == [3 + 3 + 1, 2 + 2 + 1, 2 + 2 + 1]
    send(broker, b"high", priority=9)
    assert [cost() for _ in range(2)] == [1, 3 + 2 + 1]


def test_a_level_whose_pull_failed_is_asked_again_though_others_have_messages(
    connect: Connect, twin: Twin
) -> None:
    twin.switch(settle=0, immediate_empty=0)
    broker = connect(priority_levels=(0, 5))
    send(broker, *(b"low" for _ in range(3)))
    send(broker, b"high", priority=9)
    receiver = broker.receiver()
    receiver.subscribe("q")
    receiver._queues["q"].lines[0].retry_at = time.monotonic()  # the pause after a failure is over
    assert wait_for(receiver).data == b"high"


def test_a_fork_between_two_levels_does_not_end_the_look(
    connect: Connect, twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a child is replaced after its task: the next message is asked for just then."""
    twin.switch(settle=0, immediate_empty=0)
    broker = connect(priority_levels=(0, 5))
    send(broker, b"low")
    receiver = broker.receiver()
    receiver.subscribe("q")
    receiver.clear()
    lines = receiver._queues["q"].lines

    def fork_begins(rpc: str) -> None:
        broker.client.on_call = None
        for line in lines:
            line.pause(0.0)

    broker.client.on_call = fork_begins
    assert receiver.poll("q", 1) == []
    eventually(lambda: all(line.idle() for line in lines))
    for line in lines:
        line.resume()
    assert select.select([receiver.fileno()], [], [], PATIENCE)[0], "no level is asked any more"
    broker.ack([wait_for(receiver)])
    receiver.return_unpolled("q")
    send(broker, b"low")
    send(broker, b"high", priority=9)
    for line in lines:
        line.pause(0.0)
    receiver.want("q", 1)
    for line in reversed(lines):
        line.resume()
    urgent = wait_for(receiver)
    assert urgent.data == b"high"
    broker.ack([urgent])
    receiver.return_unpolled("q")
    with monkeypatch.context() as forking:
        forking.setattr(fork_gate, "try_enter", lambda: False)
        receiver.want("q", 1)
    for line in lines:
        line.resume()
    assert [d.data for d in eventually(lambda: receiver.poll("q", 1))] == [b"low"]


def test_an_ack_may_come_before_its_binding_is_found_everywhere(
    connect: Connect, twin: Twin
) -> None:
    """Another connection made it just now: this one has listed it, and doesn't know its age."""
    maker, reader = connect(), connect()
    twin.switch(settle=60, settle_misses=0)
    maker.declare_exchange("news", "direct")
    maker.declare_queue(QueueSpec("q"))
    maker.bind("q", "news", "a")
    receiver = reader.receiver()
    receiver.subscribe("q")
    maker.publish("news", "a", OutgoingMessage(b"x"))
    delivery = wait_for(receiver)
    path = delivery.ack_id.partition(" ")[0]
    assert path != reader.topology.subscription("q")
    acks: list[str] = []
    reader.client.on_call = lambda rpc: acks.append(rpc) if rpc == "Acknowledge" else None
    twin.switch(settle_misses=1)
    reader.ack([delivery])
    eventually(lambda: len(acks) > 1, "it is not found, and tried again")
    twin.switch(settle=0)
    eventually(lambda: twin.counts(path)["acked"] == 1)


def test_streams_that_end_as_all_do_are_opened_again_without_a_word(
    connect: Connect,
    twin: Twin,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "_LIVED", 0.1)
    broker = connect()
    receivers = []
    for queue, bulk in (("q", False), ("replies", True)):
        broker.declare_queue(QueueSpec(queue))
        receivers.append(broker.receiver())
        receivers[-1].subscribe(queue, bulk=bulk)
        send(broker, b"first", queue=queue)
        broker.ack([wait_for(receivers[-1], queue)])
    before = twin.cost()["rpcs"]["StreamingPull"]
    with caplog.at_level(logging.INFO):
        twin.switch(stream_life=0.2)
        for receiver, queue in zip(receivers, ("q", "replies"), strict=True):
            until = time.monotonic() + 1
            while time.monotonic() < until:
                receiver.clear()
                assert receiver.poll(queue, 1) == []
                time.sleep(0.01)
            send(broker, b"then", queue=queue)
            with Stopwatch() as watch:
                broker.ack([wait_for(receiver, queue)])
            assert watch.seconds < 1
        twin.switch(stream_life=0)
        for receiver, queue in zip(receivers, ("q", "replies"), strict=True):
            eventually(partial(_sleeps, receiver, queue), "nothing wakes who waits")
    assert twin.cost()["rpcs"]["StreamingPull"] >= before + 4
    assert [r for r in caplog.records if r.name.startswith("gwi_celery")] == []


def _sleeps(receiver: PubSubReceiver, queue: str) -> bool:
    receiver.clear()
    assert receiver.poll(queue, 1) == []
    due = receiver.next_due()
    return due is None or due > 1


def test_nothing_wakes_who_waits_for_a_pull_after_one_that_failed(
    connect: Connect, twin: Twin
) -> None:
    twin.switch(settle=0)
    broker = connect(priority_levels=[0, 5])
    broker.declare_queue(QueueSpec("q"))
    receiver = broker.receiver()
    receiver.subscribe("q")
    twin.switch(faults=1, pull_hold=0.1)
    eventually(lambda: not _sleeps(receiver, "q"), "a pull that failed")
    twin.switch(faults=0, pull_hold=90)
    eventually(lambda: _sleeps(receiver, "q"), "one that waits")


def test_an_idle_stream_says_that_it_lives(
    connect: Connect, twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_HEARTBEAT", 0.1)
    twin.switch(stream_silence=0.5)
    broker = connect()
    broker.declare_queue(QueueSpec("q"))
    receiver = broker.receiver()
    receiver.subscribe("q")
    subscription = broker.topology.subscription("q")
    _wait_until_read(receiver, twin, subscription)
    opened = twin.cost()["rpcs"]["StreamingPull"]
    time.sleep(1.5)
    send(broker, b"x")
    assert wait_for(receiver).data == b"x"
    assert twin.cost()["rpcs"]["StreamingPull"] == opened


def test_dead_letters_are_kept_for_31_days_those_of_earlier_versions_too(
    connect: Connect, twin: Twin
) -> None:
    broker = connect()
    broker.declare_queue(QueueSpec("q"))
    path = broker.topology.subscription("q.dead")
    month = 31 * 86_400
    assert _subscription(broker, path).message_retention_duration.seconds == month
    earlier = _subscription(broker, path)
    earlier.message_retention_duration.seconds = 7 * 86_400
    _update(broker, earlier, "message_retention_duration")
    connect().declare_queue(QueueSpec("q.dead"))
    assert _subscription(broker, path).message_retention_duration.seconds == month

    _update(broker, earlier, "message_retention_duration")
    twin.deny("pubsub.subscriptions.update")
    try:
        connect().declare_queue(QueueSpec("q.dead"))  # not worth an error
    finally:
        twin.allow("pubsub.subscriptions.update")


def test_a_far_eta_is_published_anew_by_its_age_also_where_nothing_counts_deliveries(
    connect: Connect, twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pub/Sub drops what is older than the retention, parked or not."""
    monkeypatch.setattr(deliveries, "_HOLD", 0.5)
    monkeypatch.setattr(deliveries, "_PARK", 1.0)
    monkeypatch.setattr(deliveries, "_RENEWED_AT", 2.5)
    broker = connect()
    broker.declare_queue(QueueSpec("q"))
    path = broker.topology.subscription("q")
    uncounted = _subscription(broker, path)
    uncounted.ClearField("dead_letter_policy")
    _update(broker, uncounted, "dead_letter_policy")
    due = time.time() + 6
    with Stopwatch() as watch:
        send(broker, b"x", delay=6)
        receiver = broker.receiver()
        receiver.subscribe("q")
        delivery = wait_for(receiver)
    assert time.time() >= due
    assert watch.seconds < 7.5
    assert due - delivery.published_at < 5.5, "a copy, younger than the message"
    broker.ack([delivery])
    broker.flush()
    assert twin.counts(path)["waiting"] == 0


def test_what_is_given_back_is_acked_only_once_its_copy_is_published(
    connect: Connect, twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = connect()
    send(broker, b"x")
    receiver = broker.receiver()
    receiver.subscribe("q")
    delivery = wait_for(receiver)

    def unavailable(*args: Any) -> None:
        raise BrokerUnavailable("it is down")

    with monkeypatch.context() as patch:
        patch.setattr(broker.publisher, "send", unavailable)
        broker.give_back(delivery)
        assert broker.flush(10)
    assert twin.counts(broker.topology.subscription("q"))["acked"] == 0
    assert wait_for(receiver).data == b"x"


def test_what_is_given_back_keeps_its_place_in_a_runs_order(broker: PubSubBroker) -> None:
    broker.publish_many([_of("a", b"1"), _of("a", b"2")])
    receiver = broker.receiver()
    receiver.subscribe("q")
    broker.give_back(wait_for(receiver))
    assert wait_for(receiver).data == b"1"


@pytest.mark.parametrize("delay", [1, 7], ids=["held", "parked"])
def test_an_eta_is_kept_with_a_retry_policy(connect: Connect, delay: float) -> None:
    """Which Pub/Sub applies to a lease that runs out as well."""
    broker = connect(retry_policy=(10, 600))
    broker.declare_queue(QueueSpec("q"))
    due = time.time() + delay
    send(broker, b"x", delay=delay)
    receiver = broker.receiver()
    receiver.subscribe("q")
    broker.ack([wait_for(receiver)])
    # The twin counts by another clock, which may run some milliseconds before this one.
    assert -0.1 <= time.time() - due < 10, "the policy's shortest pause"


def test_the_largest_message_fits_its_request(connect: Connect, twin: Twin) -> None:
    broker = connect()
    name = "q" * 180
    around = len(
        broker.publisher.made("", name, OutgoingMessage(b"x" * 9_000_000)).SerializeToString()
    )
    largest = b"x" * (9_000_000 + wire.MAX_MESSAGE - around)
    send(broker, largest, queue=name)
    with pytest.raises(TooLarge):
        send(broker, largest + b"x", queue=name)
    assert twin.counts(broker.topology.subscription(name))["waiting"] == 1


def _subscription(broker: PubSubBroker, path: str) -> Any:
    request = pb["GetSubscriptionRequest"](subscription=path)
    return broker.client.call("GetSubscription", request, path)


def _update(broker: PubSubBroker, subscription: Any, field: str) -> None:
    request = pb["UpdateSubscriptionRequest"](
        subscription=subscription, update_mask=FieldMask(paths=[field])
    )
    broker.client.call("UpdateSubscription", request, subscription.name)


def test_who_may_not_act_as_the_pusher_is_told_the_role(broker: PubSubBroker, twin: Twin) -> None:
    account = "pusher@p.example"
    broker.declare_queue(QueueSpec("q"))
    twin.deny("iam.serviceAccounts.actAs")
    try:
        with pytest.raises(BrokerUnusable, match=r"grant roles/iam\.serviceAccountUser on it"):
            broker.push_to("q", "http://127.0.0.1:9/push", service_account=account)
        broker.push_to("q", "http://127.0.0.1:9/push")
    finally:
        twin.allow("iam.serviceAccounts.actAs")


def test_a_project_that_is_not_ready_is_waited_for(
    broker: PubSubBroker, connect: Connect, twin: Twin
) -> None:
    twin.switch(settle=0.5, settle_misses=1)
    broker.declare_queue(QueueSpec("q"))
    twin.switch(settle=60)
    hasty = connect(prefix="hasty-", timeout=0.3)
    with pytest.raises(BrokerUnavailable, match=r"not ready for Pub/Sub yet.*resourceLocations"):
        hasty.declare_queue(QueueSpec("q"))


def test_revoked_credentials_are_told_at_once(broker: PubSubBroker, twin: Twin) -> None:
    twin.switch(revoked=True)
    with pytest.raises(BrokerUnusable, match=r"invalid_grant.*application-default login"):
        broker.declare_queue(QueueSpec("q"))


def test_each_ack_of_an_exactly_once_queue_is_refused_by_itself(
    connect: Connect,
    twin: Twin,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that are refused for now are sent again; what is told of a lost one is about it alone."""
    twin.switch(transient_acks=0)
    broker = connect(exactly_once=True)
    broker.declare_queue(QueueSpec("q"))
    send(broker, *[b"x"] * 20)
    held = broker.looks.in_turn("q", 20)
    assert len(held) == 20
    [path] = [source.path for source in broker.topology.sources("q")]
    lost = {held[3].ack_id, held[11].ack_id}
    nack = pb["ModifyAckDeadlineRequest"](
        subscription=path, ack_ids=[id.split()[1] for id in lost], ack_deadline_seconds=0
    )
    broker.client.call("ModifyAckDeadline", nack, path)
    twin.switch(transient_acks=0.3)  # by chance none is refused: once in 600 times
    with caplog.at_level(logging.WARNING):
        broker.ack(held)
        broker.flush(2)
        # By chance one would be refused until its lease has run out: once in 100 times.
        twin.switch(transient_acks=0)
        assert broker.flush(PATIENCE)
    assert twin.counts(path)["acked"] == 18
    refused = [record.args[0] for record in caplog.records if isinstance(record.args, tuple)]
    assert sum(int(str(count)) for count in refused) == 2
    held = broker.looks.in_turn("q", 2)
    asked: list[list[str]] = []
    call = broker.client.call

    def recorded(name: str, request: Any, *rest: Any, **options: Any) -> Any:
        if name == "ModifyAckDeadline":
            asked.append(list(request.ack_ids))
        return call(name, request, *rest, **options)

    monkeypatch.setattr(broker.client, "call", recorded)
    stale = dataclasses.replace(held[0], ack_id=f"{path} stale")
    broker.deliveries.leases[stale.ack_id] = time.monotonic() + 60
    assert broker.extend([*held, stale], 60) == [stale]
    assert [len(ids) for ids in asked if "stale" in ids] == [3], "the answer names it"


def test_cloud_monitoring_tells_the_depth_of_a_queue(broker: PubSubBroker, twin: Twin) -> None:
    broker.declare_queue(QueueSpec("q"))
    assert broker.depth("q") is None, "it was not measured yet"
    broker.publish_many([_of("a", b"x"), _of("b", b"x"), _of("c", b"x")])
    twin.switch(measured_every=0.1, measured_late=0)
    eventually(lambda: broker.state("q").ready == 3)
    assert broker.state("q").oldest is not None
    twin.deny("monitoring.timeSeries.list")
    assert broker.depth("q") is None
    twin.allow("monitoring.timeSeries.list")


def test_operators_look_once_into_each_level(
    connect: Connect, twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And see what is ready in each, most urgent first, as many as asked for."""
    twin.switch(settle=0)  # no stream is opened in vain
    monkeypatch.setattr(looks, "_QUIET", 0.3)  # the twin is near
    broker = connect(priority_levels=(0, 5, 9))
    for priority in (0, 0, 5):
        broker.publish("", "q", OutgoingMessage(b"%d" % priority, priority=priority))
    calls: Counter[str] = Counter()
    broker.client.on_call = lambda name: calls.update([name])
    assert [message.data for message in broker.peek("q", 2)] == [b"5", b"0"]
    assert calls["StreamingPull"] == 3
    calls.clear()
    assert broker.purge("q") == 3
    assert calls["StreamingPull"] == 3
    assert broker.peek("q") == []


def test_nothing_is_due_in_a_queue_without_room(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop of a worker that is busy for long sleeps, though it is time to look for bindings."""
    monkeypatch.setattr(arrivals, "_REDISCOVER", 0.1)
    broker = connect()
    broker.declare_queue(QueueSpec("q"))
    receiver = broker.receiver()
    receiver.subscribe("q")
    assert receiver.poll("q", 1) == []
    assert receiver.next_due() is not None
    receiver.return_unpolled("q")
    time.sleep(0.2)
    assert receiver.next_due() is None
    assert receiver.poll("q", 1) == []
    assert receiver.next_due() is not None
