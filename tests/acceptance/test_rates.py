"""Rates that a Redis server of our own counts, also while it is killed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery

from benchmarks.servers import redis_server
from gwi_celery import Limit, Reliable, ReliableTask, jobs, limits, setup, store_for
from gwi_celery.cli.checkup import checkup
from gwi_celery.integration import integration
from gwi_celery.jobs import JobStatus
from gwi_celery.rates import RedisRates, logger
from gwi_celery.stores.base import Limited
from gwi_celery.stores.limits import LimitRef, Rate
from tests.cli.conftest import Gwi
from tests.machine import PATIENCE
from tests.threadworker import worker_in_thread
from tests.workers import eventually


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    with redis_server(tmp_path) as url:
        yield url


def a_rate(name: str, amount: int, seconds: float) -> LimitRef:
    return LimitRef(name, {}, rate=Rate(amount, seconds))


def stop(url: str) -> None:
    from redis import Redis

    with Redis.from_url(url) as client:
        client.shutdown(nosave=True)


def test_a_rate_is_exact_and_says_when_there_is_more(redis: str) -> None:
    one, other = (RedisRates(redis, let_pass=False) for _ in range(2))
    rate = a_rate("openai", 5, 2.0)
    assert [each([rate]) for each in (one, other, one, other, one)] == [None] * 5
    answer = other([rate])
    assert isinstance(answer, Limited)
    assert answer.held == 5
    assert 0 < answer.retry_after <= 2
    time.sleep(answer.retry_after + 0.05)
    assert one([rate]) is None


def test_how_much_is_used_is_listed(redis: str) -> None:
    app, name = (
        Celery(f"unit-{uuid4().hex}", set_as_current=False),
        f"embedded://:memory:/{uuid4().hex}",
    )
    setup(app, broker_url=name, store_url=name, limits_url=redis)
    gwi_ = Gwi(app)

    @app.task(
        base=ReliableTask,
        name="ask",
        shared=False,
        reliable=Reliable(limits=[Limit("openai", rate="5/m"), Limit("{tenant_id}", rate="9/h")]),
    )
    def ask(*, tenant_id: str) -> None: ...

    def held() -> list[int | None]:
        return [row["held"] for row in gwi_.json("limits", "list")]

    rates = integration(app).rates
    assert rates is not None
    assert sorted(held(), key=str) == [0, None], "Redis doesn't tell which tenants there are"
    for _ in range(3):
        assert rates([a_rate("openai", 5, 60.0)]) is None
    limits.set("{tenant_id}", rate="2/h", of={"tenant_id": "acme"}, app=app)
    assert rates([LimitRef("{tenant_id}", {"tenant_id": "acme"}, rate=Rate(2, 3600.0))]) is None
    shown = {(row["limit"], row["filled"]): row["held"] for row in gwi_.json("limits", "list")}
    assert shown == {
        ("openai", ""): 3,
        ("{tenant_id}", ""): None,
        ("{tenant_id}", "tenant_id=acme"): 1,
    }
    stop(redis)
    assert set(held()) == {None}


def test_of_two_rates_none_is_counted_if_one_is_used_up(redis: str) -> None:
    rates = RedisRates(redis, let_pass=False)
    narrow, wide = a_rate("narrow", 1, 60), a_rate("wide", 2, 60)
    assert rates([narrow]) is None
    for _ in range(3):
        assert isinstance(rates([wide, narrow]), Limited)
    assert rates([wide]) is None
    assert rates([wide]) is None
    assert isinstance(rates([wide]), Limited)


def test_a_job_waits_for_it_as_for_any_limit(redis: str) -> None:
    app, began = work(redis, "wait", "2/2s")
    with worker_in_thread(app, pool="threads", concurrency=4):
        results = [call(app, f"r{n}") for n in range(4)]
        assert sorted(r.get(timeout=PATIENCE) for r in results) == ["r0", "r1", "r2", "r3"]
        assert began[2] - began[0] >= 1.9
        for result in results:
            found = jobs.get(result, app=app)
            assert found is not None
            assert found.record.attempt == 1
        assert store_for(app).list_places() == [], "the store counts nothing"
        limits.set("openai", rate="1/s", app=app)
        call(app, "r5").get(timeout=PATIENCE)
        late = call(app, "r6")
        eventually(lambda: status(app, late) is JobStatus.WAITING, what="the new rate is in force")
        assert jobs.explain(late, app=app).startswith("waits for a place of limit openai, 1/s are")


@pytest.mark.parametrize("unavailable", ["wait", "pass"])
def test_while_redis_is_killed_jobs_wait_or_pass(
    redis: str, unavailable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(logger, "warning", lambda text, *facts: said.append(text % facts))
    app, _ = work(redis, unavailable, "100/s")
    with worker_in_thread(app, pool="threads", concurrency=2):
        call(app, "before").get(timeout=PATIENCE)
        stop(redis)
        during = call(app, "during")
        if unavailable == "pass":
            assert during.get(timeout=PATIENCE) == "during"
        else:
            eventually(lambda: status(app, during) is JobStatus.WAITING, what="it waits")
            told = jobs.explain(during, app=app)
            assert "limit openai, Redis, which counts it, is unavailable" in told
        [found] = [finding for finding in checkup(app) if finding.what == "limits"]
        assert not found.holds
        how = "jobs wait" if unavailable == "wait" else "jobs begin uncounted"
        assert any(f"is unavailable (ConnectionError): {how}" in line for line in said)
        # An idle worker sees at its next message that it is to stop.
        call(app, "last", countdown=0.3)


def test_it_is_counted_again_once_redis_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = a_rate("openai", 2, 60)
    with redis_server(tmp_path) as url:
        rates = RedisRates(url, let_pass=True)
        assert rates([rate]) is None
        with monkeypatch.context() as patched:
            patched.setattr(
                rates, "_limiter", RedisRates("redis://127.0.0.1:1", let_pass=True)._limiter
            )
            assert [rates([rate]) for _ in range(5)] == [None] * 5, "they pass uncounted"
            assert not rates.reachable()
        rates._alone_until = 0.0
        assert rates.reachable()
        assert rates([rate]) is None
        assert isinstance(rates([rate]), Limited)


def work(redis: str, unavailable: str, rate: str) -> tuple[Celery, list[float]]:
    app = Celery(f"unit-{uuid4().hex}", set_as_current=False)
    name = f"embedded://:memory:/{uuid4().hex}"
    setup(
        app,
        broker_url=name,
        store_url=name,
        limits_url=redis,
        limits_unavailable=unavailable,
        contention_delay=0.05,
        max_contention_delay=0.2,
    )
    began: list[float] = []

    @app.task(
        shared=False,
        base=ReliableTask,
        name="ask",
        reliable=Reliable(limits=[Limit("openai", rate=rate)]),
    )
    def ask(*, tenant_id: str, run_id: str) -> str:
        began.append(time.monotonic())
        return run_id

    return app, began


def call(app: Celery, run: str, **options: Any) -> Any:
    return app.tasks["ask"].apply_async(kwargs={"tenant_id": "acme", "run_id": run}, **options)


def status(app: Celery, result: Any) -> JobStatus | None:
    found = jobs.get(result, app=app)
    return None if found is None else found.record.status
