"""What a push request carries, and who gets a place to run it."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwi_celery.brokers.base import Delivery
from gwi_celery.config import SETTINGS
from gwi_celery.service.admission import MAX_WAITING, Admission, Refused
from gwi_celery.service.limits import SMALL, Body, Budget
from gwi_celery.service.push import NotAMessage, Pushed, parse
from gwi_celery.transport.settlement import Settlement

JOB = b'{"id": "1", "type": "t"}'


def wrapped(job: bytes = JOB, /, **changes: Any) -> bytes:
    message = {"data": base64.b64encode(job).decode(), "attributes": {"gwi-redrive": "x"}}
    envelope = {"message": {**message, **changes}, "subscription": "projects/p/subscriptions/s"}
    return json.dumps({**envelope, "deliveryAttempt": 3}).encode()


def read(body: bytes, **headers: str) -> Pushed:
    named = {k.replace("_", "-"): v for k, v in headers.items()}
    return parse(body, named, queue="q", max_depth=20, max_decoded=1_000_000)


# --- reading --------------------------------------------------------------------------------------


def test_a_wrapped_message_is_a_delivery() -> None:
    pushed = read(wrapped(messageId="42", publishTime="2026-11-24T12:00:00.5Z"))
    delivery = pushed.delivery
    assert (delivery.data, delivery.message_id, delivery.deliveries) == (JOB, "42", 3)
    assert delivery.attributes == {"gwi-redrive": "x"}
    assert delivery.published_at == 1795521600.5
    assert delivery.queue == "q"
    assert (pushed.not_before, pushed.expires) == (0.0, math.inf)
    assert read(wrapped(message_id="43")).delivery.message_id == "43", "as the emulator has it too"


def test_an_unwrapped_message_is_one_as_well() -> None:
    headers = {
        "x_goog_pubsub_message_id": "42",
        "x_goog_pubsub_publish_time": "2026-11-24T12:00:00Z",
        "gwi_redrive": "x",
        "user_agent": "test",
    }
    delivery = read(JOB, **headers).delivery
    assert (delivery.data, delivery.message_id, delivery.deliveries) == (JOB, "42", 1)
    assert delivery.attributes == {"gwi-redrive": "x"}
    assert read(JOB).delivery.data == JOB, "without metadata too"
    assert read(b"anything at all").delivery.data == b"anything at all"


def test_a_plain_job_with_a_field_called_message_is_not_an_envelope() -> None:
    body = b'{"id": "1", "type": "t", "message": {"data": "eA=="}}'
    assert read(body).delivery.data == body


def test_the_transports_own_attributes_are_taken_for_what_they_are() -> None:
    attributes = {
        "gwi-not-before": "2000000000.5",
        "gwi-expires": "2000000060",
        "priority": "7",
        "routing_key": "q",
        "task": "t",
    }
    pushed = read(wrapped(attributes=attributes))
    assert (pushed.not_before, pushed.expires) == (2000000000.5, 2000000060.0)
    assert pushed.delivery.priority == 7
    assert pushed.delivery.attributes == {"task": "t"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (wrapped(data="%%%"), "its data is not base64"),
        (wrapped(data=[1]), "its data is not base64"),
        (wrapped(attributes=[1]), "its attributes are not texts"),
        (wrapped(attributes={"a": None}), "its attributes are not texts"),
        (b"[" * 30 + b"]" * 30, "deeper than 20"),
        (wrapped(b'{"a":' * 30 + b"1" + b"}" * 30), "deeper than 20"),
    ],
)
def test_what_can_not_be_one_is_kept_as_it_came(body: bytes, reason: str) -> None:
    with pytest.raises(NotAMessage, match=reason) as caught:
        read(body)
    assert caught.value.delivery.data


@given(
    st.dictionaries(
        st.sampled_from(["message", "subscription", "deliveryAttempt", "type"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["data", "attributes", "messageId", "publishTime"]), inner
                )
            ),
            max_leaves=6,
        ),
    )
)
def test_any_json_is_a_delivery_or_not_a_message(envelope: Any) -> None:
    try:
        delivery = read(json.dumps(envelope).encode()).delivery
    except NotAMessage as exc:
        delivery = exc.delivery
    assert delivery.queue == "q"
    assert delivery.deliveries >= 1


# --- places ---------------------------------------------------------------------------------------


class Pool:
    """An executor whose jobs end when the test says so."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.running: list[Future[Settlement]] = []
        self.started = 0

    def submit(self, delivery: Delivery, *, hand_back_at: float) -> Future[Settlement]:
        self.started += 1
        future: Future[Settlement] = Future()
        self.running.append(future)
        return future

    def end(self) -> None:
        self.running.pop(0).set_result(Settlement.ACKED)


def run(admission: Admission, answer_in: float = 60.0) -> asyncio.Task[Settlement]:
    delivery = read(JOB).delivery
    by = time.monotonic() + answer_in
    return asyncio.ensure_future(admission.run(delivery, hand_back_at=by, answer_by=by))


async def soon() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def refused(task: asyncio.Task[Settlement]) -> Refused:
    with pytest.raises(Refused) as caught:
        await asyncio.wait_for(task, 10)
    return caught.value


