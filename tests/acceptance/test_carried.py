"""In real workers: custom calls, threads of a job, and headers as monitoring libraries make them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from gwi_celery import store_for
from gwi_celery.stores.base import JobRef
from tests.machine import PATIENCE
from tests.workers import Worker, read_audit

pytestmark = pytest.mark.acceptance


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_custom_call_and_threads_are_parts_of_the_attempt(
    pool: str, jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    start(pool=pool, concurrency=2)
    headers = {"headers": {"trace": "1"}}
    for _ in range(2):
        result = jobs.parallel.apply_async(
            kwargs={"tenant_id": "acme"}, idempotency_key="k", headers=headers
        )
        assert result.get(timeout=PATIENCE) == {
            "made": [0, 1, 2, 3],
            "trace": "1",
            "stranger": "OutsideAttempt",
        }
    trail = read_audit(tmp_path)
    assert [e["event"] for e in trail].count("around") == 2, "a retry was; a duplicate is answered"
    assert sorted(e["n"] for e in trail if e["event"] == "part") == [0, 1, 2, 3]
    record = store_for(jobs.app).get_job(JobRef("acme", "parallel", "key:k"))
    assert record is not None
    assert (record.generation, record.attempt) == (1, 2)
