"""What can't get better ends a worker at its start, and a call, at once, with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from celery import Celery

from gwi_celery import setup
from gwi_celery.errors import BrokerUnusable
from tests.acceptance.conftest import APP
from tests.machine import PATIENCE
from tests.workers import Worker

pytestmark = pytest.mark.acceptance


def no_credentials(folder: Path) -> tuple[dict[str, str], str]:
    env = {
        "JOBS_BROKER_URL": "pubsub://my-project",
        "JOBS_LEASE_SECONDS": "10",
        "PUBSUB_EMULATOR_HOST": "",
        "GOOGLE_APPLICATION_CREDENTIALS": str(folder / "missing.json"),
    }
    return env, r"no Google Cloud credentials.*: run `gcloud auth application-default login`"


def not_a_database(folder: Path) -> tuple[dict[str, str], str]:
    (folder / "gwi").mkdir()
    (folder / "gwi" / "broker.sqlite3").write_bytes(b"not a database, and long enough" * 100)
    return {}, "is not a SQLite database, or is damaged"


@pytest.mark.parametrize("what", [no_credentials, not_a_database])
@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_worker_does_not_try_again(pool: str, what: object, tmp_path: Path) -> None:
    env, text = what(tmp_path)  # type: ignore[operator]
    worker = Worker(APP, tmp_path, pool=pool, env={"JOBS_FOLDER": str(tmp_path), **env}, fresh=True)
    try:
        worker.wait_for(text)
        assert worker.process.wait(timeout=PATIENCE) == 1
        assert "Trying again" not in worker.log
        assert "Traceback" not in worker.log
    finally:
        worker.close()


def test_a_call_does_not_try_again(tmp_path: Path) -> None:
    not_a_database(tmp_path)
    app = Celery("broken", set_as_current=False)
    setup(app, folder=str(tmp_path / "gwi"))
    with pytest.raises(BrokerUnusable, match="is not a SQLite database"):
        app.send_task("t")
    app.close()


APP_TEXT = """
from celery import Celery
from gwi_celery import setup
app = Celery("refused")
setup(app, broker_url="embedded://{folder}/queue", store_url="embedded://{store}")
{then}
"""


def refused(folder: Path, **change: str) -> Worker:
    filled = {"folder": str(folder), "store": f"{folder}/store", "then": "", **change}
    (folder / "refused.py").write_text(APP_TEXT.format(**filled))
    return Worker("refused", folder, pool="solo", args=("--loglevel", "WARNING"))


def test_a_worker_that_is_refused_says_why_and_nothing_else(tmp_path: Path) -> None:
    worker = refused(tmp_path, then="app.conf.worker_prefetch_multiplier = 4")
    try:
        worker.wait_for("worker_prefetch_multiplier is 4")
        assert worker.process.wait(timeout=PATIENCE) != 0
        worker.close()
        assert "Traceback" not in worker.log
    finally:
        worker.close()


def test_a_worker_whose_jobs_would_wait_for_their_store_says_so_at_start(tmp_path: Path) -> None:
    """It goes on: somebody may mend the store."""
    worker = refused(tmp_path, store="/dev/null/store")
    try:
        worker.wait_for(
            r"ERROR.*jobs will wait.* can't make the folder /dev/null/store for the store"
        )
        assert worker.process.poll() is None
    finally:
        worker.close()
