"""The ceiling: Google's client alone, on the emulator, without Celery or Kombu."""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import uuid4

import grpc
from google.cloud import pubsub_v1
from google.pubsub_v1.services.publisher import PublisherClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber import SubscriberClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

#: Bytes of a message, about those of a Celery task without arguments.
_SIZE = 1000


def publishing(endpoint: str) -> Callable[[int], None]:
    """Confirmed unary publishes through the generated client, on a topic of their own."""
    channel = grpc.insecure_channel(endpoint)
    publisher = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
    topic = f"projects/raw-{uuid4().hex[:8]}/topics/topic"
    publisher.create_topic(name=topic, timeout=20)
    message = {"data": b"x" * _SIZE, "attributes": {"task": "noop"}}

    def publish(count: int) -> None:
        for _ in range(count):
            publisher.publish(topic=topic, messages=[message], timeout=20)

    return publish


def measure(endpoint: str, calls: int) -> dict[str, float]:
    """Figures by name, each per second."""
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(endpoint, options=options) as channel:
        publisher = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
        subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        project = f"projects/raw-{uuid4().hex[:8]}"
        topic, subscription = f"{project}/topics/topic", f"{project}/subscriptions/subscription"
        publisher.create_topic(name=topic, timeout=20)
        subscriber.create_subscription(name=subscription, topic=topic, timeout=20)
        message = {"data": b"x" * _SIZE, "attributes": {"task": "noop"}}
        figures = {}
        for _ in range(min(calls, 200)):  # the server's JVM needs some calls to get fast
            publisher.publish(topic=topic, messages=[message], timeout=20)

        began = time.perf_counter()
        for _ in range(calls):
            publisher.publish(topic=topic, messages=[message], timeout=20)
        figures["publish 1, confirmed"] = calls / (time.perf_counter() - began)

        batching = pubsub_v1.PublisherClient(transport=PublisherGrpcTransport(channel=channel))
        many = calls * 5
        began = time.perf_counter()
        futures = [batching.publish(topic, message["data"], task="noop") for _ in range(many)]
        for future in futures:
            future.result(timeout=60)
        figures["publish batched"] = many / (time.perf_counter() - began)
        batching.stop()

        for size, wanted in ((1, calls), (64, calls * 4)):
            taken = 0
            began = time.perf_counter()
            while taken < wanted:
                answer = subscriber.pull(subscription=subscription, max_messages=size, timeout=20)
                ids = [received.ack_id for received in answer.received_messages]
                if ids:
                    subscriber.acknowledge(subscription=subscription, ack_ids=ids, timeout=20)
                taken += len(ids)
            figures[f"pull {size} + ack"] = taken / (time.perf_counter() - began)
        return figures
