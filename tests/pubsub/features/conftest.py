"""A project of its own for each test, and Google's own client to look behind our back."""

from __future__ import annotations

import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from celery import Celery
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from gwi_celery import setup
from gwi_celery.brokers.base import Broker, OutgoingMessage, QueueSpec
from gwi_celery.brokers.pubsub.broker import PubSubBroker
from gwi_celery.brokers.pubsub.options import parse
from gwi_celery.testing.emulators import Emulator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "pubsub_emulator" in getattr(item, "fixturenames", ()):
            item.add_marker("emulator")


@pytest.fixture
def project(pubsub_emulator: Emulator) -> str:
    return f"p-{uuid.uuid4().hex[:20]}"


@pytest.fixture
def connect(project: str) -> Iterator[Callable[..., PubSubBroker]]:
    """Makes brokers that are connections to the test's project. ``broker.calls`` counts RPCs."""
    made: list[PubSubBroker] = []

    def connect(**options: Any) -> PubSubBroker:
        broker = PubSubBroker(parse(f"pubsub://{project}", options))
        broker.calls = Counter()  # type: ignore[attr-defined]
        broker.client.on_call = lambda rpc: broker.calls.update([rpc])  # type: ignore[attr-defined]
        made.append(broker)
        return broker

    yield connect
    for broker in made:
        broker.close()


class Google:
    """Google's own generated clients on the emulator."""

    def __init__(self, endpoint: str, project: str) -> None:
        self._channel = grpc.insecure_channel(endpoint)
        self.project = project
        self.publisher = PublisherClient(transport=PublisherGrpcTransport(channel=self._channel))
        self.subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=self._channel))

    def topic(self, id: str) -> Any:
        return self.publisher.get_topic(topic=self.topic_path(id))

    def subscription(self, id: str) -> Any:
        return self.subscriber.get_subscription(subscription=self.subscription_path(id))

    def topic_path(self, id: str) -> str:
        return f"projects/{self.project}/topics/{id}"

    def subscription_path(self, id: str) -> str:
        return f"projects/{self.project}/subscriptions/{id}"

    def subscriptions(self) -> list[str]:
        """Ids of all there are."""
        found = self.subscriber.list_subscriptions(project=f"projects/{self.project}")
        return sorted(s.name.rpartition("/")[2] for s in found)

    def topics(self) -> list[str]:
        found = self.publisher.list_topics(project=f"projects/{self.project}")
        return sorted(t.name.rpartition("/")[2] for t in found)

    def publish(self, topic: str, data: bytes, **attributes: str) -> None:
        message = {"data": data, "attributes": attributes}
        self.publisher.publish(topic=self.topic_path(topic), messages=[message])

    def pull(self, subscription: str) -> list[bytes]:
        """What is there now, acked."""
        path = self.subscription_path(subscription)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it should be slow instead
            answer = self.subscriber.pull(
                subscription=path, max_messages=100, return_immediately=True
            )
        ids = [m.ack_id for m in answer.received_messages]
        if ids:
            self.subscriber.acknowledge(subscription=path, ack_ids=ids)
        return [m.message.data for m in answer.received_messages]

    def close(self) -> None:
        self._channel.close()


@pytest.fixture
def google(pubsub_emulator: Emulator, project: str) -> Iterator[Google]:
    client = Google(pubsub_emulator.endpoint, project)
    yield client
    client.close()


def declare(broker: Broker, *names: str, **settings: Any) -> None:
    for name in names:
        broker.declare_queue(QueueSpec(name, **settings))


def publish(broker: Broker, exchange: str, key: str, data: bytes, **options: Any) -> None:
    broker.publish(exchange, key, OutgoingMessage(data, **options))


def read(broker: Broker, queue: str) -> list[bytes]:
    """All that is in a queue now, acked."""
    receiver = broker.receiver()
    found = []
    try:
        while batch := receiver.poll(queue, 100):
            broker.ack(batch)
            found += [d.data for d in batch]
    finally:
        receiver.close()
    return sorted(found)


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """The jobs' app in this process, for a broker URL."""
    made = []

    def make(url: str) -> Any:
        monkeypatch.setenv("JOBS_BROKER_URL", url)
        monkeypatch.setenv("JOBS_FOLDER", str(tmp_path))
        app = Celery("pubsub-jobs", broker=url)
        setup(app, folder=str(tmp_path / "gwi"), lease_seconds=10)
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()
