"""How many calls things cost. Counts are stable where times are not."""

from __future__ import annotations

import select
import time
from collections import Counter
from collections.abc import Callable
from types import ModuleType

import pytest
from celery import group

from gwi_celery import publish_batch
from gwi_celery.brokers.base import OutgoingMessage, QueueSpec
from gwi_celery.brokers.pubsub.broker import PubSubBroker
from gwi_celery.errors import BatchFailed, TooLarge
from tests.machine import PATIENCE
from tests.workers import eventually

pytestmark = pytest.mark.emulator


def test_a_call_to_a_known_queue_is_one_rpc(jobs: ModuleType, calls: Counter[str]) -> None:
    jobs.mark.delay(0)
    calls.clear()
    for n in range(10):
        jobs.mark.delay(n)
    assert calls == {"Publish": 10}


def test_the_first_call_declares_each_entity_once(
    jobs: ModuleType, calls: Counter[str], connect: Callable[..., PubSubBroker]
) -> None:
    jobs.mark.delay(0)
    # Exchange and queue share a topic; the queue has a subscription, and so has its dead letter.
    assert calls["CreateTopic"] <= 3
    assert calls["CreateSubscription"] == 2
    assert calls["Publish"] == 1
    calls.clear()
    with jobs.app.connection() as connection:  # another process finds it all there
        jobs.app.amqp.queues["celery"](connection.default_channel).declare()
    assert not {"CreateTopic", "CreateSubscription"} & calls.keys()
    assert sum(calls.values()) <= 3, calls


def test_a_batch_is_a_few_rpcs(jobs: ModuleType, calls: Counter[str]) -> None:
    jobs.mark.delay(0)
    calls.clear()
    with publish_batch() as batch:
        results = [jobs.mark.delay(n) for n in range(2500)]
        group(jobs.mark.s(n) for n in range(3))()
        jobs.mark.chunks([(n,) for n in range(10)], 5)()
    assert batch.published == 2500 + 3 + 2
    assert calls["Publish"] <= 4
    assert set(calls) == {"Publish"}
    assert len({result.id for result in results}) == 2500


def test_a_batch_names_the_calls_that_failed(
    jobs: ModuleType, connect: Callable[..., PubSubBroker]
) -> None:
    with pytest.raises(BatchFailed, match="1 of 3 calls") as failed, publish_batch():
        first = jobs.mark.delay("first")
        large = jobs.mark.delay("x" * 11_000_000)
        last = jobs.mark.delay("last")
    assert isinstance(failed.value.errors[large.id], TooLarge)
    assert set(failed.value.errors) == {large.id}
    assert {first.id, last.id} == {
        d.attributes["task_id"] for d in connect().looks.in_turn("celery", 10)
    }


def test_too_large_a_call_is_refused_with_both_sizes(jobs: ModuleType, calls: Counter[str]) -> None:
    with pytest.raises(Exception, match=r"11\d{6} bytes.*10000000") as refused:
        jobs.mark.delay("x" * 11_000_000)
    assert "Cloud Storage" in str(refused.value)
    assert calls["Publish"] == 0


def test_an_idle_worker_makes_a_call_per_queue_in_ten_seconds(
    connect: Callable[..., PubSubBroker],
) -> None:
    """Of two task queues and a streamed one; once it has been idle for some seconds."""
    broker = connect()
    receiver = broker.receiver()
    for name, bulk in (("q", False), ("r", False), ("replies", True)):
        broker.declare_queue(QueueSpec(name, auto_delete=bulk))
        receiver.subscribe(name, bulk=bulk)

    def serve(seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            receiver.clear()
            for name in ("q", "r", "replies"):
                assert receiver.poll(name, 1) == []
            select.select([receiver.fileno()], [], [], min(left, receiver.next_due() or left))

    serve(9)
    counted: Counter[str] = Counter()
    broker.client.on_call = lambda name: counted.update([name])
    serve(10)
    assert sum(counted.values()) <= 3, counted


def test_acks_gather_while_one_request_is_on_its_way(
    connect: Callable[..., PubSubBroker],
) -> None:
    broker = connect()
    broker.publish_many([("", "q", OutgoingMessage(b"%d" % n)) for n in range(300)])
    deliveries = broker.looks.in_turn("q", 300)
    assert len(deliveries) == 300
    counted: Counter[str] = Counter()
    broker.client.on_call = lambda name: counted.update([name])
    for delivery in deliveries:
        broker.ack([delivery])
    assert broker.flush(PATIENCE)
    assert counted["Acknowledge"] < 150
    eventually(lambda: broker.looks.in_turn("q", 10) == [])


@pytest.mark.parametrize("levels", [(), (0, 5, 9)], ids=["one level", "priorities"])
def test_a_message_that_is_not_for_now_does_not_hide_the_next(
    connect: Callable[..., PubSubBroker], levels: tuple[int, ...]
) -> None:
    """Parked, expired and filtered messages come in vain; what comes after them is asked for."""
    broker = connect(priority_levels=levels)
    broker.declare_queue(QueueSpec("q"))
    receiver = broker.receiver()
    receiver.subscribe("q")
    receiver.clear()
    assert receiver.poll("q", 1) == []
    for n in range(3):
        broker.publish("", "q", OutgoingMessage(b"later", delay=1000.0))
        broker.publish("", "q", OutgoingMessage(b"expired", ttl=0.0))
        time.sleep(0.1)  # they have come, and the line is idle again
        broker.publish("", "q", OutgoingMessage(b"now"))
        assert select.select([receiver.fileno()], [], [], 10)[0], f"asleep, round {n}"
        receiver.clear()
        [delivery] = receiver.poll("q", 1)
        assert delivery.data == b"now"
        broker.ack([delivery])
        receiver.want("q", 1)
