"""Workers and push services on both brokers."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.acceptance.conftest import APP, start
from tests.apps import imported
from tests.service.conftest import serve

__all__ = ["serve", "start"]


@pytest.fixture(params=["embedded", pytest.param("pubsub", marks=pytest.mark.emulator)])
def jobs(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModuleType]:
    """The jobs module, made anew for this test's folder and broker."""
    if request.param == "pubsub":
        request.getfixturevalue("pubsub_emulator")
        monkeypatch.setenv("JOBS_BROKER_URL", f"pubsub://fuzz-{uuid.uuid4().hex[:12]}")
        monkeypatch.setenv("JOBS_LEASE_SECONDS", "10")
    monkeypatch.setenv("JOBS_FOLDER", str(tmp_path))
    with imported(APP) as module:
        yield module
