"""The ceiling: a client alone, without Celery or Kombu; Google's, or gRPC's bare calls."""

from __future__ import annotations

import queue
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import grpc
from google.cloud import pubsub_v1
from google.protobuf.empty_pb2 import Empty
from google.pubsub_v1 import types
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


class Stream:
    """The least that a consumer does: a StreamingPull, and an ack for each message, at once."""

    def __init__(self, endpoint: str, prefetch: int) -> None:
        self._channel = grpc.insecure_channel(endpoint)
        publisher = PublisherClient(transport=PublisherGrpcTransport(channel=self._channel))
        subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=self._channel))
        project = f"projects/raw-{uuid4().hex[:8]}"
        self._topic, path = f"{project}/topics/topic", f"{project}/subscriptions/subscription"
        publisher.create_topic(name=self._topic, timeout=20)
        subscriber.create_subscription(name=path, topic=self._topic, timeout=20)
        self._publisher = publisher
        self._request: Any = types.AcknowledgeRequest.pb()
        self._acknowledge = self._channel.unary_unary(
            "/google.pubsub.v1.Subscriber/Acknowledge",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=Empty.FromString,
        )
        self._path = path
        self._acks: list[Any] = []
        opening: Any = types.StreamingPullRequest.pb()(
            subscription=path, stream_ack_deadline_seconds=60, max_outstanding_messages=prefetch
        )
        pull = self._channel.stream_stream(
            "/google.pubsub.v1.Subscriber/StreamingPull",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=types.StreamingPullResponse.pb().FromString,
        )
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._requests.put(opening)
        self._call = pull(iter(self._requests.get, None))
        #: When each message arrived.
        self.times: queue.SimpleQueue[float] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for answer in self._call:
                for received in answer.received_messages:
                    self.times.put(time.perf_counter())
                    ids = [received.ack_id]
                    ack = self._request(subscription=self._path, ack_ids=ids)
                    self._acks.append(
                        self._acknowledge.future(ack)
                    )  # dropped, it would be cancelled
        except grpc.RpcError:
            pass  # it was closed

    def publish(self, count: int = 1) -> None:
        messages = [{"data": b"x" * _SIZE} for _ in range(count)]
        self._publisher.publish(topic=self._topic, messages=messages, timeout=20)

    def close(self) -> None:
        self._requests.put(None)
        self._call.cancel()
        self._thread.join(5)
        self._channel.close()


def bare(endpoint: str, backlog: int, pings: int, prefetch: int = 4) -> dict[str, float]:
    """``drain/s``; ``floor ms`` from a publish's call to the message; ``round trip ms`` of a publish."""
    stream = Stream(endpoint, prefetch)
    try:
        waits, trips = [], []
        for _ in range(pings):
            began = time.perf_counter()
            stream.publish()
            trips.append(time.perf_counter() - began)
            waits.append(stream.times.get(timeout=20) - began)
            time.sleep(0.02)
        stream.publish(backlog)
        times = [stream.times.get(timeout=60) for _ in range(backlog)]
    finally:
        stream.close()
    return {
        "drain/s": (backlog - 1) / (times[-1] - times[0]),
        "floor ms": statistics.median(waits) * 1e3,
        "round trip ms": statistics.median(trips) * 1e3,
    }
