"""What ends a worker of itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from celery.exceptions import WorkerShutdown
from celery.worker import state

from gwi_celery import setup, store_for
from gwi_celery.integration import displaced
from tests.threadworker import worker_in_thread


def made(*, results: str | None = None, **settings: Any) -> Celery:
    app = Celery(f"unit-{uuid4().hex}", set_as_current=False, backend=results)
    setup(app, **settings)
    return app


def test_only_the_apps_own_files_end_its_worker(tmp_path: Path) -> None:
    """Jobs and tests use other folders for a while, and delete them."""
    memory = f"embedded://:memory:/{uuid4().hex}"
    apps = {
        "own": made(folder=str(tmp_path / "own")),
        "another": made(folder=str(tmp_path / "another")),
        "in memory": made(broker_url=memory, store_url=memory),
        "results elsewhere": made(
            folder=str(tmp_path / "own"),
            results=f"embedded://{tmp_path / 'another'}",
        ),
    }
    for app in apps.values():
        store_for(app).list_jobs("acme")
    assert not any(displaced(app) for app in apps.values())
    shutil.rmtree(tmp_path / "another")
    told = {name: displaced(app) or "" for name, app in apps.items()}
    assert told.keys() == apps.keys()
    assert [name for name in told if told[name]] == ["another", "results elsewhere"]
    assert "was deleted" in told["another"]
    for app in apps.values():
        store_for(app).close()
        app.close()


def test_a_worker_in_a_thread_that_ends_as_it_starts_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = f"embedded://:memory:/{uuid4().hex}"
    app = made(broker_url=memory, store_url=memory)
    monkeypatch.setattr(state, "should_stop", 1)  # as a worker leaves it whose folder has gone
    with (
        pytest.raises(RuntimeError, match="ended while it started") as caught,
        worker_in_thread(app),
    ):
        pass
    assert isinstance(caught.value.__cause__, WorkerShutdown)
    app.close()
