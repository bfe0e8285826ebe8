"""A folder, an app to call from this process, and workers on it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.workers import Worker

APP = "tests.acceptance.jobs"


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The jobs module, made anew for this test's folder."""
    monkeypatch.setenv("JOBS_FOLDER", str(tmp_path))
    sys.modules.pop(APP, None)
    module = importlib.import_module(APP)
    yield module
    module.app.close()
    sys.modules.pop(APP, None)


@pytest.fixture
def start(tmp_path: Path, jobs: ModuleType) -> Iterator[Callable[..., Worker]]:
    """Starts workers on the test's folder, and ends them with the test."""
    started: list[Worker] = []

    def start_worker(**options: Any) -> Worker:
        env = {"JOBS_FOLDER": str(tmp_path), **options.pop("env", {})}
        worker = Worker(APP, tmp_path, env=env, **options)
        started.append(worker)
        return worker.ready()

    yield start_worker
    for worker in started:
        worker.close()
