"""Celery's result API in real workers whose results, and whose jobs, are in Firestore."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import pytest
from celery import chain, chord, group, states
from celery.exceptions import ChordError, TimeoutError
from celery.result import GroupResult

from gwi_celery import store_for
from gwi_celery.backends.firestore import FirestoreBackend
from gwi_celery.stores.base import JobStatus
from tests.acceptance.conftest import APP
from tests.apps import imported
from tests.machine import PATIENCE
from tests.workers import Worker, eventually, read_audit

pytestmark = [pytest.mark.acceptance, pytest.mark.emulator]


@pytest.fixture
def jobs(
    tmp_path: Path, jobs_broker: str, monkeypatch: pytest.MonkeyPatch, firestore_emulator: Any
) -> Iterator[ModuleType]:
    """As the folder's own, but with store and results in a project that is new."""
    url = f"firestore://results-{uuid4().hex[:20]}"
    monkeypatch.setenv("JOBS_FOLDER", str(tmp_path))
    monkeypatch.setenv("JOBS_STORE_URL", url)
    monkeypatch.setenv("JOBS_RESULT_URL", url)
    with imported(APP) as module:
        assert isinstance(module.app.backend, FirestoreBackend)
        yield module
        module.app.backend.close()


def reliable(jobs: ModuleType, n: int) -> Any:
    return jobs.add.s(n, 1, tenant_id="acme", run_id=f"p{n}")


@pytest.mark.brokers("embedded", "pubsub")
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_canvas(pool: str, jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path) -> None:
    start(pool=pool, concurrency=4)
    add, total = jobs.plain_add, jobs.plain_sum
    assert group(add.s(n, n) for n in range(20))().get(timeout=PATIENCE) == [
        2 * n for n in range(20)
    ]
    # a chord of 100, plain and reliable parts mixed
    parts = [reliable(jobs, n) if n % 2 else add.s(n, 1) for n in range(100)]
    assert chord(parts, total.s())().get(timeout=PATIENCE) == sum(range(100)) + 100
    # a chain of chords
    chords = chain(
        group(add.s(1, 1), add.s(2, 2)) | total.s(),
        group(add.s(10), add.s(20)) | total.s(),
        group(add.s(1), add.s(2), add.s(3)) | total.s(),
    )
    assert chords().get(timeout=PATIENCE) == 3 * 42 + 6
    # groups in groups
    rows = [group([add.s(n, m) for m in range(3)]) | total.s() for n in range(3)]
    nested = group(rows) | total.s()
    assert nested().get(timeout=PATIENCE) == 18
    deep = chord([group(add.s(1, 1), add.s(2, 2)), group(add.s(3, 3))], jobs.record.s())
    assert sorted(deep().get(timeout=PATIENCE)) == [
        2,
        4,
        6,
    ]  # Celery makes it one, in an order of its own
    # what fails
    failed = jobs.plain_fail.delay()
    assert isinstance(failed.get(timeout=PATIENCE, propagate=False), RuntimeError)
    assert 'raise RuntimeError("plain failure")' in failed.traceback
    body = chord([add.s(1, 1), jobs.plain_fail.s()], total.s())()
    with pytest.raises(ChordError, match="plain failure"):
        body.get(timeout=PATIENCE, follow_parents=False)
    broken = jobs.fails.delay(tenant_id="acme", run_id="broken")
    with pytest.raises(RuntimeError, match="broken on purpose"):
        broken.get(timeout=PATIENCE)
    assert "in fails" in broken.traceback
    # children, by link and by chain
    linked = jobs.add.apply_async((2, 3), {"tenant_id": "acme", "run_id": "l"}, link=add.s(5))
    assert linked.get(timeout=PATIENCE) == 5
    (child,) = linked.children
    assert child.get(timeout=PATIENCE) == 10
    last = chain(jobs.add.s(1, 1, tenant_id="acme", run_id="c"), add.s(3))()
    assert last.get(timeout=PATIENCE) == 5
    assert [c.id for c in last.parent.children] == [last.id]
    # a timeout, what is large, what is forgotten, what has expired
    with pytest.raises(TimeoutError):
        jobs.plain_add.apply_async((1, 1), countdown=120).get(timeout=0.5)
    large = jobs.large.delay(3_000_000)
    assert len(large.get(timeout=PATIENCE)) == 3_000_000
    large.forget()
    assert large.state == states.PENDING
    backend = jobs.app.backend
    backend.expire(backend.get_key_for_task(failed.id), 0.2)
    eventually(lambda: jobs.app.AsyncResult(failed.id).state == states.PENDING)
    # a group, saved and restored
    saved = group(add.s(n, n) for n in range(3))()
    saved.save()
    restored = GroupResult.restore(saved.id, app=jobs.app)
    assert restored.get(timeout=PATIENCE) == [0, 2, 4]


@pytest.mark.brokers("embedded")
@pytest.mark.parametrize("point", ["after-finish", "after-part", "after-body"])
def test_a_chord_survives_kills_and_counts_each_part_once(
    point: str, jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    """Each kill has a part's message delivered again, after it was finished, counted, or sent for."""
    (tmp_path / "crash-at").write_text(point)
    worker = start(pool="prefork")
    body = chord([reliable(jobs, n) for n in range(4)], jobs.plain_sum.s())()
    worker.wait_killed()
    start(pool="prefork")
    assert body.get(timeout=PATIENCE) == 10
    trail = read_audit(tmp_path)
    assert [e["point"] for e in trail if e["event"] == "crash"] == [point]
    # At least once: killed between sending and its mark, the body is sent again.
    sums = [e["numbers"] for e in trail if e["event"] == "plain_sum"]
    expected = [[1, 2, 3, 4]]
    if point == "after-body":
        eventually(lambda: len(_sums(tmp_path)) == 2)
        expected *= 2
        sums = _sums(tmp_path)
    assert sums == expected
    done = store_for(jobs.app).list_jobs("acme", status=JobStatus.SUCCEEDED).jobs
    assert len(done) == 4
    assert all(record.result_of is not None for record in done)


def _sums(folder: Path) -> list[Any]:
    return [e["numbers"] for e in read_audit(folder) if e["event"] == "plain_sum"]


@pytest.mark.slow
@pytest.mark.brokers("embedded", "pubsub")
def test_children_that_are_replaced_write_their_results(
    jobs_broker: str, jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    """200 replaced children, each of which answers, and is counted once.

    40 of a parent that has gRPC calls of its own in flight at each fork: there one takes 0.2 s.
    """
    half = 100 if jobs_broker == "embedded" else 20
    start(pool="prefork", concurrency=4, args=("--max-tasks-per-child=1",))
    parts = [reliable(jobs, n) if n % 2 else jobs.plain_add.s(n, 1) for n in range(half)]
    body = chord(parts, jobs.plain_sum.s())()
    others = group(jobs.plain_add.s(n, n) for n in range(half))()
    assert body.get(timeout=PATIENCE) == sum(range(half)) + half
    assert others.get(timeout=PATIENCE) == [2 * n for n in range(half)]
    ran = Counter(e["pid"] for e in read_audit(tmp_path) if e["event"] == "plain_add")
    assert len(ran) == half + half // 2
    assert set(ran.values()) == {1}
