"""The acceptance tests' app, in workers and services of this test's own folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gwi_celery import broker_for
from tests.acceptance.conftest import start
from tests.service.pushing import APP, PushSubscription, Service, jobs_in
from tests.workers import starting

__all__ = ["start"]


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[ModuleType]:
    """The jobs module, made anew for this test's folder."""
    with jobs_in(tmp_path) as module:
        yield module


@pytest.fixture
def serve(tmp_path: Path, jobs: ModuleType) -> Iterator[Callable[..., Service]]:
    """Starts push services on the test's folder, and ends them with the test."""
    yield from starting(Service, APP, tmp_path, {"JOBS_FOLDER": str(tmp_path)})


@pytest.fixture
def subscribe(jobs: ModuleType) -> Iterator[Callable[..., PushSubscription]]:
    """Starts push subscriptions to a service."""
    started: list[PushSubscription] = []

    def start_subscription(service: Service, **options: Any) -> PushSubscription:
        broker = broker_for(jobs.app)
        subscription = PushSubscription(broker, "celery", service.url, **options)
        started.append(subscription)
        return subscription.__enter__()

    yield start_subscription
    for subscription in started:
        subscription.__exit__()
