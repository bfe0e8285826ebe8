"""Apps for one test or fixture: a new one in memory, or a module's, imported as a new process would."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any
from uuid import uuid4

from celery import Celery, _state

from gwi_celery import setup, store_for
from gwi_celery.errors import ConfigurationError


def fresh_app(**settings: Any) -> Celery:
    """Broker and store are in memory and no other app's, unless ``settings`` name others."""
    url = f"embedded://:memory:/{uuid4().hex}"
    app = Celery(f"unit-{uuid4().hex}", set_as_current=False)
    setup(app, **{"broker_url": url, "store_url": url, **settings})
    return app


@contextmanager
def imported(name: str) -> Iterator[ModuleType]:
    """The module; its app and store are closed afterwards, and nothing of it stays in the process.

    What ``@app.task`` leaves in Celery's list of shared tasks would otherwise reach the app of every
    later test: two copies of one module then have two tasks of one name, which Celery 5.7 warns of.
    """
    before, current = set(_state._on_app_finalizers), _state._tls.current_app
    sys.modules.pop(name, None)
    try:
        module = importlib.import_module(name)
        yield module
        with suppress(ConfigurationError):  # a plain app: it has none
            store_for(module.app).close()
        module.app.close()
    finally:
        sys.modules.pop(name, None)
        _state._on_app_finalizers.intersection_update(before)
        _state._set_current_app(current)
