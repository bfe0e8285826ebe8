"""Fixtures of the Firestore vendor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytest_docker_tools import container, fxtr

from gwi_celery.testing.emulators import Emulator
from gwi_celery.testing.vendors.firestore.api import FirestoreTestBackend
from gwi_celery.testing.vendors.firestore.container import FirestoreContainer, FirestoreProcess
from gwi_celery.testing.vendors.firestore.defaults import FIRESTORE_CONTAINER_TIMEOUT


@pytest.fixture
def celery_firestore_backend(
    default_firestore_backend: FirestoreContainer,
) -> Iterator[FirestoreTestBackend]:
    """The emulator in a container of Docker's."""
    backend = FirestoreTestBackend(default_firestore_backend)
    yield backend
    backend.teardown()


@pytest.fixture
def celery_firestore_process_backend(
    firestore_emulator: Emulator,
) -> Iterator[FirestoreTestBackend]:
    """The emulator as a process, shared by the tests of a session; the project is this test's."""
    backend = FirestoreTestBackend(FirestoreProcess(firestore_emulator))
    yield backend
    backend.teardown()
    firestore_emulator.start()  # again, if the test has killed it


@pytest.fixture
def default_firestore_backend_cls() -> type[FirestoreContainer]:
    """The container's class. Override to apply custom configuration globally."""
    return FirestoreContainer


default_firestore_backend = container(
    image="{default_firestore_backend_image}",
    ports=fxtr("default_firestore_backend_ports"),
    environment=fxtr("default_firestore_backend_env"),
    network="{default_pytest_celery_network.name}",
    wrapper_class=FirestoreContainer,
    timeout=FIRESTORE_CONTAINER_TIMEOUT,
    command=fxtr("default_firestore_backend_command"),
)


@pytest.fixture
def default_firestore_backend_command(
    default_firestore_backend_cls: type[FirestoreContainer],
) -> list[str]:
    """Docker's CMD instruction."""
    return default_firestore_backend_cls.command()


@pytest.fixture
def default_firestore_backend_env(
    default_firestore_backend_cls: type[FirestoreContainer],
) -> dict[str, str]:
    """The container's environment."""
    return default_firestore_backend_cls.initial_env()


@pytest.fixture
def default_firestore_backend_image(default_firestore_backend_cls: type[FirestoreContainer]) -> str:
    """The image's name."""
    return default_firestore_backend_cls.image()


@pytest.fixture
def default_firestore_backend_ports(
    default_firestore_backend_cls: type[FirestoreContainer],
) -> dict[str, None]:
    """The port bindings."""
    return default_firestore_backend_cls.ports()
