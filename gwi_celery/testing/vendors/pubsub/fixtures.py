"""Fixtures of the Pub/Sub vendor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytest_docker_tools import container, fxtr

from gwi_celery.testing.emulators import Emulator
from gwi_celery.testing.twin import Twin
from gwi_celery.testing.vendors.pubsub.api import PubSubTestBroker
from gwi_celery.testing.vendors.pubsub.container import (
    PubSubContainer,
    PubSubProcess,
    PubSubTwinProcess,
)
from gwi_celery.testing.vendors.pubsub.defaults import PUBSUB_CONTAINER_TIMEOUT


@pytest.fixture
def celery_pubsub_broker(default_pubsub_broker: PubSubContainer) -> Iterator[PubSubTestBroker]:
    """The emulator in a container of Docker's."""
    broker = PubSubTestBroker(default_pubsub_broker)
    yield broker
    broker.teardown()


@pytest.fixture
def celery_pubsub_process_broker(pubsub_emulator: Emulator) -> Iterator[PubSubTestBroker]:
    """The emulator as a process, shared by the tests of a session; the project is this test's."""
    broker = PubSubTestBroker(PubSubProcess(pubsub_emulator))
    yield broker
    broker.teardown()
    pubsub_emulator.start()  # again, if the test has killed it


@pytest.fixture
def celery_pubsub_twin_broker(pubsub_twin: Twin) -> Iterator[PubSubTestBroker]:
    """The strict twin, shared by the tests of a session; the project is this test's."""
    broker = PubSubTestBroker(PubSubTwinProcess(pubsub_twin))
    yield broker
    broker.teardown()
    pubsub_twin.start()  # again, if the test has killed it


@pytest.fixture
def default_pubsub_broker_cls() -> type[PubSubContainer]:
    """The container's class. Override to apply custom configuration globally."""
    return PubSubContainer


default_pubsub_broker = container(
    image="{default_pubsub_broker_image}",
    ports=fxtr("default_pubsub_broker_ports"),
    environment=fxtr("default_pubsub_broker_env"),
    network="{default_pytest_celery_network.name}",
    wrapper_class=PubSubContainer,
    timeout=PUBSUB_CONTAINER_TIMEOUT,
    command=fxtr("default_pubsub_broker_command"),
)


@pytest.fixture
def default_pubsub_broker_command(default_pubsub_broker_cls: type[PubSubContainer]) -> list[str]:
    """Docker's CMD instruction."""
    return default_pubsub_broker_cls.command()


@pytest.fixture
def default_pubsub_broker_env(default_pubsub_broker_cls: type[PubSubContainer]) -> dict[str, str]:
    """The container's environment."""
    return default_pubsub_broker_cls.initial_env()


@pytest.fixture
def default_pubsub_broker_image(default_pubsub_broker_cls: type[PubSubContainer]) -> str:
    """The image's name."""
    return default_pubsub_broker_cls.image()


@pytest.fixture
def default_pubsub_broker_ports(
    default_pubsub_broker_cls: type[PubSubContainer],
) -> dict[str, None]:
    """The port bindings."""
    return default_pubsub_broker_cls.ports()
