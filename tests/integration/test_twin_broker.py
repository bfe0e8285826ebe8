"""``gwi_broker = "twin"`` in a project of a user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import zygote

pytestmark = pytest.mark.acceptance

FILES = {
    "conftest.py": """
import pytest

import my_tasks

pytest_plugins = ["gwi_celery.testing.fixtures"]


@pytest.fixture
def gwi_broker():
    return "twin"


@pytest.fixture
def default_worker_tasks(default_worker_tasks):
    return {*default_worker_tasks, my_tasks}
""",
    "my_tasks.py": """
from celery import shared_task

from gwi_celery import ReliableTask


@shared_task(base=ReliableTask, bind=True)
def total(self, *, tenant_id, run_id, amounts):
    return self.step("total", sum, amounts)
""",
    "test_total.py": """
from my_tasks import total


def test_the_worker_pulls_from_the_twin(celery_setup, pubsub_twin):
    assert pubsub_twin.endpoint in celery_setup.app.conf.broker_url
    assert total.delay(tenant_id="acme", run_id="1", amounts=[1, 2]).get(timeout=60) == 3
    project = celery_setup.broker.container.project
    counts = pubsub_twin.counts(f"projects/{project}/subscriptions/gwi-celery")
    assert counts["delivered"] == 1
    # As on the service: by a stream, never by pulls that strand messages.
    assert "Pull" not in pubsub_twin.cost()["rpcs"]
    assert pubsub_twin.switch()["faults"] == 0
""",
}


@pytest.fixture(autouse=True)
def side() -> None:
    """Once is enough: the project chooses its broker itself."""


def test_a_project_tests_its_jobs_on_the_twin(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    done = zygote.run_pytest(tmp_path, *zygote.NODES)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
