"""Workers that come and go on the strict twin: nothing is lost, and nothing waits for a lease."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import turnover
from gwi_celery.testing.twin import start_twin


@pytest.mark.acceptance
@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{}, {"task_acks_late": True, "worker_prefetch_multiplier": 1}]
)
def test_workers_that_start_and_stop_make_no_message_wait_for_a_lease(
    settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10,000 messages, three workers at a time, one of them replaced every few seconds."""
    for name in ("BENCH_BROKER", "BENCH_MARK", "BENCH_CONF"):
        monkeypatch.setenv(name, "")  # and as it was at the end
    with start_twin(faults=0, early_expiry=0) as twin:
        for name in twin.environ:
            monkeypatch.setenv(name, "")
        found = turnover.run(twin, tmp_path, messages=10_000, settings=settings)
    assert found.ended >= 3  # Celery's prefork pool may take 30 s to stop
    assert found.late == 0, found
    assert found.twice <= found.ended, found
