"""The Pub/Sub broker on the twin: what the emulator lets pass and the service refuses."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from gwi_celery.brokers.base import OutgoingMessage
from gwi_celery.brokers.pubsub.broker import PubSubBroker
from gwi_celery.brokers.pubsub.options import parse
from gwi_celery.testing.twin import Twin, start_twin


@pytest.fixture(scope="module")
def twin() -> Iterator[Twin]:
    with start_twin(lenient=True, one_ordering_key=True, settle=1, settle_misses=0.8) as started:
        yield started


@pytest.fixture
def broker(twin: Twin) -> Iterator[PubSubBroker]:
    url = f"pubsub://{twin.endpoint}/p-{uuid4().hex[:20]}"
    broker = PubSubBroker(parse(url, {"ordering": True}))
    yield broker
    broker.close()


def _of(tenant: str, body: bytes) -> tuple[str, str, OutgoingMessage]:
    return "", "q", OutgoingMessage(body, {"tenant": tenant, "run": "r"})


def test_messages_of_several_tenants_are_published_in_one_go(
    broker: PubSubBroker, twin: Twin
) -> None:
    broker.publish_many([_of("a", b"a1"), _of("b", b"b1"), _of("a", b"a2"), _of("b", b"b2")])
    subscription = broker.topology.subscription("q")
    assert twin.counts(subscription)["waiting"] == 4
    receiver = broker.receiver()
    found: list[bytes] = []
    while len(found) < 4:
        deliveries = receiver.poll("q", 10)
        found += [delivery.data for delivery in deliveries]
        broker.ack(deliveries)
        broker.flush()
    assert [body for body in found if body.startswith(b"a")] == [b"a1", b"a2"]
    assert [body for body in found if body.startswith(b"b")] == [b"b1", b"b2"]


def test_what_was_just_created_can_be_used(broker: PubSubBroker, twin: Twin) -> None:
    for n in range(5):
        broker.publish("", f"queue-{n}", OutgoingMessage(b"x"))
        assert twin.counts(broker.topology.subscription(f"queue-{n}"))["waiting"] == 1
