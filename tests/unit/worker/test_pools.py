"""Pools that a worker refuses to start with."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from celery import concurrency
from kombu.utils.imports import symbol_by_name

from gwi_celery.errors import ConfigurationError
from gwi_celery.worker.pools import PoolCheck


def test_eventlet_is_refused_with_what_to_use_instead(app) -> None:
    pool = type("TaskPool", (), {"__module__": concurrency.ALIASES["eventlet"].partition(":")[0]})
    with pytest.raises(ConfigurationError, match=r"eventlet pool can't be used.*-P gevent"):
        PoolCheck(SimpleNamespace(app=app, pool_cls=pool))
    assert PoolCheck in map(symbol_by_name, app.steps["worker"])


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_the_others_start(app, pool: str) -> None:
    PoolCheck(SimpleNamespace(app=app, pool_cls=concurrency.get_implementation(pool)))