def test_who_waits_gets_the_place_in_turn() -> None:
    async def story() -> None:
        pool = Pool(1)
        admission = Admission(pool, wait=60)  # type: ignore[arg-type]
        tasks = [run(admission) for _ in range(3)]
        await soon()
        assert (pool.started, admission.waiting, admission.in_flight) == (1, 2, 1)
        for n in (2, 3):
            pool.end()
            await asyncio.wait_for(tasks[n - 2], 10)
            await soon()
            assert pool.started == n
        pool.end()
        assert await asyncio.wait_for(tasks[2], 10) is Settlement.ACKED
        await soon()
        assert admission.in_flight == 0

    asyncio.run(story())


def test_who_may_not_wait_or_waited_long_enough_is_refused() -> None:
    async def story() -> None:
        for wait in (0.0, 0.05):
            pool = Pool(1)
            admission = Admission(pool, wait=wait)  # type: ignore[arg-type]
            first = run(admission)
            await soon()
            busy = await refused(run(admission))
            assert (busy.status, busy.retry_after) == (429, 1)
            assert admission.waiting == 0
            pool.end()
            await first
        pool = Pool(1)
        admission = Admission(pool, wait=60)  # type: ignore[arg-type]
        tasks = [run(admission) for _ in range(MAX_WAITING + 1)]
        await soon()
        assert (await refused(run(admission))).status == 429, "too many wait already"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(story())


def test_a_caller_that_goes_away_leaves_its_place_to_the_next() -> None:
    async def story() -> None:
        pool = Pool(1)
        admission = Admission(pool, wait=60)  # type: ignore[arg-type]
        first, gone, last = run(admission), run(admission), run(admission)
        await soon()
        gone.cancel()
        await soon()
        pool.end()
        await first
        await soon()
        assert pool.started == 2
        pool.end()
        assert await asyncio.wait_for(last, 10) is Settlement.ACKED

    asyncio.run(story())


def test_a_job_that_outlives_its_request_keeps_its_place() -> None:
    async def story() -> None:
        pool = Pool(1)
        admission = Admission(pool, wait=0)  # type: ignore[arg-type]
        assert (await refused(run(admission, answer_in=0.02))).status == 503
        assert admission.in_flight == 1
        assert (await refused(run(admission))).status == 429
        pool.end()
        await soon()
        await asyncio.sleep(0.05)
        assert admission.in_flight == 0

    asyncio.run(story())


def test_at_the_end_who_waits_and_who_runs_too_long_are_refused() -> None:
    async def story() -> None:
        pool = Pool(1)
        admission = Admission(pool, wait=60)  # type: ignore[arg-type]
        running, waiting = run(admission), run(admission)
        held = asyncio.ensure_future(admission.hold(60))
        await soon()
        admission.drain()
        assert (await refused(waiting)).status == 503
        assert (await refused(run(admission))).status == 503
        assert await asyncio.wait_for(held, 10) is False
        assert await admission.drained(0.02) is False
        assert (await refused(running)).status == 503
        pool.end()

    asyncio.run(story())


def test_what_is_due_soon_is_held_until_then() -> None:
    async def story() -> None:
        assert await Admission(Pool(1), wait=0).hold(0.01) is True  # type: ignore[arg-type]

    asyncio.run(story())


# --- documents ------------------------------------------------------------------------------------


def test_every_setting_is_documented() -> None:
    docs = Path(__file__).parents[3] / "docs"
    text = "".join((docs / name).read_text() for name in ("operating.md", "service.md"))
    assert [name for name in SETTINGS if f"`{name}`" not in text] == []


@pytest.mark.parametrize("way", ["unwrapped", "wrapped", "the envelope itself"])
def test_what_is_too_large_once_parsed_is_kept_without_being_parsed(way: str) -> None:
    bomb = b'{"id": "1", "type": "t", "payload": {"a": [' + b"{}," * 10_000 + b"{}]}}"
    body = {"unwrapped": bomb, "wrapped": wrapped(bomb)}.get(way)
    if body is None:
        body = wrapped()[:-1] + b', "more": [' + b"{}," * 10_000 + b"{}]}"
    with pytest.raises(NotAMessage, match="too large for this worker") as refused:
        read(body)
    assert refused.value.delivery.data == (body if way == "the envelope itself" else bomb)


def test_utf_16_is_no_json() -> None:
    """In it depth and size could not be told."""
    body = '{"message": {"data": "eA=="}}'.encode("utf-16-le")
    assert read(body).delivery.data == body


# --- budgets --------------------------------------------------------------------------------------


def test_small_bodies_find_room_beside_large_ones_and_what_is_let_go_is_free() -> None:
    budget = Budget(8_000_000)
    large, small = Body(budget), Body(budget)
    for _ in range(6):
        large.count(1_000_000)
    assert budget.left_for_large == 0
    small.count(SMALL)
    assert budget.left_for_large == 0
    assert budget.left == 2_000_000 - SMALL
    large.release(but=SMALL)
    assert budget.left_for_large == 6_000_000
    assert budget.left == 8_000_000 - 2 * SMALL
    for body in (large, small, large):
        body.release()
    assert (budget.left, budget.left_for_large) == (8_000_000, 6_000_000)
