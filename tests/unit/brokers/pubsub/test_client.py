"""Calls as Google's own library makes them."""

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
