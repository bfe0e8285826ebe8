"""What Google's emulator and the twin do alike: so the twin stands beside the real thing.

Where they differ the documentation decides: ``test_twin.py`` has a test for each of the twin's
switches, and ``behaviour.py`` its source.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from google.api_core import exceptions
from google.cloud import pubsub_v1

from gwi_celery.gcp.emulators import PUBSUB_HOST
from gwi_celery.testing.twin import start_twin
from tests.machine import PATIENCE
from tests.testing.pubsub_calls import Calls, bodies

# The twin's fixture is asked for by name, which tests/order.py can't see.
pytestmark = pytest.mark.xdist_group("pubsub-conformance")


@pytest.fixture(scope="module")
def twin_endpoint() -> Iterator[str]:
    # Chance is for test_twin.py: here each call has one right answer.
    with start_twin(
        settle=0,
        immediate_empty=0,
        short_pulls=0,
        early_expiry=0,
        faults=0,
        name_rest=0,
        transient_acks=0,
    ) as twin:
        yield twin.endpoint


@pytest.fixture(params=["twin", pytest.param("emulator", marks=pytest.mark.emulator)])
def endpoint(request: pytest.FixtureRequest) -> str:
    if request.param == "twin":
        found: str = request.getfixturevalue("twin_endpoint")
        return found
    return str(request.getfixturevalue("pubsub_emulator").endpoint)


@pytest.fixture
def calls(endpoint: str) -> Iterator[Calls]:
    made = Calls(endpoint)
    yield made
    made.close()


def test_a_message_is_pulled_and_acked(calls: Calls) -> None:
    topic = calls.topic()
    sub = calls.subscription(topic)
    [id] = calls.publish(topic, "one", colour="blue")
    [received] = calls.pull(sub)
    assert (received.message.message_id, received.message.data) == (id, b"one")
    assert dict(received.message.attributes) == {"colour": "blue"}
    assert abs(received.message.publish_time.timestamp() - time.time()) < 60
    assert received.delivery_attempt == 0  # not counted without a dead letter policy
    calls.ack(sub, received)
    assert calls.look(sub) == []


def test_each_subscription_gets_a_copy_and_a_later_one_none(calls: Calls) -> None:
    topic = calls.topic()
    first, second = calls.subscription(topic), calls.subscription(topic)
    calls.publish(topic, "one")
    late = calls.subscription(topic)
    assert [bodies(calls.pull(s)) for s in (first, second)] == [["one"], ["one"]]
    assert calls.look(late) == []


def test_a_nack_redelivers_at_once(calls: Calls) -> None:
    topic = calls.topic()
    sub = calls.subscription(topic, ack_deadline_seconds=600)
    calls.publish(topic, "one")
    [received] = calls.pull(sub)
    calls.modify(sub, 0, received)
    [again] = calls.pull(sub)
    assert again.ack_id != received.ack_id
    assert again.message.message_id == received.message.message_id


def test_a_lease_ends_after_its_deadline_and_can_be_extended(calls: Calls) -> None:
    topic = calls.topic()
    sub = calls.subscription(topic, ack_deadline_seconds=10)
    calls.publish(topic, "short", "long")
    received = {r.message.data: r for r in _pull_all(calls, sub, 2)}
    calls.modify(sub, 1, received[b"short"])
    calls.modify(sub, 600, received[b"long"])
    assert bodies(calls.pull(sub)) == ["short"]
    assert calls.look(sub) == []


def test_an_expired_ack_id_is_accepted_and_changes_nothing(calls: Calls) -> None:
    topic = calls.topic()
    sub = calls.subscription(topic)
    calls.publish(topic, "one")
    [received] = calls.pull(sub)
    calls.modify(sub, 0, received)
    calls.ack(sub, received)
    assert bodies(calls.pull(sub)) == ["one"]


def test_exactly_once_refuses_an_expired_ack_id(calls: Calls) -> None:
    topic = calls.topic()
    sub = calls.subscription(topic, enable_exactly_once_delivery=True)
    calls.publish(topic, "one")
    [received] = calls.pull(sub)
    calls.modify(sub, 0, received)
    with pytest.raises(exceptions.InvalidArgument) as caught:
        calls.ack(sub, received)
    assert caught.value.reason == "EXACTLY_ONCE_ACKID_FAILURE"
    assert caught.value.metadata == {received.ack_id: "PERMANENT_FAILURE_INVALID_ACK_ID"}
    [again] = calls.pull(sub)
    calls.ack(sub, again)


def test_unknown_and_existing_names(calls: Calls) -> None:
    topic = calls.topic()
    calls.subscription(topic, "sub")
    with pytest.raises(exceptions.NotFound):
        calls.publish(f"{calls.project}/topics/nowhere", "one")
    with pytest.raises(exceptions.NotFound):
        calls.look(f"{calls.project}/subscriptions/nowhere")
    with pytest.raises(exceptions.NotFound):
        calls.subscription(f"{calls.project}/topics/nowhere")
    with pytest.raises(exceptions.AlreadyExists):
        calls.topic()
    with pytest.raises(exceptions.AlreadyExists):
        calls.subscription(topic, "sub")
    unnamed = calls.subscriber.create_subscription(request={"name": "", "topic": topic})
    assert unnamed.name.startswith(f"{calls.project}/subscriptions/")


def test_lists_are_of_the_project_and_paged(calls: Calls) -> None:
    topics = sorted(calls.topic(f"topic-{n}") for n in range(5))
    subs = sorted(calls.subscription(topics[0]) for _ in range(3))
    found = calls.publisher.list_topics(request={"project": calls.project, "page_size": 2})
    assert sorted(t.name for t in found) == topics
    of_project = calls.subscriber.list_subscriptions(request={"project": calls.project})
    assert sorted(s.name for s in of_project) == subs
    of_topic = calls.publisher.list_topic_subscriptions(request={"topic": topics[0]})
    assert sorted(of_topic) == subs


def test_a_deleted_topic_leaves_its_subscriptions(calls: Calls) -> None:
    topic = calls.topic()
    sub = calls.subscription(topic)
    calls.publish(topic, "one")
    calls.publisher.delete_topic(request={"topic": topic})
    assert calls.subscriber.get_subscription(request={"subscription": sub}).topic == (
        "_deleted-topic_"
    )
    assert bodies(calls.pull(sub)) == ["one"]


def test_the_dead_letter_policy_counts_and_forwards(calls: Calls) -> None:
    topic, dead = calls.topic(), calls.topic("dead")
    policy = {"dead_letter_topic": dead, "max_delivery_attempts": 5}
    sub, end = calls.subscription(topic, dead_letter_policy=policy), calls.subscription(dead)
    calls.publish(topic, "poison", colour="red")
    attempts = []
    for _ in range(5):
        [received] = calls.pull(sub)
        attempts.append(received.delivery_attempt)
        calls.modify(sub, 0, received)
    assert attempts == [1, 2, 3, 4, 5]
    assert calls.look(sub) == []  # the emulator forwards when it is pulled again
    [forwarded] = calls.pull(end)
    attributes = forwarded.message.attributes
    assert (forwarded.message.data, attributes["colour"]) == (b"poison", "red")
    assert attributes["CloudPubSubDeadLetterSourceDeliveryCount"] == "5"
    assert sub.endswith(attributes["CloudPubSubDeadLetterSourceSubscription"])


def test_messages_of_an_ordering_key_come_in_order(calls: Calls) -> None:
    topic = calls.topic()
    sub = calls.subscription(topic, enable_message_ordering=True)
    for body in "abcdef":
        calls.publish(topic, body, key="k")
    found = []
    while len(found) < 6:
        received = calls.pull(sub, 2)
        calls.ack(sub, *received)
        found += bodies(received)
    assert "".join(found) == "abcdef"


def test_seeking_to_now_empties_a_subscription(calls: Calls) -> None:
    topic = calls.topic()
    sub = calls.subscription(topic)
    calls.publish(topic, "one")
    [id] = [r.message.message_id for r in calls.pull(sub)]
    assert id
    calls.subscriber.seek(request={"subscription": sub, "time": _in_a_second()})
    assert calls.look(sub) == []


def test_fixed_fields_and_free_ones(calls: Calls) -> None:
    topic = calls.topic()
    sub = calls.subscription(topic, filter='attributes:"x"')
    update = calls.subscriber.update_subscription
    changed = update(
        request={
            "subscription": {"name": sub, "ack_deadline_seconds": 60},
            "update_mask": {"paths": ["ack_deadline_seconds"]},
        }
    )
    assert changed.ack_deadline_seconds == 60
    with pytest.raises(exceptions.InvalidArgument):
        update(
            request={
                "subscription": {"name": sub, "filter": 'attributes:"y"'},
                "update_mask": {"paths": ["filter"]},
            }
        )


def test_what_is_refused(calls: Calls) -> None:
    topic = calls.topic()
    sub = calls.subscription(topic)
    malformed = SimpleNamespace(ack_id="malformed")
    for call in (
        lambda: calls.ack(sub),
        lambda: calls.modify(sub, 10),
        lambda: calls.ack(sub, malformed),
        lambda: calls.modify(sub, 10, malformed),
    ):
        with pytest.raises(exceptions.InvalidArgument):
            call()
    kept = {"message_retention_duration": {"seconds": 1}}
    with pytest.raises(exceptions.InvalidArgument):
        calls.publisher.create_topic(request={"name": f"{calls.project}/topics/new", **kept})
    for config in (
        {"retry_policy": {"minimum_backoff": {"seconds": 60}, "maximum_backoff": {"seconds": 10}}},
        {"push_config": {"push_endpoint": "ftp://127.0.0.1/push"}},
    ):
        with pytest.raises(exceptions.InvalidArgument):
            calls.subscription(topic, **config)
    dead = {"dead_letter_topic": f"{calls.project}/topics/nowhere", "max_delivery_attempts": 5}
    with pytest.raises(exceptions.NotFound):
        calls.subscription(topic, dead_letter_policy=dead)


def test_a_stream_delivers_and_takes_acks(calls: Calls) -> None:
    topic = calls.topic()
    sub = calls.subscription(topic)
    with calls.stream(sub) as stream:
        calls.publish(topic, "one", "two")
        received = stream.messages(2)
        assert sorted(bodies(received)) == ["one", "two"]
        stream.send(ack_ids=[r.ack_id for r in received[:1]])
        stream.send(modify_deadline_ack_ids=[received[1].ack_id], modify_deadline_seconds=[0])
        [again] = stream.messages(1)
        assert again.message.message_id == received[1].message.message_id
        stream.send(ack_ids=[again.ack_id])
        stream.send(ack_ids=["malformed"])
        assert isinstance(stream.end(), exceptions.InvalidArgument)


def test_googles_own_subscriber_works(
    calls: Calls, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PUBSUB_HOST, endpoint)
    topic = calls.topic()
    sub = calls.subscription(topic)
    found: set[str] = set()
    with pubsub_v1.SubscriberClient() as subscriber:

        def on_message(message: pubsub_v1.subscriber.message.Message) -> None:
            found.add(message.data.decode())
            message.ack()
            if len(found) == 20:
                future.cancel()

        future = subscriber.subscribe(sub, on_message)
        calls.publish(topic, *map(str, range(20)))
        future.result(timeout=PATIENCE)
    assert found == set(map(str, range(20)))


def _pull_all(calls: Calls, sub: str, count: int) -> list[object]:
    found: list[object] = []
    while len(found) < count:
        found += calls.pull(sub, count)
    return found


def _in_a_second() -> dict[str, int]:
    return {"seconds": int(time.time()) + 1}
