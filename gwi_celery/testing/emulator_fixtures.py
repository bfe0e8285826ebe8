"""Fixtures for the emulators alone: ``pytest_plugins = ["gwi_celery.testing.emulator_fixtures"]``.

One of each for a test process, started when first used, and named in the environment as long as it
runs, so that Google's clients find it and ask for no credentials.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from gwi_celery.gcp.emulators import FIRESTORE_HOST, PUBSUB_HOST
from gwi_celery.testing.emulators import (
    Emulator,
    EmulatorMissing,
    start_firestore,
    start_pubsub,
)
from gwi_celery.testing.twin import Twin, start_twin


@pytest.fixture(scope="session")
def pubsub_emulator() -> Iterator[Emulator]:
    """A running Pub/Sub emulator. Use a project of your own for each test: it is shared."""
    with named(start_pubsub(), PUBSUB_HOST) as emulator:
        yield emulator


@pytest.fixture(scope="session")
def firestore_emulator() -> Iterator[Emulator]:
    """A running Firestore emulator. Use a project of your own for each test: it is shared."""
    with named(start_firestore(), FIRESTORE_HOST) as emulator:
        yield emulator


@pytest.fixture(scope="session")
def gwi_twin_switches() -> dict[str, Any]:
    """Switches of the session's twin, by :class:`gwi_celery.testing.twin.Behaviour`'s names.

    What happens by chance, and may run a job twice, is off: a test has one right outcome.
    """
    return {"faults": 0, "early_expiry": 0}


@pytest.fixture(scope="session")
def pubsub_twin(gwi_twin_switches: dict[str, Any]) -> Iterator[Twin]:
    """A running :mod:`gwi_celery.testing.twin`; its ``environ`` has the variables that name it.

    Use a project of your own for each test: it is shared.
    """
    with start_twin(**gwi_twin_switches) as twin:
        yield twin


@contextmanager
def named(starting: AbstractContextManager[Emulator], variable: str) -> Iterator[Emulator]:
    """The emulator, with its variable set; a missing one skips the test, or fails it in CI."""
    try:
        emulator = starting.__enter__()
    except EmulatorMissing as exc:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(exc))
    before = os.environ.get(variable)
    os.environ[variable] = emulator.endpoint
    try:
        yield emulator
    finally:
        if before is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = before
        starting.__exit__(None, None, None)
