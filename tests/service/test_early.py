"""Messages that are pushed before their time: what becomes of them, and of their requests."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from gwi_celery.brokers.base import Delivery, OutgoingMessage, QueueSpec
from gwi_celery.brokers.pubsub import deliveries, looks
from gwi_celery.brokers.pubsub.broker import PubSubBroker
from gwi_celery.brokers.pubsub.options import parse
from gwi_celery.service import early as module
from gwi_celery.service.admission import Admission
from gwi_celery.service.early import Early
from gwi_celery.service.execute import Executor
from gwi_celery.service.push import Pushed
from gwi_celery.testing.twin import Twin, start_twin
from gwi_celery.transport.settlement import Settlement
from tests.contract.brokers import wait_for

POSTPONED, HELD = Settlement.ACKED, None


@pytest.fixture(scope="module")
def twin() -> Iterator[Twin]:
    with start_twin(faults=0, early_expiry=0, settle=0, name_rest=0) as started:
        yield started


@pytest.fixture(autouse=True)
def _near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "_QUIET", 0.3)  # the twin is near


@pytest.fixture
def executor(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> Iterator[Executor]:
    monkeypatch.setattr(module, "_NEAR", 0.2)
    monkeypatch.setattr(deliveries, "_HOLD", 0.5)
    url = f"pubsub://{twin.endpoint}/p-{uuid4().hex[:20]}?emulator=strict&lease_seconds=10"
    broker = PubSubBroker(parse(url, {}))
    broker.declare_queue(QueueSpec("q"))
    executor = Executor.__new__(Executor)  # without a pool
    executor._broker = broker
    executor.size = 1
    yield executor
    broker.close()


def pushed(body: str, seconds: float, ttl: float = math.inf) -> Pushed:
    due = time.time() + seconds
    delivery = Delivery("q", "a", body, body.encode(), {"task": "t"}, 1, time.time(), 0, 10)
    return Pushed(delivery, due, due + ttl)


def test_one_request_is_held_and_all_others_are_postponed(executor: Executor, twin: Twin) -> None:
    """The one that is due last: it keeps the instance alive until the others were due."""

    async def instance() -> list[tuple[float, Any]]:
        early = Early(executor, Admission(executor, wait=0), "q")
        began = time.time()

        async def push(body: str, seconds: float) -> tuple[float, Any]:
            settled = await early.until_due(pushed(body, seconds), 60)
            return time.time() - began, settled

        first = asyncio.create_task(push("first", 4.0))
        await asyncio.sleep(1)  # its reader is there
        others = [asyncio.create_task(push(str(n), 1.0 + n / 10)) for n in range(3)]
        last = asyncio.create_task(push("last", 4.5))
        found = list(await asyncio.gather(first, *others, last))
        await early.stop()
        return found

    (first, *others, last) = asyncio.run(instance())
    assert first[1] is POSTPONED, "it was answered when a later one came"
    assert [settled for _, settled in others] == [POSTPONED] * 3
    assert last[1] is HELD
    assert last[0] >= 5.4
    receiver = executor.broker.receiver()
    receiver.subscribe("q")
    back = [wait_for(receiver) for _ in range(4)]
    assert sorted(delivery.data for delivery in back) == [b"0", b"1", b"2", b"first"]
    assert [delivery.attempts for delivery in back] == [0] * 4, "waiting is no attempt"
    assert all(delivery.attributes == {"task": "t"} for delivery in back)
    counts = twin.counts(executor.broker.topology.subscription("q.later"))
    assert (counts["waiting"], counts["leased"]) == (0, 0)


def test_what_an_instance_left_behind_is_moved_by_the_next_one(executor: Executor) -> None:
    async def leave() -> Pushed:
        early = Early(executor, Admission(executor, wait=0), "q")
        held = asyncio.create_task(early.until_due(pushed("held", 60), 60))
        await asyncio.sleep(1)
        moved = pushed("x", 1.5, ttl=30)
        assert await early.until_due(moved, 60) is POSTPONED
        held.cancel()
        await early.stop()
        return moved

    async def come() -> None:
        early = Early(executor, Admission(executor, wait=0), "q")
        early.start()
        await asyncio.to_thread(find)
        await early.stop()

    def find() -> None:
        receiver = executor.broker.receiver()
        receiver.subscribe("q")
        delivery = wait_for(receiver)
        assert delivery.data == b"x"
        assert delivery.attributes == {"task": "t"}
        assert delivery.expires == pytest.approx(moved.expires, abs=5)

    moved = asyncio.run(leave())
    asyncio.run(come())


def test_an_expiry_that_is_no_number_holds_up_no_other(executor: Executor) -> None:
    later = QueueSpec("q" + module.SUFFIX)
    executor.broker.declare_queue(later)
    for body, expires in ((b"1", "soon"), (b"2", "nan"), (b"3", f"{time.time() + 60}")):
        postponed = OutgoingMessage(body, {"task": "t", module._EXPIRES: expires})
        executor.broker.publish("", later.name, postponed)

    def find() -> set[bytes]:
        receiver = executor.broker.receiver()
        receiver.subscribe("q")
        return {wait_for(receiver).data for _ in range(3)}

    async def instance() -> set[bytes]:
        early = Early(executor, Admission(executor, wait=0), "q")
        early.start()
        found = await asyncio.to_thread(find)
        await early.stop()
        return found

    assert asyncio.run(instance()) == {b"1", b"2", b"3"}


@pytest.mark.parametrize("missing", ["pubsub.topics.create", "pubsub.subscriptions.consume"])
def test_where_nothing_can_be_postponed_each_request_is_held(
    executor: Executor, twin: Twin, caplog: pytest.LogCaptureFixture, missing: str
) -> None:
    """Nor where it could be, but not be read again."""
    twin.deny(missing)

    async def instance() -> list[Any]:
        early = Early(executor, Admission(executor, wait=0), "q")
        return list(
            await asyncio.gather(*(early.until_due(pushed("x", 1.6 + n / 5), 60) for n in range(3)))
        )

    try:
        assert asyncio.run(instance()) == [HELD] * 3
    finally:
        twin.allow(missing)
    assert "can't be put into 'q.later'" in caplog.text
    embedded = SimpleNamespace(broker=object(), size=1)
    assert (
        asyncio.run(
            Early(embedded, Admission(embedded, wait=0), "q").until_due(pushed("x", 0.4), 60)
        )
        is HELD
    )
