"""Managed: differences are reported, or repaired. Provisioned: nothing is made, and no admin call."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from celery import Celery
from google.pubsub_v1 import types
from kombu import Connection
from kombu.exceptions import OperationalError

from gwi_celery import setup
from gwi_celery.brokers.base import OutgoingMessage
from gwi_celery.brokers.pubsub.broker import PubSubBroker
from gwi_celery.brokers.pubsub.client import pb
from gwi_celery.brokers.pubsub.options import parse
from gwi_celery.errors import BrokerError, BrokerUnavailable, BrokerUnusable, ConfigurationError
from tests.contract.brokers import wait_for
from tests.machine import PATIENCE
from tests.pubsub.features.answering import Server, serving
from tests.pubsub.features.conftest import Google, declare, publish, read
from tests.pubsub.features.jobs import APP, notes
from tests.workers import Worker, eventually, worker

Connect = Callable[..., PubSubBroker]

ADMIN = re.compile(r"Create|Get|Update|List|Delete|Seek")


# --- drift ----------------------------------------------------------------------------------------

#: Field -> (what somebody else has made of it, how it reads, how it should).
DRIFT: dict[str, tuple[dict[str, Any], str, str]] = {
    "topic": ({"topic": "gwi-other"}, "topics/gwi-other", "topics/gwi-q"),
    "filter": ({"filter": 'attributes.a = "b"'}, 'attributes.a = "b"', ""),
    "ack_deadline_seconds": ({"ack_deadline_seconds": 77}, "77", "30"),
    "enable_message_ordering": ({"enable_message_ordering": True}, "True", "False"),
    "enable_exactly_once_delivery": ({"enable_exactly_once_delivery": True}, "True", "False"),
    "retry_policy": (
        {"retry_policy": {"minimum_backoff": {"seconds": 5}, "maximum_backoff": {"seconds": 9}}},
        "5 s to 9 s",
        "none",
    ),
    "dead_letter_policy": (
        {"dead_letter_policy": {"dead_letter_topic": "gwi-other", "max_delivery_attempts": 5}},
        "topics/gwi-other after 5 deliveries",
        "topics/gwi-q.dead after 100 deliveries",
    ),
    "expiration_policy": (
        {"expiration_policy": {"ttl": {"seconds": 10 * 86400}}},
        "after 864000 s",
        "never",
    ),
    "message_retention_duration": (
        {"message_retention_duration": {"seconds": 3600}},
        "3600 s",
        "604800 s",
    ),
    "labels": ({"labels": {"gwi-max-deliveries": "3", "theirs": "x"}}, "'3'", "{'theirs': 'x'}"),
}
IMMUTABLE = {"topic", "filter", "enable_message_ordering"}
#: The emulator (0.8.20) answers 400 to an update of these.
NOT_UPDATED = {"labels", "expiration_policy"}


@pytest.mark.parametrize("field", DRIFT)
def test_what_differs_is_said_or_repaired(connect: Connect, google: Google, field: str) -> None:
    changed, is_, should = DRIFT[field]
    broker = connect()
    declare(broker, "q", "other")
    path = google.subscription_path("gwi-q")
    made = google.subscription("gwi-q")
    google.subscriber.delete_subscription(subscription=path)
    wanted = types.Subscription(made)
    for name, value in changed.items():
        if isinstance(value, str) and value == "gwi-other":
            value = google.topic_path(value)  # noqa: PLW2901
        if isinstance(value, dict) and "dead_letter_topic" in value:
            value = {**value, "dead_letter_topic": google.topic_path("gwi-other")}  # noqa: PLW2901
        setattr(wanted, name, value)
    google.subscriber.create_subscription(request=wanted)

    with pytest.raises(ConfigurationError) as raised:
        declare(connect(), "q")
    message = str(raised.value)
    assert message.startswith(f"queue 'q': subscription {path} differs from the configuration: ")
    assert re.search(rf"{field} is .*{re.escape(is_)}.*, should be .*{re.escape(should)}", message)
    assert "set repair=True" in message
    found = google.subscription("gwi-q")
    assert getattr(found, field) == getattr(wanted, field), "nothing was changed"

    repairing = connect(repair=True)
    if field in IMMUTABLE:
        with pytest.raises(ConfigurationError) as raised:
            declare(repairing, "q")
        assert f"gcloud pubsub subscriptions delete gwi-q --project={google.project}" in str(
            raised.value
        )
        return
    declare(repairing, "q")
    assert repairing.calls["UpdateSubscription"] == 1  # type: ignore[attr-defined]
    if field not in NOT_UPDATED:
        assert getattr(google.subscription("gwi-q"), field) == getattr(made, field)
        declare(connect(), "q")


@pytest.mark.parametrize(
    ("options", "field", "message"),
    [
        (
            {"labels": {"team": "b"}},
            "labels",
            r"labels is \{.*'team': 'a'.*\}, should be \{.*'team': 'b'.*\}",
        ),
        (
            {"storage_regions": ["europe-west4"]},
            "message_storage_policy",
            "message_storage_policy is europe-west1, should be europe-west4",
        ),
        (
            {"kms_key": "projects/p/locations/l/keyRings/r/cryptoKeys/other"},
            "kms_key_name",
            "kms_key_name is .*/k, should be .*/other",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_topics_are_compared_too(
    connect: Connect, options: dict[str, Any], field: str, message: str
) -> None:
    first = {
        "labels": {"team": "a"},
        "storage_regions": ["europe-west1"],
        "kms_key": "projects/p/locations/l/keyRings/r/cryptoKeys/k",
    }
    broker = connect(**first)
    declare(broker, "q")
    broker.declare_exchange("x", "direct")
    for make in (
        lambda other: declare(other, "q"),
        lambda other: other.declare_exchange("x", "direct"),
    ):
        with pytest.raises(ConfigurationError, match=rf"topic .*/gwi-[qx] differs.*{message}"):
            make(connect(**{**first, **options}))
    repairing = connect(**{**first, **options}, repair=True)
    if field == "kms_key_name":
        with pytest.raises(ConfigurationError, match="gcloud pubsub topics delete gwi-x"):
            repairing.declare_exchange("x", "direct")
    else:
        repairing.declare_exchange("x", "direct")
        assert repairing.calls["UpdateTopic"] == 1  # type: ignore[attr-defined]


def test_labels_of_others_are_left_alone(connect: Connect, google: Google) -> None:
    declare(connect(), "q")
    made = google.subscription("gwi-q")
    google.subscriber.delete_subscription(subscription=made.name)
    made.labels["theirs"] = "x"
    google.subscriber.create_subscription(request=made)
    declare(connect(), "q")
    assert google.subscription("gwi-q").labels["theirs"] == "x"


# --- provisioned ----------------------------------------------------------------------------------


@pytest.fixture
def provisioned(connect: Connect, google: Google) -> Connect:
    """Makes connections that make nothing. There is what gcloud would have made for "jobs"."""
    for topic in ("their-topic", "their-dead"):
        google.publisher.create_topic(name=google.topic_path(topic))
    for subscription, topic, policy in (
        ("their-dead", "their-dead", {}),
        (
            "their-subscription",
            "their-topic",
            {
                "dead_letter_policy": {
                    "dead_letter_topic": google.topic_path("their-dead"),
                    "max_delivery_attempts": 100,
                }
            },
        ),
    ):
        google.subscriber.create_subscription(
            request={
                "name": google.subscription_path(subscription),
                "topic": google.topic_path(topic),
                **policy,
            }
        )
    mapping = {
        "topic": "their-topic",
        "subscription": google.subscription_path("their-subscription"),
        "dead_letter_topic": "their-dead",
    }
    queues = {"jobs": mapping, "jobs.dead": {"topic": "their-dead", "subscription": "their-dead"}}
    return lambda **options: connect(**{"mode": "provisioned", "queues": queues, **options})


def test_provisioned_makes_no_admin_call(
    provisioned: Connect, google: Google, caplog: pytest.LogCaptureFixture
) -> None:
    before = (google.topics(), google.subscriptions())
    broker = provisioned()
    broker.connect()
    broker.declare_exchange("jobs", "direct")
    declare(broker, "jobs")
    broker.bind("jobs", "jobs", "jobs")
    receiver = broker.receiver()
    receiver.subscribe("jobs")

    publish(broker, "", "jobs", b"acked")
    delivery = wait_for(receiver, "jobs")
    assert delivery.data == b"acked"
    assert broker.extend([delivery], 10.0) == []
    broker.ack([delivery])
    publish(broker, "jobs", "jobs", b"dead")
    delivery = wait_for(receiver, "jobs")
    broker.nack(delivery)
    delivery = wait_for(receiver, "jobs")
    assert delivery.deliveries == 2
    broker.dead_letter(delivery, "broken")
    publish(broker, "", "jobs", b"given back")
    broker.give_back(wait_for(receiver, "jobs"))
    broker.ack([wait_for(receiver, "jobs")])
    assert [m.attributes["gwi-death-reason"] for m in broker.peek("jobs.dead")] == ["broken"]
    assert broker.redrive("jobs") == 1
    assert wait_for(receiver, "jobs").data == b"dead"
    assert broker.has_queue("jobs")
    assert broker.queues() == ["jobs", "jobs.dead"]
    assert broker.bindings() != []
    assert broker.purge("jobs") == 0
    broker.unbind("jobs", "jobs", "jobs")
    broker.delete_queue("jobs")
    broker.delete_exchange("jobs")
    broker.close()

    calls = broker.calls  # type: ignore[attr-defined]
    assert not [rpc for rpc in calls if ADMIN.match(rpc)], calls
    assert (google.topics(), google.subscriptions()) == before


def test_an_unknown_ack_deadline_is_taken_for_the_shortest(
    provisioned: Connect, google: Google
) -> None:
    """gcloud's default is 10 s, whatever lease_seconds says: the first extension must be in time."""
    broker = provisioned(lease_seconds=60)
    publish(broker, "", "jobs", b"m")
    [delivery] = broker.receiver().poll("jobs", 1)
    assert delivery.lease_seconds == 10
    sent = []
    call = broker.client.call
    broker.client.call = lambda rpc, request, *rest: (  # type: ignore[method-assign]
        sent.append(request) or call(rpc, request, *rest)
    )
    assert broker.extend([delivery], delivery.lease_seconds) == []
    assert [request.ack_deadline_seconds for request in sent] == [60]


