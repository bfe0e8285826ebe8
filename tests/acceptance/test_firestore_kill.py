"""kill -9 of real workers whose store is Firestore: nothing lost, no finished step twice."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import pytest

from gwi_celery import store_for
from gwi_celery.app import settings_for
from gwi_celery.stores.base import JobStatus
from tests.acceptance.conftest import APP
from tests.acceptance.jobs import read_audit
from tests.workers import Worker

pytestmark = [pytest.mark.acceptance, pytest.mark.emulator]


@pytest.fixture
def jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, firestore_emulator: Any
) -> Iterator[ModuleType]:
    """As the folder's own, but with its store in a project that is new."""
    monkeypatch.setenv("JOBS_FOLDER", str(tmp_path))
    monkeypatch.setenv("JOBS_STORE_URL", f"firestore://kill-{uuid4().hex[:20]}")
    sys.modules.pop(APP, None)
    module = importlib.import_module(APP)
    yield module
    store_for(module.app).close()
    module.app.close()
    sys.modules.pop(APP, None)


@pytest.mark.parametrize("point", ["after-claim", "inside-step", "after-save", "after-finish"])
def test_a_killed_worker_loses_nothing_and_repeats_no_finished_step(
    point: str, jobs: ModuleType, start: Any, tmp_path: Path
) -> None:
    (tmp_path / "crash-at").write_text(point)
    worker: Worker = start(pool="prefork")
    result = jobs.three_steps.delay(tenant_id="acme", run_id="r1")
    worker.wait_killed()
    start(pool="prefork")
    assert result.get(timeout=60) == {"total": 6, "run": "r1"}

    trail = read_audit(tmp_path)
    assert [e["point"] for e in trail if e["event"] == "crash"] == [point]
    expected = {"s1": 1, "s2": 2 if point == "inside-step" else 1, "s3": 1}
    assert Counter(e["name"] for e in trail if e["event"] == "step") == expected
    fences = [e["fence"] for e in trail if e["event"] == "attempt"]
    assert fences == sorted(set(fences)), "fencing tokens grow strictly"
    assert settings_for(jobs.app).effective_store_url.startswith("firestore://kill-")
    store = store_for(jobs.app)
    (record,) = store.list_jobs("acme").jobs
    assert record.status is JobStatus.SUCCEEDED
    assert store.list_locks("acme") == []
    again = jobs.three_steps.delay(tenant_id="acme", run_id="r1")
    assert again.get(timeout=30) == {"total": 6, "run": "r1"}
    assert Counter(e["name"] for e in read_audit(tmp_path) if e["event"] == "step") == expected
