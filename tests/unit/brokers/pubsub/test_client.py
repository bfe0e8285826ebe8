"""Calls as Google's own library makes them; and the error where it or an emulator doesn't answer."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from gwi_celery.brokers.pubsub.client import Client, pb
from gwi_celery.brokers.pubsub.options import parse
from gwi_celery.errors import BrokerError, BrokerUnavailable, BrokerUnusable
from gwi_celery.gcp import fork_gate
from gwi_celery.testing.emulators import free_port
from tests.machine import PATIENCE

PROJECT, TOPIC, SUBSCRIPTION = "projects/p", "projects/p/topics/a~b", "projects/p/subscriptions/a%c"

#: RPC -> (resource, request), as Google's library takes it.
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "CreateTopic": (TOPIC, {"name": TOPIC}),
    "GetTopic": (TOPIC, {"topic": TOPIC}),
    "UpdateTopic": (TOPIC, {"topic": {"name": TOPIC}}),
    "ListTopics": (PROJECT, {"project": PROJECT}),
    "ListTopicSubscriptions": (TOPIC, {"topic": TOPIC}),
    "DeleteTopic": (TOPIC, {"topic": TOPIC}),
    "CreateSubscription": (SUBSCRIPTION, {"name": SUBSCRIPTION, "topic": TOPIC}),
    "GetSubscription": (SUBSCRIPTION, {"subscription": SUBSCRIPTION}),
    "UpdateSubscription": (SUBSCRIPTION, {"subscription": {"name": SUBSCRIPTION}}),
    "ListSubscriptions": (PROJECT, {"project": PROJECT}),
    "DeleteSubscription": (SUBSCRIPTION, {"subscription": SUBSCRIPTION}),
    "Pull": (SUBSCRIPTION, {"subscription": SUBSCRIPTION, "max_messages": 1}),
    "Acknowledge": (SUBSCRIPTION, {"subscription": SUBSCRIPTION, "ack_ids": ["x"]}),
    "ModifyAckDeadline": (SUBSCRIPTION, {"subscription": SUBSCRIPTION, "ack_ids": ["x"]}),
    "ModifyPushConfig": (SUBSCRIPTION, {"subscription": SUBSCRIPTION}),
    "Seek": (SUBSCRIPTION, {"subscription": SUBSCRIPTION}),
}


class Recorder(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers everything with nothing, and keeps by what each call was routed."""

    def __init__(self) -> None:
        self.routed: list[tuple[str, str]] = []

    def service(self, details: Any) -> Any:
        metadata = dict(details.invocation_metadata)
        self.routed.append((details.method, metadata.get("x-goog-request-params", "")))
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Recorder, str]]:
    recorder = Recorder()
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers([recorder])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield recorder, f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.mark.parametrize("rpc", REQUESTS)
def test_calls_are_routed_as_googles_library_does(served: tuple[Recorder, str], rpc: str) -> None:
    recorder, endpoint = served
    recorder.routed.clear()
    resource, fields = REQUESTS[rpc]
    type = {"CreateTopic": "Topic", "CreateSubscription": "Subscription"}.get(rpc, f"{rpc}Request")
    client = Client(parse(f"pubsub://{endpoint}/p"))
    client.call(rpc, pb[type](**fields), resource)
    client.close()
    with grpc.insecure_channel(endpoint) as channel:
        theirs: Any = (
            PublisherClient(transport=PublisherGrpcTransport(channel=channel))
            if "Topic" in rpc
            else SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        )
        name = "".join(f"_{c.lower()}" if c.isupper() else c for c in rpc).lstrip("_")
        getattr(theirs, name)(request=fields)
    ours, google = recorder.routed
    assert ours == google


# --- errors: the cause, and the next step ---------------------------------------------------------

