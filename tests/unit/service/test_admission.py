"""Who gets a place to run a pushed message, who waits for one, and who is refused."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future

import pytest

from gwi_celery.brokers.base import Delivery
from gwi_celery.service.admission import MAX_WAITING, Admission, Refused
from gwi_celery.transport.settlement import Settlement

DELIVERY = Delivery("q", "a", "m", b'{"id": "1", "type": "t"}', {}, 1, 0.0, 0, 0.0)


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
    by = time.monotonic() + answer_in
    return asyncio.ensure_future(admission.run(DELIVERY, hand_back_at=by, answer_by=by))


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
