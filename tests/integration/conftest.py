"""Real workers through pytest-celery, as a user of gwi_celery.testing has them.

Every test runs on each pair of broker and result backend; a new transport joins with a line here.
"""

from __future__ import annotations

import pytest

from gwi_celery.testing.fixtures import *  # noqa: F403
from tests.integration import tasks

SIDES = {"embedded": ("embedded", "embedded"), "pubsub": ("pubsub", "embedded")}


@pytest.fixture(params=SIDES, autouse=True)
def side(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def gwi_broker(side: str) -> str:
    return SIDES[side][0]


@pytest.fixture
def gwi_backend(side: str) -> str:
    return SIDES[side][1]


@pytest.fixture
def default_worker_tasks(default_worker_tasks: set) -> set:
    return {*default_worker_tasks, tasks}