def test_queues_that_are_not_named_have_our_names(connect: Connect, google: Google) -> None:
    google.publisher.create_topic(name=google.topic_path("our-q"))
    google.subscriber.create_subscription(
        name=google.subscription_path("our-q"), topic=google.topic_path("our-q")
    )
    broker = connect(mode="provisioned", prefix="our-")
    publish(broker, "", "q", b"m")
    assert read(broker, "q") == [b"m"]


def test_a_missing_topic_says_what_to_run(provisioned: Connect, google: Google) -> None:
    broker = provisioned()
    with pytest.raises(BrokerUnusable) as raised:
        publish(broker, "", "other", b"m")
    assert str(raised.value) == (
        f"projects/{google.project}/topics/gwi-other does not exist, and mode='provisioned' makes "
        f"nothing: create it by `gcloud pubsub topics create gwi-other --project={google.project}`, "
        "or name another in the transport option 'queues'"
    )
    with pytest.raises(BrokerError) as raised_by_many:
        broker.publish_many([("", "other", OutgoingMessage(b"m"))])
    assert "gcloud pubsub topics create gwi-other" in str(raised_by_many.value)


@pytest.mark.parametrize("bulk", [False, True], ids=["pulled", "streamed"])
def test_a_missing_subscription_stops_the_consumer_with_what_to_run(
    provisioned: Connect, google: Google, bulk: bool
) -> None:
    broker = provisioned()
    path = google.subscription_path("their-subscription")
    google.subscriber.delete_subscription(subscription=path)
    receiver = broker.receiver()
    receiver.subscribe("jobs", bulk=bulk)
    with pytest.raises(BrokerUnusable) as raised:
        wait_for(receiver, "jobs")
    assert f"{path} does not exist, and mode='provisioned' makes nothing" in str(raised.value)
    assert (
        "`gcloud pubsub subscriptions create their-subscription --topic=their-topic "
        f"--project={google.project} --ack-deadline=30 --expiration-period=never "
        "--dead-letter-topic=their-dead --max-delivery-attempts=100`" in str(raised.value)
    )


