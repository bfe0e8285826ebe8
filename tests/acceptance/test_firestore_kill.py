"""kill -9 of real workers on Pub/Sub and Firestore together: nothing lost, no finished step twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import pytest

from gwi_celery import broker_for, store_for
from gwi_celery.brokers.pubsub.broker import PubSubBroker
from gwi_celery.stores.firestore import FirestoreStore
from tests.acceptance.test_kill import POINTS, kill_and_go_on
from tests.workers import Worker, dead_letters

pytestmark = [pytest.mark.acceptance, pytest.mark.emulator, pytest.mark.brokers("pubsub")]


@pytest.fixture(autouse=True)
def store_url(firestore_emulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs' state and results are in a project that is new."""
    url = f"firestore://kill-{uuid4().hex[:20]}"
    monkeypatch.setenv("JOBS_STORE_URL", url)
    monkeypatch.setenv("JOBS_RESULT_URL", url)


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_worker_loses_nothing_and_repeats_no_finished_step(
    point: str, jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    kill_and_go_on("prefork", point, jobs, start, tmp_path)

    broker, store = broker_for(jobs.app), store_for(jobs.app)
    assert isinstance(broker, PubSubBroker)
    assert isinstance(store._store, FirestoreStore)  # below the one with the crash points
    assert dead_letters(broker) == []
