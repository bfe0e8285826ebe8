"""``setup(app)``: from a plain Celery app to one whose jobs are reliable."""

from __future__ import annotations

import importlib.util
import os
import weakref
from typing import Any

from celery import current_app, signals

from gwi_celery import beat, config, forks, tracebacks, versions
from gwi_celery.brokers.base import Broker
from gwi_celery.config import Settings
from gwi_celery.errors import ConfigurationError
from gwi_celery.pools import PoolCheck
from gwi_celery.reliability import sending
from gwi_celery.reliability.stopping import StopFlag
from gwi_celery.service.grace import ShutdownGrace
from gwi_celery.service.worker import FolderWatch, HealthServer
from gwi_celery.stores.base import Store
from gwi_celery.stores.sqlite import SqliteStore
from gwi_celery.stores.url import check_store_url, open_store
from gwi_celery.telemetry import logs, tracing
from gwi_celery.transport import register
from gwi_celery.transport.connection import REFUSED_OPTION, Connection
from gwi_celery.upkeep import Upkeep

#: What a reliable app needs of Celery: setting -> (its value, what would happen otherwise).
_REQUIRED: dict[str, tuple[Any, str]] = {
    "task_acks_late": (True, "a worker that is killed would lose its jobs"),
    "task_reject_on_worker_lost": (True, "a pool process that is killed would lose its job"),
    "task_retry_on_worker_lost": (False, "a killed job's retry would be another submission of it"),
    "worker_prefetch_multiplier": (1, "a worker would keep jobs from others while it is busy"),
    "task_serializer": ("json", "duplicates could not be recognised by their payload"),
    "result_serializer": ("json", "results could not be answered from the store"),
    "accept_content": (["json"], "a message could run code by being read"),
    "broker_connection_retry_on_startup": (True, "a broker that starts late would stop workers"),
}


#: Scheme of a ``result_backend`` URL -> its class.
_BACKENDS = {
    "embedded": "gwi_celery.backends.embedded:EmbeddedBackend",
    "firestore": "gwi_celery.backends.firestore:FirestoreBackend",
}


#: Celery's worker with it answers whatever a message is, and whatever its job raises.
_CONSUMER = "gwi_celery.reliability.consumer:Consumer"


class Integration:
    """What belongs to one app: its settings, and its stores, opened when first used."""

    def __init__(self, settings: Settings, applied: dict[str, Any]) -> None:
        self.settings = settings
        #: Celery's settings that ``setup()`` gave the app, which another ``setup()`` may change.
        self.applied = applied
        self._store: Store | None = None
        self._eager_store: Store | None = None
        self._eager_pid = 0
        self._lock = forks.lock()

    @property
    def store(self) -> Store:
        with self._lock:
            if self._store is None:
                self._store = open_store(self.settings.effective_store_url)
            return self._store

    @property
    def eager_store(self) -> Store:
        """Where eager calls keep their jobs: in this process's memory, unless a store is named.

        An eager call is a test's, or a script's: what an earlier process left in the default
        store must not answer it.
        """
        if self.settings.store_url or self.settings.store_backend:
            return self.store
        with self._lock:
            if self._eager_store is None or self._eager_pid != os.getpid():
                self._eager_store, self._eager_pid = SqliteStore(None), os.getpid()
            return self._eager_store

    def forget_eager_jobs(self) -> None:
        with self._lock:
            self._eager_store = None


_integrations: weakref.WeakKeyDictionary[Any, Integration] = weakref.WeakKeyDictionary()
#: What ``setup()`` was called with last.
_arguments: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
#: Why a configuration that was loaded after ``setup()`` can't be used.
_refused: weakref.WeakKeyDictionary[Any, ConfigurationError] = weakref.WeakKeyDictionary()


