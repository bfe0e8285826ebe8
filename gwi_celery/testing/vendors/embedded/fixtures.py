"""Fixtures of the embedded vendor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gwi_celery.testing.vendors.embedded.api import EmbeddedTestBackend, EmbeddedTestBroker
from gwi_celery.testing.vendors.embedded.container import EmbeddedContainer


@pytest.fixture
def celery_embedded_broker(tmp_path: Path) -> Iterator[EmbeddedTestBroker]:
    """A broker in a folder of this test's own."""
    broker = EmbeddedTestBroker(EmbeddedContainer(tmp_path / "gwi"))
    yield broker
    broker.teardown()


@pytest.fixture
def celery_embedded_backend(tmp_path: Path) -> Iterator[EmbeddedTestBackend]:
    """A result backend, and a store, in the same folder."""
    backend = EmbeddedTestBackend(EmbeddedContainer(tmp_path / "gwi"))
    yield backend
    backend.teardown()