def test_without_its_dead_letter_a_message_stays_in_its_queue(
    provisioned: Connect, google: Google, caplog: pytest.LogCaptureFixture
) -> None:
    broker = provisioned()
    google.publisher.delete_topic(topic=google.topic_path("their-dead"))
    publish(broker, "", "jobs", b"m")
    [delivery] = broker.receiver().poll("jobs", 1)
    broker.dead_letter(delivery, "broken")
    assert "could not be moved to the dead letter (broken) and stays in its queue" in caplog.text
    assert "gcloud pubsub topics create their-dead" in caplog.text
    assert broker._acks.flush(PATIENCE)
    assert delivery.ack_id not in broker.deliveries.leases


def test_temporary_queues_are_refused_with_advice(provisioned: Connect) -> None:
    broker = provisioned()
    for settings in ({"auto_delete": True}, {"expires": 60.0}):
        with pytest.raises(ConfigurationError, match="worker_enable_remote_control=False"):
            declare(broker, "reply", **settings)
    declare(broker, "jobs", expires=60.0)  # one that is named


def provisioned_url(project: str) -> str:
    queues = {
        "celery": {
            "topic": "their-topic",
            "subscription": "their-subscription",
            "dead_letter_topic": "their-dead",
        }
    }
    return f"pubsub://{project}?mode=provisioned&queues={json.dumps(queues)}"


