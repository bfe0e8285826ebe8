"""An app after ``setup()``: its settings, store and broker."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from typing import Any

from gwi_celery import embedded_url, forks, sqlite
from gwi_celery.actions import action
from gwi_celery.authority import Authority
from gwi_celery.brokers.base import Broker
from gwi_celery.config import Settings, urls
from gwi_celery.errors import ConfigurationError
from gwi_celery.rates import RedisRates
from gwi_celery.stores.base import Store
from gwi_celery.stores.sqlite import SqliteStore
from gwi_celery.stores.url import open_store


class Integration:
    """One app's settings and its stores, opened at the first use."""

    def __init__(
        self, settings: Settings, applied: dict[str, Any], sources: Mapping[str, str]
    ) -> None:
        self.settings = settings
        #: Where settings came from, by name; those that have their default are left out.
        self.sources = sources
        #: Celery's settings that ``setup()`` gave the app, which another ``setup()`` may change.
        self.applied = applied
        self._store: Store | None = None
        self._eager_store: Store | None = None
        self._eager_pid = 0
        self._lock = forks.lock()
        self.rates: RedisRates | None = None
        if settings.limits_url:
            let_pass = settings.limits_unavailable == "pass"
            self.rates = RedisRates(settings.limits_url, let_pass=let_pass)
        self.authority = Authority(settings, lambda: self.store)

    @property
    def store(self) -> Store:
        with self._lock:
            if self._store is None:
                self._store = open_store(self.settings.effective_store_url)
            return self._store

    @property
    def eager_store(self) -> Store:
        """Where eager calls keep their jobs: in this process's memory, unless a store is named.

        Eager calls are made by tests and scripts: records that an earlier process left in the default
        store must not answer them.
        """
        if self.settings.store_url or self.settings.store_backend:
            return self.store
        with self._lock:
            if self._eager_store is None or self._eager_pid != os.getpid():
                self._eager_store, self._eager_pid = SqliteStore(None), os.getpid()
            return self._eager_store

    def record_action(
        self, what: str, target: str, tenant: str | None = None, **details: Any
    ) -> None:
        """Record in the audit trail what an operator is about to do. Raises StoreError."""
        self.store.record_action(action(what, target, tenant, **details))

    def forget_eager_jobs(self) -> None:
        with self._lock:
            self._eager_store = None


_integrations: weakref.WeakKeyDictionary[Any, Integration] = weakref.WeakKeyDictionary()
#: Why a configuration that was loaded after ``setup()`` can't be used.
_refused: weakref.WeakKeyDictionary[Any, ConfigurationError] = weakref.WeakKeyDictionary()


def unwrapped(app: Any) -> Any:
    """The app itself, where ``celery.current_app`` hands out a proxy."""
    return app._get_current_object() if hasattr(app, "_get_current_object") else app


def known(app: Any) -> Integration | None:
    """The app's integration; None before ``setup()``, or if its configuration was refused since."""
    return _integrations.get(app)


def keep(app: Any, made: Integration) -> None:
    """Make ``made`` the app's integration from now on."""
    _refused.pop(app, None)
    _integrations[app] = made


def refuse(app: Any, why: ConfigurationError) -> None:
    """Make every use of the app raise ``why`` from now on."""
    _integrations.pop(app, None)
    _refused[app] = why


def refused(app: Any) -> bool:
    return app in _refused


def integration(app: Any) -> Integration:
    """The app's integration.

    Raises ConfigurationError before ``setup(app)``, and if a configuration loaded later can't be used.
    """
    app = unwrapped(app)
    if not app.configured:
        _ = app.conf.broker_url  # loads what config_from_object() named
    if app in _refused:
        raise ConfigurationError(str(_refused[app])) from _refused[app]
    try:
        return _integrations[app]
    except KeyError:
        raise ConfigurationError(
            f"the Celery app {app.main!r} is not set up for reliable jobs: call "
            "gwi_celery.setup(app) right after making it"
        ) from None


def settings_for(app: Any) -> Settings:
    """The settings of an app that was set up."""
    return integration(app).settings


def source_of(app: Any, name: str) -> str:
    """Where a setting's value came from: ``setup()``, ``app.conf.gwi_...``, a variable, ``default``."""
    return integration(app).sources.get(name, "default")


def store_for(app: Any) -> Store:
    """The store of an app that was set up; with ``task_always_eager``, that for eager calls."""
    if app.conf.task_always_eager:
        return integration(app).eager_store
    return integration(app).store


def displaced(app: Any) -> str | None:
    """Says which embedded file of the app was deleted or replaced; None if none was.

    Files of other apps don't count: a job may use a folder for a while, and delete it.
    """
    conf = app.conf
    used = [
        *urls(conf.broker_url),
        settings_for(app).effective_store_url,
        *urls(conf.result_backend),
    ]
    embedded = (embedded_url.parse(url).folder for url in used if url.startswith("embedded:"))
    return sqlite.displaced({folder for folder in embedded if folder is not None})


def forget_eager_jobs() -> None:
    """Forget the eager calls' jobs in memory, of every app of this process."""
    for made in list(_integrations.values()):
        made.forget_eager_jobs()


class _AppBroker:
    """An app's broker in this process, for operators: opened on demand, closed at exit."""

    def __init__(self, app: Any) -> None:
        self.connection = app.connection_for_write()
        self.pid = os.getpid()
        broker: Broker | None = getattr(self.connection.transport, "broker", None)
        if broker is None:
            raise ConfigurationError(
                f"the broker {self.connection.transport_cls!r} is not one of this package's, so it has "
                "no sizes, dead letters or redrives here: use embedded:// or pubsub://"
            )
        self.broker = broker
        if app in _integrations or app in _refused:  # a plain app has none
            broker.operators = integration(app).authority
        self.close = weakref.finalize(self, _close, broker, self.pid)


def _close(broker: Broker, pid: int) -> None:
    if os.getpid() == pid:  # in a forked child the broker is its parent's
        broker.close()


_brokers: weakref.WeakKeyDictionary[Any, _AppBroker] = weakref.WeakKeyDictionary()
_brokers_lock = forks.lock()


def broker_for(app: Any) -> Broker:
    """The app's broker, for operators and tests: sizes, dead letters, redrives.

    One for each app and process, closed at the process's end. A forked child gets its own.
    """
    app = unwrapped(app)
    with _brokers_lock:
        ours = _brokers.get(app)
        if ours is None or ours.pid != os.getpid():
            ours = _brokers[app] = _AppBroker(app)
        return ours.broker


def close_broker(app: Any) -> None:
    """Close the app's broker: the next :func:`broker_for` opens the configured one."""
    if ours := _brokers.pop(app, None):
        ours.close()
