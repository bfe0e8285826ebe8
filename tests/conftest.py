"""Fixtures of all suites: the emulators, one of each for a test process, started when first used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from gwi_celery.testing.emulators import (
    FIRESTORE_HOST,
    PUBSUB_HOST,
    Emulator,
    EmulatorMissing,
    start_firestore,
    start_pubsub,
)


@pytest.fixture(scope="session")
def pubsub_emulator() -> Iterator[Emulator]:
    """A running Pub/Sub emulator. Use a project of your own for each test: it is shared."""
    with _started(start_pubsub(), PUBSUB_HOST) as emulator:
        yield emulator


@pytest.fixture(scope="session")
def firestore_emulator() -> Iterator[Emulator]:
    """A running Firestore emulator. Use a project of your own for each test: it is shared."""
    with _started(start_firestore(), FIRESTORE_HOST) as emulator:
        yield emulator


class _started(AbstractContextManager[Emulator]):
    """The emulator, named in the environment as well; a missing one skips, or fails in CI."""

    def __init__(self, start: AbstractContextManager[Emulator], variable: str) -> None:
        self._start = start
        self._variable = variable

    def __enter__(self) -> Emulator:
        try:
            emulator = self._start.__enter__()
        except EmulatorMissing as exc:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(str(exc))
        self._before = os.environ.get(self._variable)
        os.environ[self._variable] = emulator.endpoint
        return emulator

    def __exit__(self, *exc_info: object) -> None:
        if self._before is None:
            os.environ.pop(self._variable, None)
        else:
            os.environ[self._variable] = self._before
        self._start.__exit__(None, None, None)