@pytest.mark.acceptance
def test_a_worker_runs_on_what_was_made_for_it(
    provisioned: Connect,
    google: Google,
    jobs: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = (google.topics(), google.subscriptions())
    monkeypatch.setenv("JOBS_COUNT", "1")
    app = jobs(provisioned_url(google.project))
    assert app.conf.worker_enable_remote_control is False
    with worker(APP, tmp_path, pool="solo") as running:
        assert app.send_task("add", (1, 2)).get(timeout=PATIENCE) == 3
        app.send_task("nobody.knows")
        dead = eventually(lambda: google.pull("their-dead"), "the dead letter")
        assert b"nobody.knows" in dead[0]
        assert running.stop() < 20
    called = [note.removeprefix("rpc ") for note in notes(tmp_path) if note.startswith("rpc ")]
    assert not [rpc for rpc in called if ADMIN.match(rpc)], called
    assert called.count("Publish") == 1, "the dead letter: no events to where there is no topic"
    assert (google.topics(), google.subscriptions()) == before


@pytest.mark.acceptance
def test_a_worker_without_its_subscription_says_so_and_ends(
    provisioned: Connect, google: Google, jobs: Callable[[str], Any], tmp_path: Path
) -> None:
    google.subscriber.delete_subscription(
        subscription=google.subscription_path("their-subscription")
    )
    jobs(provisioned_url(google.project))
    ending = Worker(APP, tmp_path, pool="solo")
    try:
        ending.process.wait(timeout=PATIENCE)
        ending.wait_killed()
        ending._reader.join(timeout=PATIENCE)
        assert ending.process.returncode != 0
        assert "gcloud pubsub subscriptions create their-subscription" in ending.log
    finally:
        ending.close()
    assert notes(tmp_path) == []


# --- what Google's IAM and its quotas say ---------------------------------------------------------


def on(server: Server, **options: Any) -> PubSubBroker:
    settings = {"publish_timeout": 0.5, "timeout": 5, **options}
    return PubSubBroker(parse(f"pubsub://{server.endpoint}/p", settings))


DENIED = (grpc.StatusCode.PERMISSION_DENIED, "User not authorized to perform this action.")


def test_each_refusal_names_the_resource_the_role_and_the_command() -> None:
    answers: dict[str, Any] = dict.fromkeys(("Publish", "Pull", "CreateSubscription"), DENIED)
    answers["GetSubscription"] = (grpc.StatusCode.NOT_FOUND, "")
    answers["CreateTopic"] = lambda request: request
    with serving(answers) as server:
        broker = on(server)
        with pytest.raises(BrokerUnusable) as raised:
            declare(broker, "q")
        assert str(raised.value) == (
            "not allowed to CreateSubscription on projects/p/subscriptions/gwi-q.dead (User not "
            "authorized to perform this action.): grant roles/pubsub.editor, by `gcloud projects "
            "add-iam-policy-binding p --member=serviceAccount:NAME --role=roles/pubsub.editor`, or "
            "use mode='provisioned', which makes no such call"
        )
        broker.close()

        broker = on(server, mode="provisioned", queues={"q": {"topic": "projects/other/topics/t"}})
        with pytest.raises(BrokerUnusable) as raised:
            publish(broker, "", "q", b"m")
        assert str(raised.value) == (
            "not allowed to Publish on projects/other/topics/t (User not authorized to perform this "
            "action.): grant roles/pubsub.publisher, by `gcloud pubsub topics add-iam-policy-binding "
            "t --project=other --member=serviceAccount:NAME --role=roles/pubsub.publisher`"
        )
        receiver = broker.receiver()
        receiver.subscribe("q")
        with pytest.raises(
            BrokerUnusable,
            match=r"grant roles/pubsub\.subscriber, by `gcloud pubsub "
            r"subscriptions add-iam-policy-binding gwi-q --project=p ",
        ):
            wait_for(receiver, "q")
        assert server.calls["Publish"] == 1, "asking again can't help"
        broker.close()


def test_credentials_that_are_not_accepted() -> None:
    refused = (grpc.StatusCode.UNAUTHENTICATED, "token expired")
    with serving({"GetTopic": refused}) as server:
        broker = on(server)
        with pytest.raises(
            BrokerUnusable,
            match=r"not accepted for GetTopic on .*\(token expired\): "
            r"run `gcloud auth application-default login`",
        ):
            broker.connect()
        broker.close()


def test_a_quota_that_is_used_up() -> None:
    with serving({"Publish": (grpc.StatusCode.RESOURCE_EXHAUSTED, "publish quota")}) as server:
        broker = on(server, mode="provisioned")
        with pytest.raises(
            BrokerUnavailable,
            match="publish quota; a quota of Pub/Sub is used up: "
            "see the project's quotas page, or publish slower",
        ):
            publish(broker, "", "q", b"m")
        assert server.calls["Publish"] > 1, "it may pass"
        broker.close()


def test_what_fails_for_now_is_tried_again() -> None:
    states = iter([grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, None])

    def answer(request: bytes) -> Any:
        state = next(states)
        if state is not None:
            return (state, "for now")
        return pb["PublishResponse"](message_ids=["1"]).SerializeToString()

    with serving({"Publish": answer}) as server:
        broker = on(server, mode="provisioned", publish_timeout=30)
        publish(broker, "", "q", b"m")
        assert server.calls["Publish"] == 3
        broker.close()


@pytest.mark.parametrize(
    ("code", "most"),
    [(grpc.StatusCode.UNAVAILABLE, 60), (grpc.StatusCode.PERMISSION_DENIED, 4)],
    ids=["unavailable", "denied"],
)
def test_delay_raises_operational_error_after_bounded_retries(
    code: grpc.StatusCode, most: int, tmp_path: Path
) -> None:
    with serving({"Publish": (code, "the server refuses")}) as server:
        app = Celery("producer", broker=f"pubsub://{server.endpoint}/p?mode=provisioned")
        app.conf.broker_transport_options = {"publish_timeout": 0.2}
        setup(app, folder=str(tmp_path))
        with pytest.raises(OperationalError, match="the server refuses"):
            app.send_task("add", (1, 2))
        assert 1 <= server.calls["Publish"] <= most
        app.close()


def test_an_endpoint_where_nobody_listens() -> None:
    with (
        Connection("pubsub://127.0.0.1:1/p", transport_options={"timeout": 1}) as connection,
        pytest.raises(OperationalError, match=r"127\.0\.0\.1:1"),
    ):
        connection.ensure_connection(max_retries=1, interval_start=0)
