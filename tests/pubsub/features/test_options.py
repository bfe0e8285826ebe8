"""What each option makes of a subscription or topic, and what comes of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest

from gwi_celery.brokers.base import OutgoingMessage, QueueSpec
from gwi_celery.brokers.pubsub import deliveries, naming
from gwi_celery.brokers.pubsub.broker import PubSubBroker
from tests.contract.brokers import wait_for
from tests.machine import PATIENCE
from tests.pubsub.features.conftest import Google, declare, publish, read
from tests.workers import eventually

Connect = Callable[..., PubSubBroker]

KEY = "projects/p/locations/l/keyRings/r/cryptoKeys/k"


def test_what_is_made_has_what_was_asked_for(connect: Connect, google: Google) -> None:
    broker = connect(
        exactly_once=True,
        ordering=True,
        retry_policy=[1.5, 60],
        retention=1200,
        lease_seconds=45,
        kms_key=KEY,
        storage_regions=["europe-west1", "europe-west4"],
        labels={"team": "a"},
        prefix="mine-",
    )
    broker.declare_exchange("x", "topic")
    declare(broker, "q")
    broker.bind("q", "x", "a.*")
    declare(broker, "reply", auto_delete=True)

    assert google.topics() == ["mine-q", "mine-q.dead", "mine-x", "mine-~temporary"]
    for id in google.topics():
        topic = google.topic(id)
        assert topic.kms_key_name == KEY
        assert topic.message_storage_policy.allowed_persistence_regions == [
            "europe-west1",
            "europe-west4",
        ]
        assert topic.labels["team"] == "a"
    binding = naming.binding_id("mine-", "q", "x", "a.*")
    assert google.subscriptions() == sorted(["mine-q", "mine-q.dead", "mine-reply", binding])
    for id in ("mine-q", binding):
        made = google.subscription(id)
        assert made.enable_exactly_once_delivery
        assert made.enable_message_ordering
        assert made.retry_policy.minimum_backoff.total_seconds() == 1.5
        assert made.retry_policy.maximum_backoff.total_seconds() == 60
        assert made.message_retention_duration.total_seconds() == 1200
        assert made.ack_deadline_seconds == 45
        assert made.labels["team"] == "a"
        assert made.dead_letter_policy.dead_letter_topic == google.topic_path("mine-q.dead")
    assert not google.subscription("mine-q.dead").dead_letter_policy.dead_letter_topic
    reply = google.subscription("mine-reply")
    assert not reply.enable_exactly_once_delivery, "it holds nothing that is worth it"
    assert reply.labels["team"] == "a"


def test_without_options_it_is_plain(connect: Connect, google: Google) -> None:
    declare(connect(), "q")
    made, topic = google.subscription("gwi-q"), google.topic("gwi-q")
    assert not made.enable_exactly_once_delivery
    assert not made.enable_message_ordering
    assert "retry_policy" not in made
    assert made.message_retention_duration.total_seconds() == 7 * 86400
    assert made.ack_deadline_seconds == 30
    assert dict(made.labels) == dict(topic.labels) == {}
    assert not topic.kms_key_name
    assert not topic.message_storage_policy.allowed_persistence_regions


# --- exactly once ---------------------------------------------------------------------------------


def test_a_lost_lease_is_known_by_the_error(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    broker = connect(exactly_once=True, lease_seconds=10)
    declare(broker, "q")
    for data in (b"lost", b"held"):
        publish(broker, "", "q", data)
    lost, held = sorted(broker.receiver().poll("q", 2), key=lambda d: d.data == b"held")
    # The lease ends behind the broker's back, and another one takes the message.
    other = connect(exactly_once=True, lease_seconds=10)
    other.deliveries.leases[lost.ack_id] = time.monotonic() + 10
    other.nack(lost)
    assert other.flush(PATIENCE)
    [taken] = eventually(lambda: other.receiver().poll("q", 1), "the message for the other one")
    assert (taken.data, taken.deliveries) == (b"lost", 2)

    assert broker.extend([held, lost], 20.0) == [lost], "the other lease is extended"
    with caplog.at_level(logging.WARNING):
        broker.ack([lost])
        assert broker.flush(PATIENCE)
    assert "were refused, so these messages may be redelivered" in caplog.text
    # An ack that fails stops nothing: what follows is sent.
    broker.ack([held])
    other.ack([taken])
    assert broker.flush(PATIENCE)
    assert other.flush(PATIENCE)
    caplog.clear()
    publish(broker, "", "q", b"next")
    assert read(broker, "q") == [b"next"]


# --- order and priority ---------------------------------------------------------------------------


def test_messages_of_one_run_come_in_order(connect: Connect) -> None:
    broker = connect(ordering=True)
    declare(broker, "q")
    sent: dict[str, list[bytes]] = {"r1": [], "r2": []}
    messages = []
    for n in range(20):
        run = f"r{n % 2 + 1}"
        sent[run].append(b"%d" % n)
        messages.append(("", "q", OutgoingMessage(b"%d" % n, {"tenant": "acme", "run": run})))
    broker.publish_many(messages)
    receiver = broker.receiver()
    receiver.subscribe("q")
    got: dict[str, list[bytes]] = {"r1": [], "r2": []}
    while sum(map(len, got.values())) < 20:
        delivery = wait_for(receiver, "q")
        got[delivery.attributes["run"]].append(delivery.data)
        broker.ack([delivery])
    assert got == sent


def test_levels_are_subscriptions_drained_in_order_of_priority(
    connect: Connect, google: Google
) -> None:
    broker = connect(priority_levels=[0, 3, 9])
    declare(broker, "q")
    declare(broker, "reply", auto_delete=True)
    filters = {id: google.subscription(id).filter for id in google.subscriptions()}
    assert filters == {
        "gwi-q": naming.priority_filter(0, 3),
        "gwi-q~p3": naming.priority_filter(3, 9),
        "gwi-q~p9": 'attributes.priority="9"',
        "gwi-q.dead": "",
        "gwi-reply": naming.queue_filter("reply"),
    }
    for priority in (0, 2, 3, 8, 9):
        publish(broker, "", "q", b"%d" % priority, priority=priority)
    receiver = broker.receiver()
    receiver.subscribe("q")
    order = []
    for _ in range(5):
        delivery = wait_for(receiver, "q")
        order.append(int(delivery.data))
        broker.ack([delivery])
    assert order[0] == 9
    assert sorted(order[1:3]) == [3, 8]
    assert sorted(order[3:]) == [0, 2]
    assert read(broker, "q") == []
    assert broker.flush(PATIENCE)
    for id in ("gwi-q", "gwi-q~p3", "gwi-q~p9"):
        assert google.pull(id) == [], "what is of another level was acked"


def test_other_levels_are_refused_rather_than_mixed(connect: Connect) -> None:
    declare(connect(priority_levels=[0, 5]), "q")
    with pytest.raises(Exception, match=r"filter is NOT .*, should be \. Change"):
        declare(connect(), "q")


# --- when it is redelivered --------------------------------------------------------------------------


def nacks(broker: PubSubBroker, delay: float) -> list[int]:
    """The ack deadlines with which a nack is sent."""
    sent: list[int] = []
    begin = broker.client.begin

    def spy(rpc: str, request: Any, *rest: Any, **options: Any) -> Any:
        if rpc == "ModifyAckDeadline":
            sent.append(request.ack_deadline_seconds)
        return begin(rpc, request, *rest, **options)

    broker.client.begin = spy  # type: ignore[method-assign]
    publish(broker, "", "q", b"m")
    [delivery] = broker.receiver().poll("q", 1)
    broker.nack(delivery, delay)
    assert broker.flush(PATIENCE)
    return sent


def test_a_nack_leaves_the_wait_to_the_retry_policy(connect: Connect) -> None:
    broker = connect(retry_policy=[1, 60])
    declare(broker, "q")
    assert nacks(broker, 20.0) == [0]


def test_without_one_the_nack_says_how_long(connect: Connect) -> None:
    broker = connect()
    declare(broker, "q")
    assert nacks(broker, 20.0) == [20]


def test_after_max_deliveries_the_reason_is_kept(connect: Connect) -> None:
    broker = connect(max_deliveries=2)
    declare(broker, "q")
    declare(broker, "own", max_deliveries=1)
    for queue in ("q", "own"):
        publish(broker, "", queue, b"m")
        limit = 2 if queue == "q" else 1
        for n in range(limit):
            [delivery] = eventually(lambda: broker.receiver().poll(queue, 1), "a delivery")  # noqa: B023
            assert delivery.deliveries == n + 1
            broker.nack(delivery)
            assert broker.flush(PATIENCE)
        assert eventually(lambda: not broker.receiver().poll(queue, 1), "nothing")  # noqa: B023
        [dead] = eventually(lambda: broker.peek(f"{queue}.dead"), "the dead letter")  # noqa: B023
        assert dead.attributes["gwi-death-reason"] == f"delivered {limit} times without an ack"


def test_a_parked_message_keeps_its_time_and_its_end(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published anew so that waiting isn't counted; a name that fits no attribute comes along."""
    broker = connect()
    name = "half a pair \ud83e"
    declare(broker, name)
    broker.declare_exchange("x" * 2000, "fanout")
    broker.bind(name, "x" * 2000, "")
    message = OutgoingMessage(b"m", {"task": "add"}, priority=4, delay=100.0, ttl=50.0)
    broker.publish("x" * 2000, "k" * 2000, message)
    [_, source] = broker.topology.sources(name)
    [item] = eventually(lambda: broker.looks.pull(source, 1)[0], "the message")
    with monkeypatch.context() as patched:
        patched.setattr(deliveries, "_RENEWED_AT", 0.0)  # it is old enough
        assert broker.deliveries.sort(source, [item]) == ([], [])
    assert broker.flush(PATIENCE)
    [anew] = eventually(
        lambda: broker.looks.pull(broker.topology.sources(name)[0], 1)[0], "the copy"
    )
    before, after = (broker_said(made) for made in (item, anew))
    assert after.attributes == before.attributes == {"task": "add"}
    assert (after.exchange, after.routing_key, after.priority) == ("", name, 4)
    assert after.not_before == pytest.approx(before.not_before, abs=0.01)
    assert after.expires == pytest.approx(before.expires, abs=0.01)
    assert broker.looks.pull(source, 1)[0] == [], "and the first one is acked"


def broker_said(item: Any) -> Any:
    from gwi_celery.brokers.pubsub import wire

    return wire.parse(item.message)


def test_a_queue_s_own_settings_take_precedence_over_the_options(
    connect: Connect, google: Google
) -> None:
    broker = connect(lease_seconds=45)
    broker.declare_queue(QueueSpec("q", lease_seconds=20.0, message_ttl=0.5))
    assert google.subscription("gwi-q").ack_deadline_seconds == 20
    publish(broker, "", "q", b"late")
    time.sleep(0.6)
    assert read(broker, "q") == [], "its time is over"
