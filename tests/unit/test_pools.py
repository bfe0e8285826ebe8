"""Pools that a worker refuses to start with."""

from __future__ import annotations

from types import SimpleNamespace
from uuid import uuid4

import pytest
from celery import Celery, concurrency

from gwi_celery import setup
from gwi_celery.errors import ConfigurationError
from gwi_celery.worker.pools import PoolCheck


@pytest.fixture
def app():
    app = Celery(f"pools-{uuid4().hex}", set_as_current=False)
    name = f"embedded://:memory:/{uuid4().hex}"
    setup(app, broker_url=name, store_url=name)
    yield app
    app.close()


def test_eventlet_is_refused_with_what_to_use_instead(app) -> None:
    pool = type("TaskPool", (), {"__module__": concurrency.ALIASES["eventlet"].partition(":")[0]})
    with pytest.raises(ConfigurationError, match=r"eventlet pool can't be used.*-P gevent"):
        PoolCheck(SimpleNamespace(app=app, pool_cls=pool))
    assert PoolCheck in app.steps["worker"]


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_the_others_start(app, pool: str) -> None:
    PoolCheck(SimpleNamespace(app=app, pool_cls=concurrency.get_implementation(pool)))
