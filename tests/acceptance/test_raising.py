"""Whatever a job raises or returns: its caller is told, its place is free, and the worker goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from celery import chord, group, states
from celery.exceptions import ChordError
from celery.result import AsyncResult

from gwi_celery import broker_for, store_for
from gwi_celery.errors import GwiError
from gwi_celery.stores.base import JobStatus
from tests.apps import imported
from tests.machine import PATIENCE
from tests.workers import Worker, drained, eventually, starting

pytestmark = pytest.mark.acceptance

APP = "tests.acceptance.raising"
POOLS = ["prefork", "threads", "solo", "gevent"]


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setenv("RAISING_FOLDER", str(tmp_path))
    with imported(APP) as module:
        yield module


@pytest.fixture
def start(tmp_path: Path, jobs: ModuleType) -> Iterator[Callable[..., Worker]]:
    yield from starting(Worker, APP, tmp_path)


def outcome(result: AsyncResult) -> BaseException:
    got = result.get(timeout=PATIENCE, propagate=False)
    assert result.state == states.FAILURE
    assert isinstance(got, BaseException)
    return got


def names(exc: BaseException, name: str) -> bool:
    """Whether it is of that class, or one of ours that names it."""
    return type(exc).__name__ == name or (isinstance(exc, GwiError) and name in str(exc))


@pytest.mark.parametrize("pool", POOLS)
def test_whatever_a_job_does_the_caller_is_told_and_the_next_job_runs(
    jobs: ModuleType, start: Callable[..., Worker], pool: str
) -> None:
    """One worker meets all of them."""
    running = start(pool=pool)
    _raised(jobs)
    _without_a_json_form(jobs)
    _bodies_that_can_not_be_sent(jobs)
    assert jobs.add.delay(1, 2).get(timeout=PATIENCE) == 3
    eventually(lambda: drained(broker_for(jobs.app)))
    assert running.process.poll() is None


def _raised(jobs: ModuleType) -> None:
    for kind, (_, name, text) in jobs.KINDS.items():
        plain = jobs.plain_raises.delay(kind)
        reliable = jobs.raises.delay(kind, tenant_id="acme", run_id=kind)
        for exc in (outcome(plain), outcome(reliable)):
            assert names(exc, name), (kind, exc)
            assert text in str(exc), kind
        [record] = store_for(jobs.app).list_jobs("acme", run_id=kind).jobs
        assert record.status is JobStatus.FAILED
    assert isinstance(outcome(jobs.bad_handler.delay()), ValueError)


def _without_a_json_form(jobs: ModuleType) -> None:
    for kind in jobs.RESULTS:
        outcome(jobs.plain_returns.delay(kind))
        reliable = outcome(jobs.returns.delay(kind, tenant_id="acme", run_id=f"returns {kind}"))
        assert "the result of returns has" in str(reliable)
    result = jobs.returns_result.delay(tenant_id="acme", run_id="r")
    assert result.get(timeout=PATIENCE) == [["another", None], None]


def _bodies_that_can_not_be_sent(jobs: ModuleType) -> None:
    """Of chords: their bodies fail, and nothing else does."""
    parts = [jobs.add.s(n, n) for n in range(3)]
    for body, text in (
        (jobs.takes_nothing.s(), "takes 0 positional arguments"),
        (jobs.reliable_total.s(), "tenant"),
    ):
        refused = chord(parts, body)()
        with pytest.raises(ChordError, match=text):
            refused.get(timeout=PATIENCE)
    inner = jobs.add.s(1, 2) | group(jobs.add.s(3), jobs.add.s(4))
    assert chord([inner, jobs.add.s(5, 6)], jobs.total.s())().get(timeout=PATIENCE) == 24
    assert chord(parts, jobs.reliable_total.s(tenant_id="acme"))().get(timeout=PATIENCE) == 6


@pytest.mark.parametrize("pool", POOLS)
def test_what_can_not_be_stored_is_redelivered_and_every_place_is_free_again(
    jobs: ModuleType, start: Callable[..., Worker], pool: str, tmp_path: Path
) -> None:
    """On a full disk: SQLite itself says so."""
    running = start(pool=pool, concurrency=2)
    size = 400_000
    done = [jobs.large.delay(size) for _ in range(3)]
    reliable = jobs.reliable_large.delay(size, tenant_id="acme", run_id="r")
    failed, retried = jobs.large_failure.delay(size), jobs.large_retry.delay(size)
    (tmp_path / "full").touch()
    (tmp_path / "go").touch()
    running.wait_for("is redelivered, as its outcome", count=2)
    assert not any(result.ready() for result in done)
    (tmp_path / "full").unlink()
    for result in (*done, reliable):
        assert len(result.get(timeout=PATIENCE)) == size
    assert isinstance(outcome(failed), ValueError)
    assert retried.get(timeout=PATIENCE) == "done"
    assert [jobs.add.delay(n, 1).get(timeout=PATIENCE) for n in range(4)] == [1, 2, 3, 4]
    eventually(lambda: drained(broker_for(jobs.app)))
    assert running.process.poll() is None