def setup(app: Any, **settings: Any) -> Settings:
    """Make ``app`` ready for reliable tasks: broker, store, result backend and safe defaults.

    Args:
        app: A Celery app. Settings it was given before stay, and one that would break the promise
            is an error.
        settings: See :class:`gwi_celery.config.Settings`; they take precedence over
            ``app.conf.gwi_*``, and those over the environment.

    Returns:
        The settings in force.

    Raises:
        ConfigurationError: an unknown or impossible setting; the message says what to do.
    """
    register()
    tracebacks.install()
    versions.warn_outside()
    app = _unwrapped(app)
    _arguments[app] = dict(settings)
    loaded = _configure(app)
    logs.configure(loaded)
    tracing.configure(loaded)
    app.steps["worker"].update(
        (
            PoolCheck,
            StopFlag,
            HealthServer,
            ShutdownGrace,
            FolderWatch,
            Upkeep,
            "gwi_celery.provisioned:NoEvents",
        )
    )
    sending.keep_promises(app)
    beat.install()
    app.amqp.Connection = Connection
    # The entry point says the same, but only of an installed package, not of a plain checkout.
    app.loader.override_backends = {**app.loader.override_backends, **_BACKENDS}
    # app.config_from_object() after setup() starts from an empty configuration.
    app.on_after_configure.connect(_configured_again, sender=app, weak=False, dispatch_uid="gwi")
    signals.worker_process_init.connect(_trace_in_child, weak=False, dispatch_uid=__name__)
    return loaded


def _trace_in_child(**kwargs: Any) -> None:
    """A pool process has just made itself Celery's own tracers."""
    app = _unwrapped(current_app)
    if app in _integrations and app.conf.worker_consumer == _CONSUMER:
        from gwi_celery.reliability import tracer  # producers do without it

        tracer.install(app)


def _configured_again(sender: Any, **kwargs: Any) -> None:
    """Celery logs what is raised here, and goes on: the error is kept for the next use."""
    try:
        _configure(sender)
    except ConfigurationError as exc:
        _integrations.pop(sender, None)
        _refused[sender] = exc
        conf = sender.conf
        if not config.urls(conf.broker_url):
            conf.broker_url = "embedded://"
        conf.broker_transport_options = {
            **(conf.broker_transport_options or {}),
            REFUSED_OPTION: str(exc),
        }


def _configure(app: Any) -> Settings:
    conf = app.conf
    known = _integrations.get(app)
    if known is not None:
        # What an earlier setup() chose is not the app's own choice.
        for name, value in known.applied.items():
            if conf.changes.get(name) == value:
                del conf.changes[name]
    own, prefix = _own_settings(app)
    loaded = config.load(_arguments[app], own, prefix=prefix)
    ours: dict[str, Any] = {name: needed for name, (needed, _) in _REQUIRED.items()}
    for name, (needed, otherwise) in _REQUIRED.items():
        if conf.value_set_for(name) and conf[name] != needed:
            raise ConfigurationError(
                f"app.conf.{name} is {conf[name]!r}, and reliable jobs need {needed!r}: otherwise "
                f"{otherwise}. Leave it out"
            )
    if not conf.broker_url:
        ours["broker_url"] = loaded.effective_broker_url
    elif loaded.broker_url and conf.broker_url != loaded.broker_url:
        raise ConfigurationError(
            f"two brokers: app.conf.broker_url is {conf.broker_url!r}, and the setting is "
            f"{loaded.broker_url!r}; keep one"
        )
    urls = config.urls(ours.get("broker_url") or conf.broker_url)
    if any(url.startswith(("embedded:", "pubsub:")) for url in urls):
        ours["broker_transport_options"] = {
            "lease_seconds": loaded.lease_seconds,
            "max_deliveries": loaded.max_deliveries,
            **(conf.broker_transport_options or {}),
        }
    for url in urls:
        if url.startswith("pubsub:"):
            from gwi_celery import provisioned

            ours.update(provisioned.settings(conf, url, ours["broker_transport_options"]))
        elif url.startswith(("redis:", "rediss:")):
            _check_redis(url)
    if not conf.value_set_for("worker_consumer"):
        ours["worker_consumer"] = _CONSUMER
    store_url = loaded.effective_store_url
    check_store_url(store_url)
    if not conf.result_backend:
        ours["result_backend"] = _where_results_go(store_url)
    elif str(conf.result_backend).startswith(("redis:", "rediss:")):
        _check_redis(conf.result_backend)
    if app in _refused or (
        known is not None and known.applied.get("broker_url") != ours.get("broker_url")
    ):
        _forget_connections(app)
    for name, value in ours.items():
        conf[name] = value
    _refused.pop(app, None)
    _integrations[app] = Integration(loaded, ours)
    return loaded


