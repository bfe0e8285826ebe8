"""What the twin's switches do, beyond what test_pubsub_differences.py asks the emulator as well."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.api_core import exceptions
from google.auth import jwt
from google.pubsub_v1 import types

from gwi_celery.testing.emulators import not_run
from gwi_celery.testing.twin import LENIENT, STRICT, Twin, checks, start_twin
from gwi_celery.testing.twin.__main__ import _server, main
from gwi_celery.testing.twin.checks import Refused
from gwi_celery.testing.twin.metrics import Metrics
from gwi_celery.testing.twin.world import World
from tests import zygote
from tests.machine import PATIENCE, Stopwatch
from tests.testing.pubsub_calls import Calls, Endpoint, bodies
from tests.workers import eventually

#: A switch that is off for all tests but its own.
_QUIET = {
    "settle": 0,
    "immediate_empty": 0,
    "short_pulls": 0,
    "early_expiry": 0,
    "faults": 0,
    "name_rest": 0,
    "transient_acks": 0,
}
_DEAD = {"dead_letter_topic": "projects/p/topics/dead"}
#: As the twin makes them, of a delivery that never was.
_ACK_ID = f"1-1-{'0' * 16}---"


@pytest.fixture(scope="module")
def twin() -> Iterator[Twin]:
    with start_twin(**_QUIET) as started:
        yield started


@pytest.fixture
def calls(twin: Twin) -> Iterator[Calls]:
    twin.reset()
    made = Calls(twin.endpoint)
    yield made
    made.close()


@pytest.fixture
def switch(twin: Twin) -> Iterator[Callable[..., Any]]:
    """Sets switches for one test."""
    before = twin.switch()
    yield twin.switch
    twin.switch(**before)


# --- pulls ----------------------------------------------------------------------------------------


def test_an_empty_pull_is_held(calls: Calls, switch: Callable[..., Any]) -> None:
    switch(pull_hold=0.5)
    sub = calls.subscription(calls.topic())
    began = time.monotonic()
    assert calls.pull(sub, timeout=30) == []
    assert time.monotonic() - began >= 0.5


def test_what_an_abandoned_pull_takes_stays_leased(
    calls: Calls, twin: Twin, switch: Callable[..., Any]
) -> None:
    topic = calls.topic()
    sub = calls.subscription(topic, ack_deadline_seconds=10)
    assert calls.pull(sub, timeout=0.3) == []  # given up; the twin would have held it for 90 s
    calls.publish(topic, "one")
    assert calls.look(sub) == []
    assert twin.counts(sub)["leased"] == 1
    switch(abandoned_pulls_take=False)
    other = calls.subscription(topic, ack_deadline_seconds=10)
    assert calls.pull(other, timeout=0.3) == []
    calls.publish(topic, "two")
    assert bodies(calls.pull(other)) == ["two"]


def test_a_pull_may_return_fewer_than_asked(calls: Calls, switch: Callable[..., Any]) -> None:
    switch(short_pulls=1)
    topic = calls.topic()
    sub = calls.subscription(topic)
    calls.publish(topic, *"abcdefghij")
    sizes = []
    while sum(sizes) < 10:
        sizes.append(len(calls.pull(sub, 10)))
    assert len(sizes) > 1
    assert 0 not in sizes


# --- streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limit",
    [{"max_outstanding_messages": 2}, {"max_outstanding_bytes": 1500}],  # or more, by one message
    ids=lambda limit: next(iter(limit)),
)
def test_a_stream_keeps_to_its_flow_control(calls: Calls, limit: dict[str, int]) -> None:
    topic = calls.topic()
    sub = calls.subscription(topic)
    texts = [letter * 1000 for letter in "abcdef"]
    calls.publish(topic, *texts)
    with calls.stream(sub, **limit) as stream:
        first = stream.messages(2)
        assert bodies(calls.pull(sub, 1)) == [texts[2]]  # it was left for others
        stream.send(ack_ids=[first[0].ack_id])
        assert len(stream.messages(1)) == 1


def test_a_stream_that_is_heard_lives_on_but_not_for_ever(
    calls: Calls, switch: Callable[..., Any]
) -> None:
    switch(stream_silence=1.5, stream_life=2.0)
    heard = threading.Event()
    began = time.monotonic()
    with calls.stream(calls.subscription(calls.topic())) as stream:

        def heartbeats() -> None:
            while not heard.wait(0.2):
                stream.send()

        beating = threading.Thread(target=heartbeats)
        beating.start()
        assert isinstance(stream.end(), exceptions.ServiceUnavailable)
        heard.set()
        beating.join()
        assert time.monotonic() - began >= 2.0


def test_a_stream_without_a_limit_gets_everything(calls: Calls) -> None:
    topic = calls.topic()
    sub = calls.subscription(topic)
    calls.publish(topic, *"abc")
    with calls.stream(sub, max_outstanding_messages=-1, max_outstanding_bytes=0) as stream:
        assert len(stream.messages(3)) == 3


@pytest.mark.parametrize(
    "request_",
    [
        {"stream_ack_deadline_seconds": 9},
        {"modify_deadline_ack_ids": [_ACK_ID], "modify_deadline_seconds": [-1]},
        {"modify_deadline_ack_ids": [_ACK_ID], "modify_deadline_seconds": [601]},
        {"modify_deadline_ack_ids": [_ACK_ID], "modify_deadline_seconds": []},
        {"modify_deadline_ack_ids": ["malformed"], "modify_deadline_seconds": [10]},
        {"ack_ids": ["malformed"]},
        {"max_outstanding_bytes": 1},
    ],
)
def test_limits_of_a_streams_later_requests(calls: Calls, request_: dict[str, Any]) -> None:
    with calls.stream(calls.subscription(calls.topic())) as stream:
        stream.send(**request_)
        assert isinstance(stream.end(), exceptions.InvalidArgument)


def test_a_stream_of_a_deleted_subscription_ends(calls: Calls) -> None:
    sub = calls.subscription(calls.topic())
    with calls.stream(sub) as stream:
        calls.subscriber.delete_subscription(request={"subscription": sub})
        assert isinstance(stream.end(), exceptions.NotFound)


# --- filters --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ('attributes.colour = "red"', True),
        ('attributes.colour != "red"', False),
        ('attributes.none != "red"', False),  # an attribute that isn't there differs from nothing
        ("attributes:colour", True),
        ('NOT attributes:colour AND attributes:"a b"', False),
        ('attributes:"a b" AND (attributes.colour = "blue" OR attributes:colour)', True),
        ('hasPrefix(attributes.colour, "re")', True),
        ('hasPrefix(attributes.none, "")', False),
        ("attributes:2nd OR NOT attributes:2nd", True),
        ('-hasPrefix(attributes."a b", "x")', False),
        (r'attributes."a b" = "x\"y"', True),
        (r'attributes."\141\x20\U00000062" = "x\u0022y"', True),
    ],
)
def test_filters_are_applied(calls: Calls, twin: Twin, text: str, passes: bool) -> None:
    topic = calls.topic()
    sub = calls.subscription(topic, filter=text)
    calls.publish(topic, "one", **{"colour": "red", "a b": 'x"y'})
    counts = twin.counts(sub)
    assert (counts["waiting"], counts["filtered"]) == ((1, 0) if passes else (0, 1))


@pytest.mark.parametrize(
    "text",
    [
        "attributes",
        "attributes.colour",
        "attributes.colour = red",
        "attributes:a AND attributes:b OR attributes:c",
        "(attributes:a",
        'attributes.colour ~ "red"',
        r'attributes.colour = "\U00110000"',
        f'attributes.colour = "{"x" * 256}"',
    ],
)
def test_what_is_no_filter_is_refused(calls: Calls, text: str) -> None:
    topic = calls.topic()
    with pytest.raises(exceptions.InvalidArgument, match="filter"):
        calls.subscription(topic, filter=text)


# --- time and chance ------------------------------------------------------------------------------


def test_what_was_just_created_may_be_unknown(calls: Calls, switch: Callable[..., Any]) -> None:
    switch(settle=60.0, settle_misses=1, projects_settle=False)
    topic = calls.topic()
    with pytest.raises(exceptions.NotFound):
        calls.publish(topic, "one")
    switch(settle=0)
    calls.publish(topic, "one")


def test_a_new_project_may_refuse_topics(calls: Calls, switch: Callable[..., Any]) -> None:
    switch(settle=1, settle_misses=1)
    with pytest.raises(exceptions.InvalidArgument, match="then retry this operation"):
        calls.topic()
    switch(projects_settle=False)
    calls.topic()


def test_exactly_once_may_refuse_acks_for_now(calls: Calls, switch: Callable[..., Any]) -> None:
    topic = calls.topic()
    sub = calls.subscription(topic, enable_exactly_once_delivery=True)
    calls.publish(topic, "one")
    received = calls.pull(sub)
    switch(transient_acks=1)
    for call in (calls.ack, lambda sub, *them: calls.modify(sub, 0, *them)):
        with pytest.raises(exceptions.InvalidArgument) as caught:
            call(sub, *received)
        reasons = {received[0].ack_id: "TRANSIENT_FAILURE_SERVICE_UNAVAILABLE"}
        assert caught.value.metadata == reasons
    switch(transient_acks=0)
    calls.modify(sub, 0, *received)
    with calls.stream(sub) as stream:
        id = stream.messages(1)[0].ack_id
        for share, field in ((1, "temporary_failed_ack_ids"), (0, "ack_ids")):
            switch(transient_acks=share)
            stream.send(ack_ids=[id])
            confirmed = stream.answer().acknowledge_confirmation
            assert list(getattr(confirmed, field)) == [id]


def test_a_lease_may_end_early(calls: Calls, switch: Callable[..., Any]) -> None:
    switch(early_expiry=1)
    topic = calls.topic()
    sub = calls.subscription(topic, ack_deadline_seconds=10)
    calls.publish(topic, "one")
    with Stopwatch() as watch:
        assert bodies(calls.pull(sub)) == ["one"]
        assert bodies(calls.pull(sub)) == ["one"]
    assert watch.seconds < 9


def test_messages_are_kept_for_the_retention_from_when_they_were_published() -> None:
    world = World(STRICT.changed(settle=0, early_expiry=0), 0)
    topic = "projects/p/topics/topic"
    world.create_topic(types.Topic.pb()(name=topic))
    kept = {"message_retention_duration": {"seconds": 600}}
    sub = types.Subscription.pb()(name="projects/p/subscriptions/sub", topic=topic, **kept)
    world.create_subscription(sub)
    world.publish(topic, [types.PubsubMessage.pb()(data=b"x")])
    backlog, now = world.subscription(sub.name).backlog, time.time()
    [entry] = backlog.take(now + 590, 1, lease=10)
    assert backlog.modify([str(entry.ack_id)], 0, now + 591) == []
    assert backlog.take(now + 601, 1, lease=10) == []


def test_an_exactly_once_ack_outlasts_the_nack_of_an_earlier_message() -> None:
    world = World(STRICT.changed(settle=0, transient_acks=0), 0)
    topic = "projects/p/topics/topic"
    world.create_topic(types.Topic.pb()(name=topic))
    both = {"enable_message_ordering": True, "enable_exactly_once_delivery": True}
    sub = types.Subscription.pb()(name="projects/p/subscriptions/sub", topic=topic, **both)
    world.create_subscription(sub)
    world.publish(topic, [types.PubsubMessage.pb()(data=d, ordering_key="k") for d in (b"a", b"b")])
    backlog, now = world.subscription(sub.name).backlog, time.time()
    first, second = backlog.take(now, 2, lease=10)
    assert backlog.ack([str(second.ack_id)], now) == []
    assert backlog.modify([str(first.ack_id)], 0, now) == []
    assert [entry.message.data for entry in backlog.take(now, 2, lease=10)] == [b"a"]


def test_messages_of_a_busy_ordering_key_wait(calls: Calls) -> None:
    topic = calls.topic()
    sub = calls.subscription(topic, enable_message_ordering=True)
    calls.publish(topic, *"ab", key="k")
    calls.publish(topic, "x", key="other")
    first = calls.pull(sub, 1)
    assert bodies(calls.pull(sub, 10)) == ["x"]
    calls.ack(sub, *first)
    assert bodies(calls.pull(sub, 10)) == ["b"]


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"data": b""}],
        [{"data": b"x"}] * 1001,
        [{"data": b"x" * 9_999_990}],  # the request's limit, not the message's
        [{"data": b"x", "attributes": {f"a{n}": "x" for n in range(101)}}],
        [{"data": b"x", "attributes": {"k" * 257: "x"}}],
        [{"data": b"x", "attributes": {"k": "x" * 1025}}],
        [{"data": b"x", "attributes": {"goog-x": "x"}}],
        [{"data": b"x", "ordering_key": "x" * 1025}],
    ],
)
def test_limits_of_a_publish(calls: Calls, messages: list[dict[str, Any]]) -> None:
    topic = calls.topic()
    with pytest.raises(exceptions.InvalidArgument):
        calls.publisher.publish(request={"topic": topic, "messages": messages}, retry=None)


@pytest.mark.parametrize(
    "config",
    [
        {"ack_deadline_seconds": 9},
        {"ack_deadline_seconds": 601},
        {"message_retention_duration": {"seconds": 599}},
        {"message_retention_duration": {"seconds": 31 * 86_400, "nanos": 1}},
        {"expiration_policy": {"ttl": {"seconds": 3600}}},
        {"expiration_policy": {"ttl": {"seconds": 86_400}}},  # less than its retention of 7 days
        {"expiration_policy": {"ttl": {}}},
        {"retry_policy": {"minimum_backoff": {"seconds": 600, "nanos": 1}}},
        {"retry_policy": {"minimum_backoff": {"seconds": -1}}},
        {"retry_policy": {"maximum_backoff": {"seconds": 9}}},  # the minimum is 10 by default
        {"dead_letter_policy": {"dead_letter_topic": "dead"}},
        {"dead_letter_policy": {**_DEAD, "max_delivery_attempts": 4}},
        {"dead_letter_policy": {**_DEAD, "max_delivery_attempts": 101}},
        {"push_config": {"push_endpoint": "http://example.com/push"}},
        {"push_config": {"push_endpoint": "https:///push"}},
        {"push_config": {"push_endpoint": "https://[::1/push"}},
        {
            "push_config": {"push_endpoint": "https://example.com/push"},
            "enable_exactly_once_delivery": True,
        },
        {"labels": {"UPPER": "x"}},
        {"labels": {"k": "UPPER"}},
        {"labels": {"1": "x"}},
        {"labels": {"k" * 64: "x"}},
        {"labels": {"k": "x" * 64}},
        {"labels": {f"k{n}": "v" for n in range(65)}},
        {"name": "projects/p/subscriptions/ab"},
        {"name": f"projects/p/subscriptions/{'a' * 256}"},
        {"name": "projects/p/subscriptions/1ab"},
        {"name": "projects/p/subscriptions/googly"},
        {"name": "projects/p/topics/subscription"},
        {"name": "subscription"},
    ],
)
def test_limits_of_a_subscription(calls: Calls, config: dict[str, Any]) -> None:
    topic = calls.topic()
    with pytest.raises(exceptions.InvalidArgument):
        calls.subscriber.create_subscription(
            request={"name": f"{calls.project}/subscriptions/sub", "topic": topic, **config}
        )


def test_limits_of_a_topic(calls: Calls) -> None:
    topic = {"name": calls.topic()}
    for config in ({"message_retention_duration": {"seconds": 599}}, {"labels": {"UPPER": "x"}}):
        with pytest.raises(exceptions.InvalidArgument):
            calls.publisher.create_topic(request={"name": f"{calls.project}/topics/new", **config})
        with pytest.raises(exceptions.InvalidArgument):
            calls.publisher.update_topic(
                request={"topic": {**topic, **config}, "update_mask": {"paths": list(config)}}
            )
    month = {"message_retention_duration": {"seconds": 31 * 86_400}}
    calls.publisher.update_topic(
        request={"topic": {**topic, **month}, "update_mask": {"paths": list(month)}}
    )


def test_a_subscription_has_its_defaults(calls: Calls) -> None:
    topic, dead = calls.topic(), calls.topic("dead")
    policies = {"dead_letter_policy": {"dead_letter_topic": dead}, "retry_policy": {}}
    sub = calls.subscription(topic, **policies)
    found = calls.subscriber.get_subscription(request={"subscription": sub})
    assert found.ack_deadline_seconds == 10
    assert found.message_retention_duration == timedelta(days=7)
    assert found.expiration_policy.ttl == timedelta(days=31)
    assert found.dead_letter_policy.max_delivery_attempts == 5
    pauses = found.retry_policy.minimum_backoff, found.retry_policy.maximum_backoff
    assert pauses == (timedelta(seconds=10), timedelta(seconds=600))
    assert (found.state, "push_config" in found) == (found.State.ACTIVE, True)


def test_what_only_answers_have_is_not_taken_from_requests(calls: Calls) -> None:
    kept = {"message_retention_duration": {"seconds": 3600}}
    path = f"{calls.project}/topics/topic"
    topic = calls.publisher.create_topic(request={"name": path, "state": 2, **kept})
    assert topic.state == topic.State.ACTIVE
    sub = calls.subscription(
        path, detached=True, topic_message_retention_duration={"seconds": 601}, state=2
    )
    found = calls.subscriber.get_subscription(request={"subscription": sub})
    assert (found.detached, found.state) == (False, found.State.ACTIVE)
    assert found.topic_message_retention_duration == timedelta(hours=1)
    for field in ("state", "detached", "topic"):
        with pytest.raises(exceptions.InvalidArgument, match=f"{field} can't be changed"):
            calls.subscriber.update_subscription(
                request={"subscription": {"name": sub}, "update_mask": {"paths": [field]}}
            )
    calls.publisher.update_topic(
        request={"topic": {"name": path}, "update_mask": {"paths": list(kept)}}
    )
    found = calls.subscriber.get_subscription(request={"subscription": sub})
    assert "topic_message_retention_duration" not in found


def test_a_subscription_without_a_name_is_given_one(calls: Calls) -> None:
    topic = calls.topic()
    made = calls.subscriber.create_subscription(request={"name": "", "topic": topic})
    assert made.name.startswith(f"{calls.project}/subscriptions/")
    assert list(calls.publisher.list_topic_subscriptions(request={"topic": topic})) == [made.name]


def test_a_detached_subscription_keeps_and_gets_nothing(calls: Calls, twin: Twin) -> None:
    topic = calls.topic()
    sub = calls.subscription(topic)
    calls.publish(topic, "one")
    detach = calls.publisher.detach_subscription
    twin.deny("pubsub.topics.detachSubscription", topic)
    with pytest.raises(exceptions.PermissionDenied):
        detach(request={"subscription": sub})
    twin.allow("pubsub.topics.detachSubscription", topic)
    with calls.stream(sub, max_outstanding_messages=1) as stream:
        stream.messages(1)
        detach(request={"subscription": sub})
        assert isinstance(stream.end(), exceptions.FailedPrecondition)
    calls.publish(topic, "two")
    with pytest.raises(exceptions.FailedPrecondition):
        calls.look(sub)
    assert twin.counts(sub)["waiting"] == 0
    assert list(calls.publisher.list_topic_subscriptions(request={"topic": topic})) == []
    assert calls.subscriber.get_subscription(request={"subscription": sub}).detached
    calls.subscriber.delete_subscription(request={"subscription": sub})


def test_what_is_left_out_says_so(calls: Calls) -> None:
    topic = calls.topic()
    sub, snapshot = calls.subscription(topic), f"{calls.project}/snapshots/snap"
    for call, request, what in (
        (
            calls.subscriber.create_snapshot,
            {"name": snapshot, "subscription": sub},
            "google.pubsub.v1.Subscriber/CreateSnapshot",
        ),
        (calls.subscriber.seek, {"subscription": sub, "snapshot": snapshot}, "snapshots"),
        (
            calls.publisher.set_iam_policy,
            {"resource": topic},
            "google.iam.v1.IAMPolicy/SetIamPolicy",
        ),
        (
            calls.subscriber.create_subscription,
            {"name": f"{sub}-b", "topic": topic, "bigquery_config": {"table": "p.d.t"}},
            "bigquery_config",
        ),
        (
            calls.publisher.create_topic,
            {"name": f"{topic}-s", "schema_settings": {"schema": "projects/p/schemas/s"}},
            "schema_settings",
        ),
    ):
        with pytest.raises(exceptions.MethodNotImplemented, match=f"leaves out {what}: docs/"):
            call(request=request, retry=None, timeout=10)


def test_it_pushes_by_https_and_otherwise_on_this_machine_only(calls: Calls) -> None:
    sub = calls.subscription(calls.topic())

    def push_to(endpoint: str) -> None:
        push = {"push_endpoint": endpoint}
        calls.subscriber.modify_push_config(request={"subscription": sub, "push_config": push})

    for endpoint in ("https://example.com/push", "http://127.0.0.1:9/", "http://localhost:9/", ""):
        push_to(endpoint)
    with pytest.raises(exceptions.InvalidArgument, match="endpoint=ftp://localhost/push"):
        push_to("ftp://localhost/push")


def test_projects_and_topics_have_room_for_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "MAX_RESOURCES", 2)
    world = World(STRICT.changed(settle=0), 0)

    def make(kind: str, project: str, number: int, **fields: str) -> None:
        message = {"topics": types.Topic, "subscriptions": types.Subscription}[kind]
        made = message.pb()(name=f"projects/{project}/{kind}/name-{number}", **fields)
        (world.create_topic if kind == "topics" else world.create_subscription)(made)

    for kind, fields in (("topics", {}), ("subscriptions", {"topic": "projects/a/topics/name-0"})):
        for number in range(2):
            make(kind, "a", number, **fields)
        with pytest.raises(Refused, match=f'"{kind}-per-project", current=2, maximum=2') as caught:
            make(kind, "a", 2, **fields)
        assert caught.value.status == "RESOURCE_EXHAUSTED"
    make("topics", "b", 0)
    with pytest.raises(Refused, match="subscriptions-per-topic"):
        make("subscriptions", "b", 0, **fields)


def test_ack_requests_have_ids_and_a_limit(calls: Calls) -> None:
    sub = calls.subscription(calls.topic())
    with pytest.raises(exceptions.InvalidArgument, match="not specified an ack ID"):
        calls.ack(sub)
    with pytest.raises(exceptions.InvalidArgument, match="not specified an ack ID"):
        calls.modify(sub, 10)
    for seconds in (-1, 601):
        with pytest.raises(exceptions.InvalidArgument, match="0 to 600"):
            calls.subscriber.modify_ack_deadline(
                request={
                    "subscription": sub,
                    "ack_ids": [_ACK_ID],
                    "ack_deadline_seconds": seconds,
                }
            )
    # As many as Google's libraries once sent: https://github.com/googleapis/google-cloud-go/issues/20391
    topic = calls.topic("other")
    other = calls.subscription(topic)
    calls.publish(topic, "one")
    ids = [received.ack_id for received in calls.pull(other)] * 2500
    with pytest.raises(exceptions.InvalidArgument, match="524288"):
        calls.subscriber.acknowledge(request={"subscription": other, "ack_ids": ids})


def test_pages_follow_one_another_whatever_is_deleted_meanwhile(calls: Calls) -> None:
    names = [calls.topic(f"topic-{n}") for n in range(4)]
    subs = [calls.subscription(names[0], f"sub-{n}") for n in range(4)]
    listed = (
        (calls.publisher.list_topics, {"project": calls.project}, "topics", names),
        (calls.subscriber.list_subscriptions, {"project": calls.project}, "subscriptions", subs),
        (calls.publisher.list_topic_subscriptions, {"topic": names[0]}, "subscriptions", subs),
    )
    tokens = []
    for call, request, field, found in listed:
        page = call(request={**request, "page_size": 3})
        assert [getattr(each, "name", each) for each in getattr(page, field)][:3] == found[:3]
        tokens.append(next(call(request={**request, "page_size": 3}).pages).next_page_token)
    calls.publisher.delete_topic(request={"topic": names[2]})
    request = {"project": calls.project, "page_token": tokens[0]}
    assert [t.name for t in calls.publisher.list_topics(request=request)] == names[3:]
    for wrong in ("3", "?", tokens[1]):
        with pytest.raises(exceptions.InvalidArgument, match="Invalid page token"):
            calls.publisher.list_topics(request={**request, "page_token": wrong})
    for call in (calls.publisher.list_topics, calls.subscriber.list_subscriptions):
        with pytest.raises(exceptions.InvalidArgument, match="name=p"):
            call(request={"project": "p"})
    for size in (-1, 1001):
        with pytest.raises(exceptions.InvalidArgument, match="page_size"):
            calls.publisher.list_topics(request={"project": calls.project, "page_size": size})


def test_admin_calls_have_a_quota(calls: Calls, switch: Callable[..., Any]) -> None:
    switch(admin_quota=5)
    topic = calls.topic()
    with pytest.raises(exceptions.ResourceExhausted):
        for n in range(10):
            calls.topic(f"topic-{n}")
    calls.publish(topic, "messages are not admin calls")


# --- rights and faults ----------------------------------------------------------------------------


def test_a_denied_permission(calls: Calls, twin: Twin) -> None:
    topic, other = calls.topic(), calls.topic("other")
    twin.deny("pubsub.topics.publish", topic)
    with pytest.raises(exceptions.PermissionDenied, match="not authorized"):
        calls.publish(topic, "one")
    calls.publish(other, "one")
    twin.deny("pubsub.topics.publish", calls.project)
    with pytest.raises(exceptions.PermissionDenied):
        calls.publish(other, "one")
    twin.allow("pubsub.topics.publish", calls.project)
    twin.allow("pubsub.topics.publish", topic)
    calls.publish(topic, "one")


def test_a_call_needs_its_permissions_elsewhere_too(calls: Calls, twin: Twin) -> None:
    topic = calls.topic()
    twin.deny("pubsub.topics.attachSubscription", topic)
    with pytest.raises(exceptions.PermissionDenied, match="not authorized"):
        calls.subscription(topic)
    twin.allow("pubsub.topics.attachSubscription", topic)
    sub = calls.subscription(topic)
    account = "pusher@p.iam.gserviceaccount.com"
    twin.deny("iam.serviceAccounts.actAs", f"projects/-/serviceAccounts/{account}")
    push = {
        "push_endpoint": "http://127.0.0.1:9/",
        "oidc_token": {"service_account_email": account},
    }
    for call, request in (
        (calls.subscriber.modify_push_config, {"subscription": sub, "push_config": push}),
        (
            calls.subscriber.update_subscription,
            {
                "subscription": {"name": sub, "push_config": push},
                "update_mask": {"paths": ["push_config"]},
            },
        ),
        (
            calls.subscriber.create_subscription,
            {"name": f"{sub}-pushed", "topic": topic, "push_config": push},
        ),
    ):
        with pytest.raises(
            exceptions.PermissionDenied, match="actAs' denied on service account push"
        ):
            call(request=request)


def test_permissions_can_be_asked_for(calls: Calls, twin: Twin) -> None:
    topic = calls.topic()
    twin.deny("pubsub.topics.delete", topic)
    asked = ["pubsub.topics.publish", "pubsub.topics.delete"]
    request = {"resource": topic, "permissions": asked}
    assert calls.publisher.test_iam_permissions(request=request).permissions == asked[:1]
    nowhere = {**request, "resource": f"{topic}-nowhere"}
    assert calls.publisher.test_iam_permissions(request=nowhere).permissions == []
    with pytest.raises(exceptions.NotFound):
        calls.publisher.get_iam_policy(request={"resource": nowhere["resource"]})


def test_revoked_credentials_and_a_disabled_api_end_calls_of_iam_too(
    calls: Calls, twin: Twin, switch: Callable[..., Any]
) -> None:
    request = {"resource": calls.topic(), "permissions": ["pubsub.topics.publish"]}
    switch(revoked=True)
    with pytest.raises(exceptions.ServiceUnavailable, match="metadata from plugin failed"):
        calls.publisher.test_iam_permissions(request=request, retry=None)
    switch(revoked=False)
    twin.disable()
    with pytest.raises(exceptions.PermissionDenied, match="has not been used in project"):
        calls.publisher.test_iam_permissions(request=request, retry=None)


def test_nothing_is_dead_lettered_without_the_service_agents_grants(
    calls: Calls, twin: Twin
) -> None:
    topic, dead = calls.topic(), calls.topic("dead")
    policy = {"dead_letter_topic": dead, "max_delivery_attempts": 5}
    sub, end = calls.subscription(topic, dead_letter_policy=policy), calls.subscription(dead)
    calls.publish(topic, "poison")
    for _ in range(5):
        calls.modify(sub, 0, *calls.pull(sub))
    forwarded = calls.pull(end)  # without another pull of the source
    assert bodies(forwarded) == ["poison"]
    calls.ack(end, *forwarded)
    twin.deny("pubsub.topics.publish", dead, who="agent")
    calls.publish(topic, "poison")
    for _ in range(7):
        calls.modify(sub, 0, *calls.pull(sub))
    assert calls.look(end) == []
    twin.grant(
        "roles/pubsub.publisher", condition="request.time < timestamp('2020-01-01T00:00:00Z')"
    )
    twin.grant("roles/pubsub.subscriber")
    calls.modify(sub, 0, *calls.pull(sub))
    assert calls.look(end) == []
    twin.grant("roles/pubsub.publisher")  # on the project
    assert calls.look(sub) == []
    assert bodies(calls.look(end)) == ["poison"]


def test_a_disabled_api(calls: Calls, twin: Twin) -> None:
    twin.disable()
    with pytest.raises(exceptions.PermissionDenied, match="has not been used in project") as caught:
        calls.topic()
    assert caught.value.reason == "SERVICE_DISABLED"
    assert caught.value.metadata["service"] == "pubsub.googleapis.com"


def test_faults_may_come_after_the_effect(
    calls: Calls, twin: Twin, switch: Callable[..., Any]
) -> None:
    topic = calls.topic()
    sub = calls.subscription(topic)
    switch(faults=1)
    failed = 0
    for _ in range(50):
        try:
            calls.publish(topic, "one")
        except (exceptions.ServiceUnavailable, exceptions.InternalServerError):
            failed += 1
    arrived = twin.counts(sub)["waiting"]
    assert 50 - failed < arrived < 50


def test_it_is_cut_off_with_its_data_or_without(calls: Calls, twin: Twin) -> None:
    topic = calls.topic()
    sub = calls.subscription(topic)
    calls.publish(topic, "one")
    twin.cut_off(0.3)
    eventually(lambda: _answers(twin))
    assert bodies(_patiently(lambda: calls.pull(sub))) == ["one"]
    twin.cut_off(0.3, keep=False)
    with pytest.raises(exceptions.NotFound):
        _patiently(lambda: calls.publish(topic, "one"))


def test_it_falls_silent(calls: Calls, twin: Twin) -> None:
    topic = calls.topic()
    with twin.paused(), pytest.raises(exceptions.DeadlineExceeded):
        calls.publisher.publish(
            request={"topic": topic, "messages": [{"data": b"x"}]}, retry=None, timeout=0.5
        )
    calls.publish(topic, "one")


# --- costs ----------------------------------------------------------------------------------------


def test_it_counts_what_would_be_billed(calls: Calls, twin: Twin) -> None:
    topic = calls.topic()
    sub = calls.subscription(topic)
    calls.subscription(topic, filter="attributes:none")
    calls.publish(topic, "small")
    calls.ack(sub, *calls.pull(sub))
    cost = twin.cost()
    assert cost["rpcs"] == {
        "Acknowledge": 1,
        "CreateSubscription": 2,
        "CreateTopic": 1,
        "Publish": 1,
        "Pull": 1,
    }
    assert (cost["bytes"]["published"], cost["bytes"]["delivered"]) == (1000, 1000)
    assert cost["bytes"]["filtered"] > 0
    assert cost["usd"] == pytest.approx(sum(cost["bytes"].values()) * 40 / 2**40)


def test_messages_are_billed_by_what_they_hold_and_an_empty_pull_as_1000_bytes(
    calls: Calls, twin: Twin
) -> None:
    topic = calls.topic()
    sub = calls.subscription(topic, enable_exactly_once_delivery=True)
    [id] = calls.publish(topic, "x" * 5000, key="k" * 7, colour="red")
    size = 5000 + 7 + len("colour" + "red") + len(id) + 20  # a timestamp's
    assert twin.cost()["bytes"]["published"] == size
    with calls.stream(sub) as stream:
        [received] = stream.messages(1)
        stream.send(ack_ids=[received.ack_id])
        assert stream.answer().acknowledge_confirmation.ack_ids  # which is free
    assert twin.cost()["bytes"]["delivered"] == size
    calls.look(sub)
    assert twin.cost()["bytes"]["delivered"] == size + 1000


def test_a_measurement_can_be_read_two_minutes_later() -> None:
    world = World(STRICT.changed(settle=0), 0)
    topic, sub = "projects/p/topics/topic", "projects/p/subscriptions/sub"
    world.create_topic(types.Topic.pb()(name=topic))
    world.create_subscription(types.Subscription.pb()(name=sub, topic=topic))
    metrics = Metrics(world)
    for now in (1000.0, 1060.0, 1120.0):
        metrics.measure(now)
        world.publish(topic, [types.PubsubMessage.pb()(data=b"x")])
    assert metrics.readable(1119.0) == {}
    waiting = [metrics.readable(now)[sub].num_undelivered_messages for now in (1120, 1200, 9999)]
    assert waiting == [0, 1, 2]


# --- push -----------------------------------------------------------------------------------------


def test_push_is_sent_again_until_it_is_taken(calls: Calls, twin: Twin) -> None:
    endpoint = Endpoint(500, 503)
    try:
        topic = calls.topic()
        sub = calls.subscription(topic, push_config={"push_endpoint": endpoint.url})
        calls.publish(topic, "one", colour="red")
        requests = endpoint.wait_for(3)
        assert len({body for _, body in requests}) == 1
        assert b'"attributes": {"colour": "red"}' in requests[0][1]
        eventually(lambda: twin.counts(sub)["acked"] == 1)
        with pytest.raises(exceptions.FailedPrecondition, match="not supported"):
            calls.look(sub)
    finally:
        endpoint.close()


def test_pushes_that_fail_together_are_one_failure(calls: Calls) -> None:
    endpoint = Endpoint(*[500] * 8)
    try:
        topic = calls.topic()
        calls.subscription(topic, push_config={"push_endpoint": endpoint.url})
        calls.publish(topic, *"abcdefgh")
        endpoint.wait_for(16)  # a pause that doubled with each of them would take half a minute
    finally:
        endpoint.close()


def test_push_carries_a_signed_token(calls: Calls, twin: Twin) -> None:
    endpoint = Endpoint()
    try:
        topic = calls.topic()
        token = {"service_account_email": "pusher@p.iam", "audience": "https://audience"}
        calls.subscription(topic, push_config={"push_endpoint": endpoint.url, "oidc_token": token})
        calls.publish(topic, "one")
        [(headers, _)] = endpoint.wait_for(1)
        kind, signed = headers["Authorization"].split()
        claims = jwt.decode(signed, certs=twin.certificates(), audience="https://audience")
        assert (kind, claims["email"]) == ("Bearer", "pusher@p.iam")
        assert (claims["email_verified"], claims["iss"]) == (True, "https://accounts.google.com")
        assert claims["sub"].isdigit()  # the account's number, and not its name
        assert jwt.decode_header(signed)["kid"] in twin.certificates()
    finally:
        endpoint.close()


def test_a_token_is_for_its_endpoint_and_an_unwrapped_message_has_its_metadata_in_headers(
    calls: Calls, twin: Twin
) -> None:
    endpoint = Endpoint()
    try:
        topic = calls.topic()
        push = {
            "push_endpoint": endpoint.url,
            "oidc_token": {"service_account_email": "pusher@p.iam"},
            "no_wrapper": {"write_metadata": True},
        }
        sub = calls.subscription(topic, push_config=push)
        [id] = calls.publish(topic, "one", key="k", colour="red")
        [(headers, body)] = endpoint.wait_for(1)
        assert body == b"one"
        signed = headers["Authorization"].split()[1]
        assert jwt.decode(signed, certs=twin.certificates())["aud"] == endpoint.url
        kept = {name.lower(): value for name, value in headers.items()}
        assert kept["colour"] == "red"
        names = ("subscription-name", "message-id", "ordering-key")
        assert [kept[f"x-goog-pubsub-{name}"] for name in names] == [sub, id, "k"]
        found = calls.subscriber.get_subscription(request={"subscription": sub}).push_config
        assert dict(found.attributes) == {"x-goog-version": "v1"}
    finally:
        endpoint.close()


# --- its own ways ---------------------------------------------------------------------------------


def test_an_unknown_switch_or_verb_is_told(twin: Twin) -> None:
    with pytest.raises(ValueError, match="'fault'; there are: pull_hold"):
        twin.switch(fault=1)
    with pytest.raises(ValueError, match="'fault'"):
        Twin(fault=1)
    with pytest.raises(ValueError, match="there is no projects/p/subscriptions/s"):
        twin.counts("projects/p/subscriptions/s")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "x"], "argument --port: invalid int value: 'x'"),
        (["--port", "65536"], "--port 65536: write 0 to 65535"),
        (["--set", "fault=1"], "unknown switch 'fault'; there are: pull_hold, "),
        (["--set", "faults"], "--set faults: write NAME=VALUE, as faults=0.01"),
        (["--set", "faults=2"], "faults is 2: write a number from 0 to 1"),
        (["--set", "settle=-1"], "settle is -1: write a number, 0 or more"),
        (["--set", "settle=NaN"], "settle is nan: write a number, 0 or more"),
        (["--set", "admin_quota=0.5"], "admin_quota is 0.5: write a whole number"),
        (["--set", "limits=1"], "limits is 1: write true or false"),
        (["--firestore", "localhost"], "--firestore localhost: write HOST:PORT of a Firestore"),
        (["--port", "0", "--"], "write a command after --, or leave -- out"),
    ],
)
def test_wrong_arguments_are_told_in_a_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert f"error: {said}" in capsys.readouterr().err


def test_a_command_that_can_not_be_run_is_told() -> None:
    """And nothing is imported in vain: neither clients, nor what only Firestore's twin needs."""
    command = [sys.executable, "-X", "importtime", "-m", "gwi_celery.testing.twin", "--port", "0"]
    done = subprocess.run(
        [*command, "--", "no-such-command"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 127
    assert "can't run no-such-command: No such file or directory\n" in done.stderr
    assert "Traceback" not in done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "google.pubsub_v1.types.pubsub" in imported
    needless = ("google.cloud.firestore", "google.pubsub_v1.services")
    assert not [name for name in imported if name.startswith(needless)]
    assert not_run(PermissionError()) == 126


def test_an_address_of_ip_6_is_written_in_brackets() -> None:
    options = {"port": 8085, "lenient": True, "set": [], "seed": 0, "firestore": None}
    for host in ("::1", "[::1]"):
        assert _server(Namespace(host=host, **options)).address == "[::1]:8085"


def test_lenient_has_every_switch_of_chance_off() -> None:
    assert (LENIENT.faults, LENIENT.settle, LENIENT.filters) == (0, 0, False)
    assert STRICT.filters
    assert STRICT.faults > 0


_RUN = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print(os.environ['PUBSUB_EMULATOR_HOST'], flush=True)
signal.pause()
"""


def test_the_command_runs_another_on_it_and_ends_with_it() -> None:
    command = [sys.executable, "-m", "gwi_celery.testing.twin", "--port", "0", "--lenient", "--"]
    with subprocess.Popen(
        [*command, sys.executable, "-c", _RUN],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        host, _, port = process.stdout.readline().strip().partition(":")
        assert host == "127.0.0.1"
        assert int(port) > 0
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (7, "")


def test_a_port_that_is_taken_is_told(twin: Twin, tmp_path: Path) -> None:
    port = twin.endpoint.rpartition(":")[2]
    done = zygote.run_module("gwi_celery.testing.twin", "--port", port, folder=tmp_path)
    assert done.returncode == 1
    assert f"can't listen on 127.0.0.1:{port}: choose another --port" in done.stdout


def _answers(twin: Twin) -> bool:
    try:
        twin.cost()
    except grpc.RpcError:
        return False
    return True


def _patiently(call: Callable[[], Any]) -> Any:
    """``call``, made again while there is no connection."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except exceptions.ServiceUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.05)
