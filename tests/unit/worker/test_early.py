"""Workers settle what they have parked for operators of their own app, and for nobody else."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from celery import Celery

from gwi_celery import setup
from gwi_celery.headers import SEALED_AS
from gwi_celery.integration import integration
from gwi_celery.worker.early import _settle


@pytest.fixture
def state():
    app = Celery("unit-early", set_as_current=False)
    setup(app, broker_url="embedded://:memory:/early", store_backend="memory")
    yield SimpleNamespace(app=app, consumer=SimpleNamespace(task_consumer=None))
    app.close()


def test_a_command_that_no_operator_sealed_is_refused(state):
    named, now = [["q", "id"]], time.time()
    seal = integration(state.app).authority.seal
    good = seal(SEALED_AS, "now", named, now)
    assert _settle(state, "now", named, now, good) == []
    old = now - 3600
    for how, at, sealed in (
        ("drop", now, good),
        ("now", now + 1, good),
        ("now", old, seal(SEALED_AS, "now", named, old)),
        ("now", now, None),
    ):
        assert "not sealed" in _settle(state, how, named, at, sealed)["error"]