Code = grpc.StatusCode
API_OFF = "Cloud Pub/Sub API has not been used in project 1 before or it is disabled."
NO_BILLING = (
    "This API method requires billing to be enabled. Please enable billing on project #1 by visiting "
    "https://console.developers.google.com/billing/enable?project=1 then retry."
)
PERIMETER = (
    "Request is prohibited by organization's policy. vpcServiceControlsUniqueIdentifier: abc"
)
NO_QUOTA = (
    "Your application is authenticating by using local Application Default Credentials. The "
    "pubsub.googleapis.com API requires a quota project, which is not set by default."
)
REGIONS = (
    "The requested message storage policy contains the following GCP regions that are not allowed by "
    "the project's organization policy: us-east1."
)
CMEK = "Constraint constraints/gcp.restrictNonCmekServices violated for projects/1."
NO_PROJECT = "Requested project not found or user does not have access to it (project=proj)."


class Answer(grpc.RpcError):  # type: ignore[misc]
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self.code = lambda: code
        self.details = lambda: details
        self.trailing_metadata = lambda: ()


def test_a_fork_waits_until_grpc_has_stopped_looking_for_a_connection(
    served: tuple[Recorder, str],
) -> None:
    client = Client(parse(f"pubsub://{served[1]}/p", {}))
    client.ready(PATIENCE)
    looking = client._channel.get()._connectivity_state
    fork_gate._before()
    try:
        assert not looking.polling, "its thread calls into gRPC: a child may crash"
    finally:
        fork_gate._in_parent()
        client.close()


def test_an_emulator_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", nobody)
    client = Client(parse("pubsub://proj"))
    with pytest.raises(BrokerUnavailable) as caught:
        client.call("GetTopic", pb["GetTopicRequest"](topic=TOPIC), TOPIC, 10)
    client.close()
    assert f"the Pub/Sub emulator at {nobody} (PUBSUB_EMULATOR_HOST) does not answer" in str(
        caught.value
    )
    assert "python -m gwi_celery.testing.emulators --only pubsub" in str(caught.value)


def test_an_emulator_elsewhere_that_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have answered so itself, and starting another one here would not help."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "pubsub.test:8085")
    client = Client(parse("pubsub://proj"))
    text = str(client.error(Answer(Code.UNAVAILABLE, "overloaded"), "Publish", TOPIC))
    assert "the Pub/Sub emulator at pubsub.test:8085 (PUBSUB_EMULATOR_HOST) is unavailable" in text
    assert "overloaded" in text
    assert "gwi_celery.testing" not in text


@pytest.mark.parametrize(
    ("code", "details", "kind", "match"),
    [
        (Code.UNAVAILABLE, "down", BrokerUnavailable, r"Pub/Sub at pubsub\.googleapis\.com.*net"),
        (Code.PERMISSION_DENIED, API_OFF, BrokerUnusable, "gcloud services enable pubsub.google"),
        (Code.PERMISSION_DENIED, "no", BrokerUnusable, r"roles/pubsub\.publisher"),
        (Code.PERMISSION_DENIED, NO_BILLING, BrokerUnusable, "gcloud billing projects link proj"),
        (Code.PERMISSION_DENIED, PERIMETER, BrokerUnusable, "^a service perimeter.*ingress rule"),
        (Code.PERMISSION_DENIED, NO_QUOTA, BrokerUnusable, "set-quota-project proj"),
        (Code.FAILED_PRECONDITION, REGIONS, BrokerUnusable, "resourceLocations.*storage_regions"),
        (Code.FAILED_PRECONDITION, CMEK, BrokerUnusable, "kms_key"),
        (Code.FAILED_PRECONDITION, "no", BrokerError, "FAILED_PRECONDITION: no"),
        (Code.NOT_FOUND, NO_PROJECT, BrokerUnusable, "no Google Cloud project 'proj'.*GCP_PROJECT"),
    ],
)
def test_what_google_answers(
    code: Any, details: str, kind: type[Exception], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    client = Client(parse("pubsub://proj"))
    with pytest.raises(kind, match=match):
        raise client.error(Answer(code, details), "Publish", "projects/proj/topics/a~b")
