"""A folder, an app to call from this process, and workers on it; on each broker."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.apps import imported
from tests.workers import Worker, starting

APP = "tests.acceptance.jobs"

#: The suites that run on Pub/Sub as well as on the embedded broker.
BOTH = {"test_worker", "test_canvas", "test_kill", "test_attempts"}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "brokers(name, ...): only on these brokers")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "jobs_broker" not in metafunc.fixturenames:
        return
    both = metafunc.module.__name__.rpartition(".")[2] in BOTH
    names = ["embedded", "pubsub"] if both else ["embedded"]
    for mark in metafunc.definition.iter_markers("brokers"):
        names = list(mark.args)
    params = [
        pytest.param(name, marks=pytest.mark.emulator) if name == "pubsub" else name
        for name in names
    ]
    metafunc.parametrize("jobs_broker", params, indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Crashes on Pub/Sub cost a lease of 10 s each: one for each pool.

    Every point under prefork is in test_firestore_kill, on both emulators together.
    """
    items[:] = [item for item in items if not _left_out(getattr(item, "callspec", None))]


def _left_out(callspec: Any) -> bool:
    params = {} if callspec is None else callspec.params
    return (
        params.get("jobs_broker") == "pubsub"
        and "pool" in params
        and params.get("point", "inside-step") != "inside-step"
    )


@pytest.fixture
def jobs_broker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which broker the test runs on, and the environment of it."""
    name: str = request.param
    if name == "pubsub":
        request.getfixturevalue("pubsub_emulator")
        url = f"pubsub://p-{uuid.uuid4().hex[:20]}?priority_levels=0,5,9"
        monkeypatch.setenv("JOBS_BROKER_URL", url)
        monkeypatch.setenv("JOBS_LEASE_SECONDS", "10")
    return name


@pytest.fixture
def jobs(tmp_path: Path, jobs_broker: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The jobs module, made anew for this test's folder."""
    monkeypatch.setenv("JOBS_FOLDER", str(tmp_path))
    with imported(APP) as module:
        yield module


@pytest.fixture
def start(tmp_path: Path, jobs: ModuleType) -> Iterator[Callable[..., Worker]]:
    """Starts workers on the test's folder, and ends them with the test."""
    yield from starting(Worker, APP, tmp_path, {"JOBS_FOLDER": str(tmp_path)})
