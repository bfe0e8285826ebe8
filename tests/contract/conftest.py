"""Fixtures of the contract suites."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gwi_celery.brokers.base import Broker, Receiver
from gwi_celery.brokers.pubsub import client, looks
from gwi_celery.brokers.pubsub.options import STRICT_HOST
from gwi_celery.testing.twin import Twin, start_twin
from tests.contract import backends, stores
from tests.contract.brokers import CASES, BrokerFactory, PubSubTwin

#: Backend -> what its tests are marked with.
MARKS = {"pubsub": pytest.mark.emulator, "twin": pytest.mark.slow}
if STRICT_HOST in os.environ:  # what is written for the emulator would run on a twin, too
    CASES.pop("pubsub")
    MARKS["twin"] = pytest.mark.emulator


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(flag): only for backends whose factory has that flag")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "broker_factory" in metafunc.fixturenames:
        flags = [flag for mark in metafunc.definition.iter_markers("needs") for flag in mark.args]
        names = [name for name, (kind, _) in CASES.items() if all(getattr(kind, f) for f in flags)]
        marked = [
            pytest.param(name, marks=MARKS[name]) if name in MARKS else name for name in names
        ]
        metafunc.parametrize("broker_factory", marked, indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "firestore" in _parameters(item):
            item.add_marker("emulator")


def _parameters(item: Any) -> list[Any]:
    return list(item.callspec.params.values()) if hasattr(item, "callspec") else []


@pytest.fixture(autouse=True)
def _emulator(request: pytest.FixtureRequest) -> None:
    """Starts what the backend under test needs."""
    if "firestore" in _parameters(request.node):
        request.getfixturevalue("firestore_emulator")


@pytest.fixture(scope="session")
def pubsub_twin() -> Iterator[Twin]:
    """Without what makes a count wrong; with waits as short as tests need them."""
    switches: dict[str, Any] = {
        "faults": 0.02,
        "published_twice": False,
        "early_expiry": 0,
        "settle": PubSubTwin.SETTLES,
        "name_rest": PubSubTwin.NAMES_REST,
    }
    with start_twin(**switches) as twin:
        PubSubTwin.endpoint = twin.endpoint
        yield twin


@pytest.fixture
def broker_factory(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[BrokerFactory]:
    """Makes connections to one broker service, which is new and empty."""
    kind, service = CASES[request.param]
    if kind.fixture:
        request.getfixturevalue(kind.fixture)
    if request.param == "pubsub":  # the emulator knows at once what was made
        monkeypatch.setattr(client, "_SETTLES", 0.5)
    if request.param == "twin":
        monkeypatch.setattr(looks, "_QUIET", 0.5)  # the twin is near
        monkeypatch.setattr(client, "_SETTLES", 2.0)
    with service(tmp_path) as factory:
        yield factory


@pytest.fixture(params=backends.CASES)
def results(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[backends.BackendCase]:
    """A result backend, with nothing in it yet."""
    with backends.CASES[request.param](tmp_path, request.param) as case:
        yield case


@pytest.fixture(params=stores.CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[stores.StoreCase]:
    """A store, with nothing in it yet."""
    with stores.CASES[request.param](tmp_path) as case:
        yield case


@pytest.fixture
def broker(broker_factory: BrokerFactory) -> Broker:
    return broker_factory()


@pytest.fixture
def receiver(broker: Broker) -> Receiver:
    return broker.receiver()
