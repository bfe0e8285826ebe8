"""Fixtures of the contract suites."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest

from gwi_celery.brokers.base import Broker, Receiver
from gwi_celery.brokers.pubsub import client, looks
from gwi_celery.brokers.pubsub.options import STRICT_HOST
from gwi_celery.firestore import client as firestore_client
from gwi_celery.testing.twin import Twin, start_twin
from tests.contract import backends, stores
from tests.contract.brokers import CASES, BrokerFactory, PubSubTwin
from tests.machine import PATIENCE

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


@pytest.fixture(scope="session")
def _kept() -> Iterator[dict[tuple[str, str], Any]]:
    kept: dict[tuple[str, str], Any] = {}
    yield kept
    for channel in kept.values():
        channel.close()


@pytest.fixture
def share_connection(
    _kept: dict[tuple[str, str], Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[[ModuleType], None]:
    """Has a module's clients use one connection: a new one costs more than a short test's calls."""

    def share(module: ModuleType) -> None:
        connect = module._connect

        def connected(options: Any, access: Any) -> Any:
            place = module.__name__, options.endpoint
            if place not in _kept:
                _kept[place] = connect(options, access)
                with suppress(grpc.RpcError):  # it has no such method, but by then a connection
                    _kept[place].unary_unary("/-/-")(b"", timeout=PATIENCE, wait_for_ready=True)
            return connect(options, access)

        shared = [o for o in module._CHANNEL_OPTIONS if o[0] != "grpc.use_local_subchannel_pool"]
        monkeypatch.setattr(module, "_CHANNEL_OPTIONS", shared)
        monkeypatch.setattr(module, "_connect", connected)

    return share


@pytest.fixture(autouse=True)
def _emulator(request: pytest.FixtureRequest) -> None:
    """Starts what the backend under test needs."""
    if "firestore" in _parameters(request.node):
        request.getfixturevalue("firestore_emulator")
        request.getfixturevalue("share_connection")(firestore_client)


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
        request.getfixturevalue("share_connection")(client)
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
