"""A project of its own for each test on the emulator, and a store on it whose calls are counted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gwi_celery.stores.firestore import FirestoreStore
from gwi_celery.testing.emulators import Emulator
from tests.firestore_wire import Wire


@pytest.fixture
def wire(firestore_emulator: Emulator) -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


@pytest.fixture
def store(wire: Wire) -> Iterator[FirestoreStore]:
    store = wire.store()
    yield store
    store.close()
