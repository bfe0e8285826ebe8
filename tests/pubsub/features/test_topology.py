"""Exchanges, queues and bindings as topics and subscriptions of the emulator."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from google.api_core.exceptions import NotFound as GoogleNotFound

from gwi_celery.brokers.base import OutgoingMessage, QueueSpec
from gwi_celery.brokers.pubsub import admin, naming
from gwi_celery.brokers.pubsub.admin import Admin
from gwi_celery.brokers.pubsub.broker import PubSubBroker
from gwi_celery.errors import ConfigurationError
from tests.contract.brokers import wait_for
from tests.machine import PATIENCE
from tests.pubsub.features.conftest import Google, declare, publish, read
from tests.workers import eventually

Connect = Callable[..., PubSubBroker]
DAY = 86400


def bound(queue: str, exchange: str, key: str) -> str:
    return naming.binding_id("gwi-", queue, exchange, key)


# --- what is made ---------------------------------------------------------------------------------


def test_exchanges_are_topics_and_bindings_filtered_subscriptions(
    connect: Connect, google: Google
) -> None:
    broker = connect()
    declare(broker, "q", "r")
    for exchange, type, queue, key in (
        ("d", "direct", "q", "a"),
        ("d", "direct", "q", "b"),
        ("t", "topic", "q", "a.#"),
        ("t", "topic", "r", "*.b"),
        ("f", "fanout", "r", "whatever"),
    ):
        broker.declare_exchange(exchange, type)
        broker.bind(queue, exchange, key)

    assert google.topics() == [
        "gwi-d",
        "gwi-f",
        "gwi-q",
        "gwi-q.dead",
        "gwi-r",
        "gwi-r.dead",
        "gwi-t",
    ]
    assert google.topic("gwi-t").labels["gwi-exchange"] == "topic"

    def filter(*binding: str) -> str:
        subscription = google.subscription(bound(*binding))
        assert subscription.topic == google.topic_path(f"gwi-{binding[1]}")
        return str(subscription.filter)

    assert filter("q", "d", "a") == 'attributes:exchange AND attributes.routing_key="a"'
    assert filter("q", "d", "b") == 'attributes:exchange AND attributes.routing_key="b"'
    assert filter("q", "t", "a.#") == (
        'attributes:exchange AND (attributes.routing_key="a" OR '
        'hasPrefix(attributes.routing_key, "a."))'
    )
    assert filter("r", "t", "*.b") == "attributes:exchange"
    assert filter("r", "f", "whatever") == "attributes:exchange"
    assert google.subscription("gwi-q").filter == "", "the default exchange, whoever publishes"
    assert len(google.subscriptions()) == 4 + 5


def test_what_gets_past_a_filter_is_acked_and_dropped(connect: Connect, google: Google) -> None:
    """The emulator stores filters and applies none."""
    broker = connect()
    broker.declare_exchange("d", "direct")
    declare(broker, "q")
    broker.bind("q", "d", "a")
    for n in range(3):
        publish(broker, "d", "other", b"%d" % n)
    assert read(broker, "q") == []
    assert broker._acks.flush(PATIENCE)
    assert google.pull(bound("q", "d", "a")) == []
    # A lease that runs out would bring them back.
    assert broker.deliveries.leases == {}


def test_bound_twice_and_declared_twice_is_once(connect: Connect, google: Google) -> None:
    for broker in (connect(), connect()):
        for _ in range(2):
            broker.declare_exchange("d", "direct")
            declare(broker, "q")
            broker.bind("q", "d", "a")
    assert google.subscriptions() == sorted(["gwi-q", "gwi-q.dead", bound("q", "d", "a")])
    publish(broker, "d", "a", b"m")
    assert read(broker, "q") == [b"m"]


def test_a_queue_and_an_exchange_of_one_name_share_a_topic(
    connect: Connect, google: Google
) -> None:
    """As Celery has it by default."""
    broker = connect()
    broker.declare_exchange("celery", "direct")
    declare(broker, "celery")
    broker.bind("celery", "celery", "celery")
    assert google.subscriptions() == ["gwi-celery", "gwi-celery.dead"]
    publish(broker, "", "celery", b"by name")
    publish(broker, "celery", "celery", b"by binding")
    publish(broker, "celery", "other", b"no")
    google.publish("gwi-celery", b"by another language")
    assert read(broker, "celery") == [b"by another language", b"by binding", b"by name"]


@pytest.mark.parametrize(
    "settings", [{}, {"auto_delete": True}, {"expires": 60.0}, {"durable": False}], ids=str
)
def test_the_default_exchange_reaches_every_queue(
    connect: Connect, settings: dict[str, object]
) -> None:
    broker, other = connect(), connect()
    declare(broker, "q", "r", **settings)
    publish(broker, "", "q", b"ours")
    publish(other, "", "q", b"theirs")
    publish(other, "", "r", b"for r")
    assert read(broker, "q") == [b"ours", b"theirs"]
    assert read(broker, "r") == [b"for r"]


def test_task_queues_stay_and_others_expire(connect: Connect, google: Google) -> None:
    broker = connect()
    broker.declare_exchange("f", "fanout")
    declare(broker, "q")
    declare(broker, "reply", auto_delete=True)
    declare(broker, "long", expires=10 * DAY + 0.5)
    for queue in ("q", "reply"):
        broker.bind(queue, "f", "")

    def expires(id: str) -> float | None:
        policy = google.subscription(id).expiration_policy
        return policy.ttl.total_seconds() if "ttl" in policy else None

    for id in ("gwi-q", "gwi-q.dead", bound("q", "f", "")):
        assert expires(id) is None
        assert "expiration_policy" in google.subscription(id), "without one it is 31 days"
    for id in ("gwi-reply", bound("reply", "f", "")):
        assert expires(id) == DAY
        assert google.subscription(id).message_retention_duration.total_seconds() <= DAY
    assert expires("gwi-long") == 10 * DAY + 1
    assert google.subscription("gwi-reply").topic == google.topic_path("gwi-~temporary")


# --- temporary queues -----------------------------------------------------------------------------


def test_a_new_queue_never_sees_what_is_older(connect: Connect, google: Google) -> None:
    """On topics with retention, which the emulator replays to every new subscription."""
    broker = connect()
    for topic in ("gwi-~temporary", "gwi-f"):
        google.publisher.create_topic(
            request={
                "name": google.topic_path(topic),
                "message_retention_duration": {"seconds": 600},
                "labels": {"gwi-exchange": "fanout"} if topic == "gwi-f" else {},
            }
        )
        exchange = {"exchange": "f"} if topic == "gwi-f" else {}
        google.publish(topic, b"old", routing_key="reply", **exchange)
    time.sleep(0.002)  # the emulator's times have milliseconds
    declare(broker, "reply", auto_delete=True)
    broker.bind("reply", "f", "")
    declare(broker, "reply", auto_delete=True, message_ttl=60.0)  # again, with other settings
    publish(broker, "", "reply", b"new")
    publish(broker, "f", "", b"new by f")
    assert read(broker, "reply") == [b"new", b"new by f"]
    assert google.pull("gwi-reply") == [], "the old ones were acked"


def test_a_queue_that_a_killed_worker_left_is_taken_over_empty(
    connect: Connect, google: Google
) -> None:
    killed = connect()
    killed.declare_exchange("f", "fanout")
    declare(killed, "reply", auto_delete=True)
    killed.bind("reply", "f", "")
    killed.client.close()  # it says nothing more
    publish(killed, "", "reply", b"for the killed one")
    publish(killed, "f", "", b"for the killed one by f")
    time.sleep(0.002)

    broker = connect()
    declare(broker, "reply", auto_delete=True)
    broker.bind("reply", "f", "")
    publish(broker, "", "reply", b"new")
    assert read(broker, "reply") == [b"new"]


def test_a_leftover_binding_brings_nothing_old(connect: Connect, google: Google) -> None:
    killed = connect()
    killed.declare_exchange("f", "fanout")
    declare(killed, "reply", auto_delete=True)
    killed.bind("reply", "f", "")
    google.subscriber.delete_subscription(subscription=google.subscription_path("gwi-reply"))
    publish(killed, "f", "", b"old")
    time.sleep(0.002)
    broker = connect()
    declare(broker, "reply", auto_delete=True)
    broker.bind("reply", "f", "")
    publish(broker, "f", "", b"new")
    assert read(broker, "reply") == [b"new"]


def test_temporary_queues_go_with_the_connection_that_declared_them(
    connect: Connect, google: Google
) -> None:
    broker, other = connect(), connect()
    broker.declare_exchange("f", "fanout")
    declare(broker, "q")
    declare(broker, "reply", auto_delete=True)
    broker.bind("reply", "f", "")
    receiver, theirs = broker.receiver(), other.receiver()
    receiver.subscribe("reply", bulk=True)
    theirs.subscribe("reply", bulk=True)  # it only uses the queue
    publish(other, "", "reply", b"m")
    theirs.close()
    other.close()
    assert "gwi-reply" in google.subscriptions()

    broker.close()
    assert google.subscriptions() == ["gwi-q", "gwi-q.dead"]
    assert "gwi-f" in google.topics()


def test_a_reader_of_a_queue_of_others_leaves_a_sign_while_it_reads(
    connect: Connect, google: Google
) -> None:
    maker, joining = connect(), connect()
    declare(maker, "reply", auto_delete=True)
    declare(joining, "reply", auto_delete=True)
    receivers = [broker.receiver() for broker in (maker, joining)]
    for receiver in receivers:
        receiver.subscribe("reply", bulk=True)
    [sign] = [id for id in google.subscriptions() if id.startswith("gwi-reply~u")]
    assert google.subscription(sign).topic == google.topic_path("gwi-~signs")
    assert google.subscription(sign).expiration_policy.ttl.total_seconds() == DAY
    # It expires after a day if nobody uses it.
    path = google.subscription_path(sign)
    before = joining.calls.copy()  # type: ignore[attr-defined]
    joining.topology._readers.refresh(joining.topology.subscription("reply"), path)
    assert (joining.calls - before)["Pull"] == 1  # type: ignore[attr-defined]
    google.subscriber.delete_subscription(subscription=path)
    joining.topology._readers.refresh(joining.topology.subscription("reply"), path)
    assert sign in google.subscriptions()

    receivers[0].close()
    assert google.subscriptions() == sorted(["gwi-reply", "gwi-reply~left", sign])
    receivers[1].close()
    assert google.subscriptions() == []


def test_two_queues_of_one_connection_go_one_by_one(connect: Connect, google: Google) -> None:
    broker = connect()
    declare(broker, "a", "b", auto_delete=True)
    receivers = [broker.receiver(), broker.receiver()]
    for receiver, queue in zip(receivers, ("a", "b"), strict=True):
        receiver.subscribe(queue, bulk=True)
    receivers[0].close()
    assert google.subscriptions() == ["gwi-b"]


def test_a_queue_that_goes_is_not_made_one_that_stays(connect: Connect) -> None:
    stays, goes = connect(), connect()
    declare(goes, "reply", auto_delete=True)
    with pytest.raises(ConfigurationError, match=r"topic is .*~temporary, should be .*gwi-reply"):
        declare(stays, "reply")


# --- several connections --------------------------------------------------------------------------


def test_connections_find_what_others_made(connect: Connect) -> None:
    maker, user = connect(), connect()
    maker.declare_exchange("t", "topic")
    declare(maker, "q", "long " * 60, lease_seconds=20.0, max_deliveries=3, message_ttl=1_000_000.5)
    maker.bind("q", "t", "a.#")
    maker.bind("q", "t", "b")
    maker.bind("long " * 60, "t", "c" * 500)

    assert user.bindings() == maker.bindings()
    assert {(b.queue, b.exchange, b.routing_key) for b in user.bindings()} == {
        ("q", "t", "a.#"),
        ("q", "t", "b"),
        ("long " * 60, "t", "c" * 500),
    }
    assert user.queues() == maker.queues()
    assert user.topology.spec("q") == QueueSpec(
        "q", lease_seconds=20.0, max_deliveries=3, message_ttl=1_000_000.5
    )
    publish(user, "t", "a.b", b"m")
    publish(user, "t", "a", b"n")
    publish(user, "t", "c", b"to nobody")
    assert read(user, "q") == [b"m", b"n"]
    with pytest.raises(ConfigurationError, match="exists with type 'topic', not 'direct'"):
        user.declare_exchange("t", "direct")


def test_an_unbound_queue_gets_no_more(connect: Connect, google: Google) -> None:
    broker, other = connect(), connect()
    broker.declare_exchange("d", "direct")
    declare(broker, "q")
    broker.bind("q", "d", "a")
    other.unbind("q", "d", "a")
    broker.unbind("q", "d", "a")
    publish(broker, "d", "a", b"m")
    assert read(broker, "q") == []
    assert google.subscriptions() == ["gwi-q", "gwi-q.dead"]
    assert other.bindings() == []


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_what_is_unbound_is_not_asked_for_any_more(connect: Connect, whose: str) -> None:
    broker, other = connect(), connect()
    broker.declare_exchange("d", "direct")
    declare(broker, "q")
    broker.bind("q", "d", "a")
    receiver = broker.receiver()
    receiver.subscribe("q")
    publish(broker, "d", "a", b"m")
    broker.ack([wait_for(receiver, "q")])
    (broker if whose == "ours" else other).unbind("q", "d", "a")

    def served() -> list[str]:
        receiver.clear()
        receiver.poll("q", 1)
        return [line.source.path for line in receiver._queues["q"].lines]

    own = broker.topology.subscription("q")
    eventually(lambda: served() == [own], "its line to end")


def test_a_binding_to_its_own_exchange_leaves_a_sign_if_it_is_not_as_celery_has_it(
    connect: Connect, google: Google
) -> None:
    broker = connect()
    broker.declare_exchange("q", "direct")
    broker.declare_exchange("d", "direct")
    declare(broker, "q")
    broker.bind("q", "q", "q")
    usual = google.subscriptions()
    broker.bind("q", "q", "k")
    assert google.subscription(bound("q", "q", "k")).topic == google.topic_path("gwi-~signs")
    assert {b.routing_key for b in connect().bindings()} == {"q", "k"}
    broker.unbind("q", "q", "q")
    broker.unbind("q", "q", "k")
    broker.bind("q", "q", "k")
    broker.delete_exchange("q")
    assert google.subscriptions() == usual
    broker.declare_exchange("q", "direct")
    broker.bind("q", "q", "k")
    broker.delete_queue("q")
    assert google.subscriptions() == ["gwi-q.dead"]


def test_each_entity_is_declared_once(connect: Connect) -> None:
    broker = connect()

    def declare_all() -> None:
        broker.declare_exchange("f", "fanout")
        declare(broker, "q")
        declare(broker, "reply", auto_delete=True)
        broker.bind("q", "f", "")
        broker.bind("reply", "f", "")
        publish(broker, "", "q", b"m")
        publish(broker, "f", "", b"m")

    declare_all()
    first = broker.calls.copy()  # type: ignore[attr-defined]
    assert first["CreateSubscription"] == 5 + 1, "one again, once the topic they share is there"
    declare_all()
    again = broker.calls - first  # type: ignore[attr-defined]
    assert again == {"Publish": 2}


# --- what was deleted -----------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["subscription", "topic", "both"])
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "used"])
def test_a_deleted_queue_is_made_again(
    connect: Connect, google: Google, what: str, declared: bool
) -> None:
    broker = connect()
    declare(broker, "q", lease_seconds=20.0)
    producer = broker if declared else connect()
    publish(producer, "", "q", b"before")
    receiver = broker.receiver()
    receiver.subscribe("q")
    broker.ack([wait_for(receiver, "q")])
    if what != "topic":
        google.subscriber.delete_subscription(subscription=google.subscription_path("gwi-q"))
    if what != "subscription":
        google.publisher.delete_topic(topic=google.topic_path("gwi-q"))

    if what == "subscription":
        # Nobody can know of it but who reads from it.
        eventually(
            lambda: receiver.poll("q", 1) or "gwi-q" in google.subscriptions(), "the subscription"
        )
    publish(producer, "", "q", b"after")
    assert wait_for(receiver, "q").data == b"after"
    assert google.subscription("gwi-q").topic == google.topic_path("gwi-q")
    if declared:
        assert google.subscription("gwi-q").ack_deadline_seconds == 20


@pytest.mark.parametrize("finds_out", ["publishing", "declaring"])
def test_what_only_seems_to_be_on_its_queues_topic_is_made_again(
    connect: Connect, google: Google, monkeypatch: pytest.MonkeyPatch, finds_out: str
) -> None:
    """So the emulator shows a subscription that was created while its topic was being deleted."""
    declare(connect(priority_levels=(0, 5)), "q")
    google.publisher.delete_topic(topic=google.topic_path("gwi-q"))
    if finds_out == "declaring":
        google.subscriber.delete_subscription(subscription=google.subscription_path("gwi-q~p5"))
    monkeypatch.setattr(admin, "_DELETED_TOPIC", "")
    as_it_is = Admin.get_subscription

    def as_it_seems(self: Admin, path: str) -> Any:
        found = as_it_is(self, path)
        if found is not None and found.topic == "_deleted-topic_":
            found.topic = google.topic_path("gwi-q")
        return found

    monkeypatch.setattr(Admin, "get_subscription", as_it_seems)
    broker = connect(priority_levels=(0, 5))
    declare(broker, "q")
    publish(broker, "", "q", b"m")
    receiver = broker.receiver()
    receiver.subscribe("q")
    assert wait_for(receiver, "q").data == b"m"


def test_a_deleted_queue_is_made_again_with_its_bindings(connect: Connect, google: Google) -> None:
    broker = connect()
    broker.declare_exchange("f", "fanout")
    declare(broker, "q")
    broker.bind("q", "f", "")
    before = google.subscriptions()
    for name in before:
        google.subscriber.delete_subscription(subscription=google.subscription_path(name))
    google.publisher.delete_topic(topic=google.topic_path("gwi-q"))
    publish(broker, "", "q", b"m")
    assert {*google.subscriptions()} >= {name for name in before if not name.endswith(".dead")}


def test_a_deleted_exchange_is_made_again_with_its_bindings(
    connect: Connect, google: Google
) -> None:
    broker = connect()
    broker.declare_exchange("f", "fanout")
    declare(broker, "q")
    declare(broker, "reply", auto_delete=True)
    for queue in ("q", "reply"):
        broker.bind(queue, "f", "")
    google.publisher.delete_topic(topic=google.topic_path("gwi-f"))
    publish(broker, "f", "", b"m")
    assert google.topic("gwi-f").labels["gwi-exchange"] == "fanout"
    assert read(broker, "q") == [b"m"]
    assert read(broker, "reply") == [b"m"]


def test_a_new_binding_takes_the_place_of_one_on_a_deleted_topic(
    connect: Connect, google: Google
) -> None:
    first = connect()
    first.declare_exchange("f", "fanout")
    declare(first, "q")
    declare(first, "reply", auto_delete=True)
    first.bind("q", "f", "")
    first.bind("reply", "f", "")
    google.publisher.delete_topic(topic=google.topic_path("gwi-f"))
    broker = connect()
    broker.declare_exchange("f", "fanout")
    declare(broker, "q")
    declare(broker, "reply", auto_delete=True)
    broker.bind("q", "f", "")
    broker.bind("reply", "f", "")
    publish(broker, "f", "", b"m")
    assert (read(broker, "q"), read(broker, "reply")) == ([b"m"], [b"m"])


def test_a_batch_for_several_queues_of_a_deleted_topic_reaches_all(
    connect: Connect, google: Google
) -> None:
    broker = connect()
    declare(broker, "a", "b", auto_delete=True)
    google.publisher.delete_topic(topic=google.topic_path("gwi-~temporary"))
    broker.publish_many([("", queue, OutgoingMessage(queue.encode())) for queue in ("a", "b")])
    assert (read(broker, "a"), read(broker, "b")) == ([b"a"], [b"b"])


def test_an_unconfirmed_message_for_a_deleted_queue_arrives(
    connect: Connect, google: Google
) -> None:
    broker = connect(publisher_confirms=False)
    declare(broker, "q")
    google.publisher.delete_topic(topic=google.topic_path("gwi-q"))
    publish(broker, "", "q", b"m")
    assert broker.flush(PATIENCE)
    assert read(broker, "q") == [b"m"]


def test_levels_that_nobody_reads_any_more_are_named(connect: Connect) -> None:
    declare(connect(priority_levels=[0, 5, 9]), "q")
    for levels, left in (([], "gwi-q~p5, gwi-q~p9"), ([0, 5], "gwi-q~p9")):
        with pytest.raises(ConfigurationError, match=f"delete {left}, which nobody reads"):
            declare(connect(priority_levels=levels), "q")


def test_a_deleted_dead_letter_is_made_again(connect: Connect, google: Google) -> None:
    broker = connect()
    declare(broker, "q")
    publish(broker, "", "q", b"m")
    google.publisher.delete_topic(topic=google.topic_path("gwi-q.dead"))
    google.subscriber.delete_subscription(subscription=google.subscription_path("gwi-q.dead"))
    receiver = broker.receiver()
    [delivery] = receiver.poll("q", 1)
    broker.dead_letter(delivery, "broken")
    assert [m.data for m in broker.peek("q.dead")] == [b"m"]


def test_a_deleted_queue_takes_what_belongs_to_it(connect: Connect, google: Google) -> None:
    broker = connect(priority_levels=[0, 5])
    broker.declare_exchange("f", "fanout")
    declare(broker, "q")
    broker.bind("q", "f", "")
    connect(priority_levels=[0, 5]).delete_queue("q")
    assert google.subscriptions() == ["gwi-q.dead"]
    assert google.topics() == ["gwi-f", "gwi-q.dead"]
    with pytest.raises(GoogleNotFound):
        google.topic("gwi-q")
