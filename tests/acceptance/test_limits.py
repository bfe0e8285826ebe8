"""kill -9 of a worker whose job holds a limit's only place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from gwi_celery import broker_for
from gwi_celery import jobs as operators
from gwi_celery.jobs import JobStatus
from gwi_celery.stores.base import JobRef
from tests.machine import PATIENCE
from tests.workers import Worker, drained, eventually, read_audit

pytestmark = pytest.mark.acceptance


def test_a_killed_workers_place_is_free_when_its_lease_ends(
    jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    killed = start(pool="solo")
    first = jobs.limited.delay(tenant_id="acme", run_id="hangs")
    eventually(lambda: read_audit(tmp_path), what="it has begun")
    start(pool="solo")
    second = jobs.limited.delay(tenant_id="acme", run_id="waits")

    def waits() -> bool:
        found = operators.get(JobRef("acme", "limited", "run:waits"), app=jobs.app)
        return found is not None and found.record.status is JobStatus.WAITING

    eventually(waits, what="the other one waits for the place")
    killed.kill()
    assert {first.get(timeout=PATIENCE), second.get(timeout=PATIENCE)} == {"hangs", "waits"}
    trail = [(e["event"], e["run"]) for e in read_audit(tmp_path)]
    assert trail[0] == ("limited", "hangs"), "the attempt that was killed"
    for begin, over in zip(trail[1::2], trail[2::2], strict=True):
        assert begin[0] == "limited", "one at a time"
        assert over == ("limited over", begin[1])
    for run, attempts in (("hangs", 2), ("waits", 1)):
        found = operators.get(JobRef("acme", "limited", f"run:{run}"), app=jobs.app)
        assert found is not None
        assert found.record.attempt == attempts
    eventually(lambda: drained(broker_for(jobs.app)), what="no message is left")
