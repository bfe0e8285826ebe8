"""An app in memory for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery

from tests.apps import fresh_app


@pytest.fixture
def app() -> Iterator[Celery]:
    app = fresh_app()
    yield app
    app.close()