def _forget_connections(app: Any) -> None:
    """What the app opened before leads to another broker, or to none."""
    if app._pool is not None:
        app._pool.force_close_all()
        app._pool = None
    app.amqp._producer_pool = None
    if known := _brokers.pop(app, None):
        known.close()


def _check_redis(url: str) -> None:
    if importlib.util.find_spec("redis") is None:
        raise ConfigurationError(
            f"{url.partition('@')[2] or url!r} needs the Redis client: pip install 'gwi-celery[redis]'"
        )


def _where_results_go(store_url: str) -> str:
    """Beside the jobs, unless that is a database for each tenant."""
    if store_url.startswith("firestore:"):
        from gwi_celery.firestore.url import parse

        if parse(store_url).database_per_tenant:
            raise ConfigurationError(
                f"the store {store_url!r} has a database for each tenant, and Celery asks for "
                "results by a task's id alone: set app.conf.result_backend to "
                "firestore://project/prefix?database=... with one database for all of them, or to "
                "'disabled://'"
            )
    return store_url


def _own_settings(app: Any) -> tuple[dict[str, Any], str]:
    """``app.conf.gwi_*``, as far as they were set and however they are spelt, and their prefix.

    With a namespace, as in ``config_from_object("django.conf:settings", namespace="CELERY")``, that is
    ``CELERY_GWI_...``; without one ``GWI_...`` in capitals counts too.
    """
    conf, namespace = app.conf, app.namespace or ""
    prefix = f"{namespace.rstrip('_')}_" if namespace else ""
    found: dict[str, Any] = {}
    for key in map(str, conf):
        own = key[len(prefix) :] if prefix and key.startswith(prefix) else key
        if own.startswith("gwi_") or (own.startswith("GWI_") and (own != key or not prefix)):
            found[own.lower()] = conf[key]
    return found, prefix


def _unwrapped(app: Any) -> Any:
    """The app itself, where ``celery.current_app`` hands out a proxy."""
    return app._get_current_object() if hasattr(app, "_get_current_object") else app


def integration(app: Any) -> Integration:
    """What ``setup(app)`` made.

    Raises ConfigurationError before it was called, and when what was loaded later can't be used.
    """
    app = _unwrapped(app)
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


def store_for(app: Any) -> Store:
    """The store of an app that was set up; with ``task_always_eager`` that of its eager calls."""
    if app.conf.task_always_eager:
        return integration(app).eager_store
    return integration(app).store


def forget_eager_jobs() -> None:
    """Empty the memory that eager calls keep their jobs in, of every app of this process."""
    for known in list(_integrations.values()):
        known.forget_eager_jobs()


class _AppBroker:
    """An app's broker in this process, for operators: made when first asked for, closed at exit."""

    def __init__(self, app: Any) -> None:
        self.connection = app.connection_for_write()
        self.pid = os.getpid()
        broker: Broker | None = getattr(self.connection.transport, "broker", None)
        if broker is None:
            raise ConfigurationError(
                f"the broker {self.connection.transport_cls!r} has no sizes, dead letters or "
                "redrives of this package's: use embedded:// or pubsub://"
            )
        self.broker = broker
        self.close = weakref.finalize(self, _close, broker, self.pid)


def _close(broker: Broker, pid: int) -> None:
    if os.getpid() == pid:  # a fork's is its parent's
        broker.close()


_brokers: weakref.WeakKeyDictionary[Any, _AppBroker] = weakref.WeakKeyDictionary()
_brokers_lock = forks.lock()


def broker_for(app: Any) -> Broker:
    """The app's broker, for operators and tests: sizes, dead letters, redrives.

    One for each app and process, however often it is asked for; closed at the process's end. A fork
    gets its own.
    """
    app = _unwrapped(app)
    with _brokers_lock:
        known = _brokers.get(app)
        if known is None or known.pid != os.getpid():
            known = _brokers[app] = _AppBroker(app)
        return known.broker
