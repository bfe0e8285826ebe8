"""What is sent in the background arrives, however its process ends, and acks wait for nothing else."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gwi_celery import publish_batch
from gwi_celery.brokers.base import Delivery, OutgoingMessage
from gwi_celery.brokers.pubsub.broker import PubSubBroker
from gwi_celery.errors import BrokerError
from tests import zygote
from tests.machine import PATIENCE
from tests.pubsub.conftest import settled
from tests.pubsub.jobs import trail
from tests.workers import Worker, eventually

pytestmark = pytest.mark.emulator


def test_unconfirmed_messages_of_children_that_are_replaced_arrive(
    jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each child publishes once, in its last moment."""
    monkeypatch.setenv("PUBSUB_TASKS_PER_CHILD", "1")
    monkeypatch.setenv("PUBSUB_CONFIRMS", "0")
    start(concurrency=2)
    for n in range(10):
        jobs.relay.delay(n)
    eventually(lambda: len(set(trail(tmp_path, "marks"))) == 10)


_CONSUME = """
import multiprocessing, sys
from tests.pubsub.jobs import app

def consume():
    # Not closed, and not collected before the end.
    global connection, queue
    connection = app.connection()
    queue = connection.SimpleQueue(sys.argv[1])
    for _ in range(5):
        queue.get(timeout=120).ack()

if __name__ == "__main__":
    how = sys.argv[1]
    if how == "script":
        consume()
    else:
        child = multiprocessing.get_context(how).Process(target=consume)
        child.start()
        child.join()
        assert child.exitcode == 0
"""


def test_acks_of_a_process_that_closes_nothing_arrive(
    jobs: ModuleType, connect: Callable[..., PubSubBroker], tmp_path: Path
) -> None:
    (tmp_path / "consume.py").write_text(_CONSUME)
    ways = ("script", "fork", "spawn")
    for how in ways:
        with jobs.app.connection() as connection, connection.SimpleQueue(how) as queue:
            for n in range(5):
                queue.put(n)
        done = zygote.run_module("consume", how, folder=tmp_path)
        assert done.returncode == 0, done.stdout
    time.sleep(11)  # longer than a lease
    assert {how: connect().looks.in_turn(how, 10) for how in ways} == {how: [] for how in ways}


def test_acks_do_not_wait_for_other_work(connect: Callable[..., PubSubBroker]) -> None:
    broker = connect()
    broker.publish("", "q", OutgoingMessage(b"a"))
    [delivery] = broker.looks.in_turn("q", 1)
    counted: Counter[str] = Counter()
    broker.client.on_call = lambda name: counted.update([name])
    release = threading.Event()
    try:
        for _ in range(4):  # queues that are restored, say
            broker._jobs.run(lambda: release.wait(PATIENCE))
        broker.ack([delivery])
        assert broker._acks.flush(PATIENCE)
        assert counted["Acknowledge"]
        assert not release.is_set()
    finally:
        release.set()
    assert broker.flush(PATIENCE)


def _held(broker: PubSubBroker, count: int) -> list[Delivery]:
    """Deliveries with ack ids as long as Google's."""
    path = "projects/p/subscriptions/gwi-q"
    made = [
        Delivery("q", f"{path} {n:0220d}", str(n), b"", {}, 1, 0.0, 0, 60.0) for n in range(count)
    ]
    for delivery in made:
        broker.deliveries.leases[delivery.ack_id] = time.monotonic() + 60
    return made


def test_many_leases_are_extended_by_requests_that_are_not_too_large(
    connect: Callable[..., PubSubBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = connect()
    requests: list[Any] = []
    monkeypatch.setattr(broker.client, "call", lambda rpc, request, path: requests.append(request))
    held = _held(broker, 3000)
    assert broker.extend(held, 60) == []
    assert sum(len(request.ack_ids) for request in requests) == 3000
    assert max(request.ByteSize() for request in requests) < 512 * 1024
    assert len(requests) <= 4
    requests.clear()
    answered: Future[None] = Future()
    answered.set_result(None)

    def begin(rpc: str, request: Any, path: str, *, wait: bool) -> Future[None]:
        requests.append(request)
        return answered

    monkeypatch.setattr(broker.client, "begin", begin)
    broker.ack(held)
    assert broker.flush(PATIENCE)
    assert sum(len(request.ack_ids) for request in requests) == 3000
    assert max(request.ByteSize() for request in requests) < 512 * 1024


def test_a_lost_lease_among_many_is_found_by_a_few_calls(
    connect: Callable[..., PubSubBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exactly-once subscription refuses the request, whichever of its ids is lost."""
    broker = connect()
    held = _held(broker, 3000)
    lost = {held[n].ack_id.split()[1] for n in (7, 1500)}
    calls = 0

    def call(rpc: str, request: Any, path: str) -> None:
        nonlocal calls
        calls += 1
        if lost & set(request.ack_ids):
            raise BrokerError("PERMANENT_FAILURE_INVALID_ACK_ID")

    monkeypatch.setattr(broker.client, "call", call)
    assert {d.ack_id.split()[1] for d in broker.extend(held, 60)} == lost
    assert calls < 60


def test_a_call_after_the_batch_that_it_inherited_is_published_by_itself(
    jobs: ModuleType, connect: Callable[..., PubSubBroker]
) -> None:
    async def run() -> list[str]:
        over = asyncio.Event()

        async def later() -> str:
            inside = jobs.mark.delay("inside").id
            await over.wait()
            return f"{inside} {jobs.mark.delay('after').id}"

        with publish_batch() as batch:
            task = asyncio.create_task(later())
            thread = asyncio.create_task(asyncio.to_thread(lambda: jobs.mark.delay("thread").id))
            first = jobs.mark.delay("first").id
            await thread
        assert batch.published == 3
        over.set()
        return [first, await thread, *(await task).split()]

    ids = asyncio.run(run())
    settled()
    found = connect().looks.in_turn("celery", 10)
    assert sorted(d.attributes["task_id"] for d in found) == sorted(ids)
