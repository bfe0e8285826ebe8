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


@pytest.fixture
def eager(app: Celery) -> Celery:
    """The app, whose calls run at once, in this process."""
    app.conf.task_always_eager = True
    return app
