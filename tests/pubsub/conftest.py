"""A project of its own for each test on the emulator, an app on it, and workers."""

from __future__ import annotations

import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gwi_celery.brokers.pubsub import client
from gwi_celery.brokers.pubsub.broker import PubSubBroker
from gwi_celery.brokers.pubsub.client import Client
from gwi_celery.brokers.pubsub.options import STRICT_HOST, parse
from gwi_celery.testing.emulators import Emulator
from gwi_celery.testing.twin import STRICT
from tests.apps import imported
from tests.workers import Worker, starting

APP = "tests.pubsub.jobs"


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator knows at once what was made: who misses something need not wait for it."""
    if STRICT_HOST not in os.environ:
        monkeypatch.setattr(client, "_SETTLES", 0.5)


def settled() -> None:
    """Wait until a twin's other connections find what was just made."""
    if STRICT_HOST in os.environ:
        time.sleep(STRICT.settle)


@pytest.fixture
def url(pubsub_emulator: Emulator) -> str:
    return f"pubsub://{pubsub_emulator.endpoint}/p-{uuid.uuid4().hex[:20]}"


@pytest.fixture
def connect(url: str) -> Iterator[Callable[..., PubSubBroker]]:
    """Makes connections to the test's project."""
    made: list[PubSubBroker] = []

    def make(**options: Any) -> PubSubBroker:
        made.append(PubSubBroker(parse(url, {"lease_seconds": 10, **options})))
        return made[-1]

    yield make
    for broker in made:
        broker.close()


@pytest.fixture
def jobs(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The app, made anew for this test's project and folder."""
    monkeypatch.setenv("PUBSUB_FOLDER", str(tmp_path))
    monkeypatch.setenv("PUBSUB_URL", url)
    with imported(APP) as module:
        yield module


@pytest.fixture
def start(tmp_path: Path, jobs: ModuleType) -> Iterator[Callable[..., Worker]]:
    """Starts workers on the test's app, and ends them with the test."""
    yield from starting(Worker, APP, tmp_path)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Every RPC of this process, by name."""
    counted: Counter[str] = Counter()
    made = Client.__init__

    def counting(self: Client, options: Any) -> None:
        made(self, options)
        self.on_call = lambda name: counted.update([name])

    monkeypatch.setattr(Client, "__init__", counting)
    return counted
