"""A periodic job with a fixed run id runs each time that it is due: by a real ``celery beat``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from gwi_celery import store_for
from gwi_celery.stores.base import JobStatus
from tests.workers import Worker, eventually, read_audit

pytestmark = pytest.mark.acceptance


class Beat(Worker):
    def command(self, pool: str, concurrency: int) -> list[str]:
        return ["beat", "--loglevel", "INFO", "--schedule", "beat-schedule"]


def test_a_periodic_job_runs_every_time(
    jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    start(pool="threads", concurrency=2)
    beat = Beat(jobs.__name__, tmp_path, env={"JOBS_FOLDER": str(tmp_path), "JOBS_BEAT": "1"})
    try:
        eventually(lambda: len(read_audit(tmp_path)) >= 4)
    finally:
        beat.close()
    dues = [event["due"] for event in read_audit(tmp_path)]
    assert len(set(dues)) == len(dues) >= 4
    done = store_for(jobs.app).list_jobs("acme", run_id="nightly", status=JobStatus.SUCCEEDED).jobs
    assert {f"due:{due} run:nightly" for due in dues[:3]} <= {record.job.key for record in done}
