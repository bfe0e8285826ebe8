"""``setup(app)``: from a plain Celery app to one whose jobs are reliable."""

from __future__ import annotations

import os
import weakref
from typing import Any

from celery import current_app, signals

from gwi_celery import beat, config, forks, tracebacks
from gwi_celery.brokers.base import Broker
from gwi_celery.config import Settings
from gwi_celery.errors import ConfigurationError
from gwi_celery.reliability import sending
from gwi_celery.reliability.stopping import StopFlag
from gwi_celery.service.grace import ShutdownGrace
from gwi_celery.service.worker import FolderWatch, HealthServer
from gwi_celery.stores.base import Store
from gwi_celery.stores.sqlite import SqliteStore
from gwi_celery.stores.url import open_store
from gwi_celery.telemetry import logs, tracing
from gwi_celery.transport import register

#: What a reliable app needs of Celery: setting -> (its value, what would happen otherwise).
_REQUIRED: dict[str, tuple[Any, str]] = {
    "task_acks_late": (True, "a worker that is killed would lose its jobs"),
    "task_reject_on_worker_lost": (True, "a pool process that is killed would lose its job"),
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

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
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


def setup(app: Any, **settings: Any) -> Settings:
    """Make ``app`` ready for reliable tasks: broker, store, result backend and safe defaults.

    Args:
        app: A Celery app. Settings it was given before stay, and one that would break the promise
            is an error.
        settings: See :class:`gwi_celery.config.Settings`; they go before ``app.conf.gwi_*``, which
            goes before the environment.

    Returns:
        The settings in force.

    Raises:
        ConfigurationError: an unknown or impossible setting; the message says what to do.
    """
    register()
    tracebacks.install()
    app = _unwrapped(app)
    loaded = _configure(app, settings)
    logs.configure(loaded)
    tracing.configure(loaded)
    app.steps["worker"].update(
        (StopFlag, HealthServer, ShutdownGrace, FolderWatch, "gwi_celery.provisioned:NoEvents")
    )
    sending.keep_promises(app)
    beat.install()
    # The entry point says the same, but only of an installed package, not of a plain checkout.
    app.loader.override_backends = {**app.loader.override_backends, **_BACKENDS}

    def configured_again(sender: Any, **kwargs: Any) -> None:
        # app.config_from_object() after setup() starts from an empty configuration.
        _configure(sender, settings)

    app.on_after_configure.connect(configured_again, sender=app, weak=False)
    signals.worker_process_init.connect(_trace_in_child, weak=False, dispatch_uid=__name__)
    return loaded


def _trace_in_child(**kwargs: Any) -> None:
    """A pool process has just made itself Celery's own tracers."""
    app = _unwrapped(current_app)
    if app in _integrations and app.conf.worker_consumer == _CONSUMER:
        from gwi_celery.reliability import tracer  # producers do without it

        tracer.install(app)


def _configure(app: Any, arguments: dict[str, Any]) -> Settings:
    conf = app.conf
    loaded = config.load(arguments, _own_settings(conf))
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
    broker_url = str(ours.get("broker_url") or conf.broker_url)
    if broker_url.startswith(("embedded:", "pubsub:")):
        ours["broker_transport_options"] = {
            "lease_seconds": loaded.lease_seconds,
            "max_deliveries": loaded.max_deliveries,
            **(conf.broker_transport_options or {}),
        }
    if broker_url.startswith("pubsub:"):
        from gwi_celery import provisioned

        ours.update(provisioned.settings(conf, broker_url, ours["broker_transport_options"]))
    if not conf.value_set_for("worker_consumer"):
        ours["worker_consumer"] = _CONSUMER
    store_url = loaded.effective_store_url
    if not conf.result_backend:
        ours["result_backend"] = _where_results_go(store_url)
    for name, value in ours.items():
        conf[name] = value
    _integrations[app] = Integration(loaded)
    return loaded


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


def _own_settings(conf: Any) -> dict[str, Any]:
    """``app.conf.gwi_*``, as far as they were set."""
    return {str(key): conf[key] for key in conf if str(key).startswith("gwi_")}


def _unwrapped(app: Any) -> Any:
    """The app itself, where ``celery.current_app`` hands out a proxy."""
    return app._get_current_object() if hasattr(app, "_get_current_object") else app


def integration(app: Any) -> Integration:
    """What ``setup(app)`` made. Raises ConfigurationError before it was called."""
    app = _unwrapped(app)
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


def broker_for(app: Any) -> Broker:
    """A broker of the app's own, for operators and tests: sizes, dead letters, redrives."""
    with app.connection_for_write() as connection:
        transport = connection.transport
        broker: Broker | None = getattr(transport, "broker", None)
    if broker is None:
        raise ConfigurationError(
            f"the broker {app.conf.broker_url!r} is none of ours: use the embedded:// transport"
        )
    return broker
