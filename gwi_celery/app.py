"""``setup(app)``: from a plain Celery app to one whose jobs are reliable."""

from __future__ import annotations

import importlib.util
import weakref
from typing import Any

from celery import current_app, signals

from gwi_celery import beat, config, required, tracebacks, versions
from gwi_celery import integration as integrations
from gwi_celery.authority import AUTHORITY_OPTION
from gwi_celery.config import Settings
from gwi_celery.errors import ConfigurationError
from gwi_celery.integration import (
    Integration,
    broker_for,
    integration,
    settings_for,
    source_of,
    store_for,
    unwrapped,
)
from gwi_celery.reliability import sending
from gwi_celery.stores.url import check_store_url
from gwi_celery.telemetry import logs, tracing
from gwi_celery.transport import check_url, register
from gwi_celery.transport.connection import REFUSED_OPTION, Connection

#: All but ``setup`` moved to ``gwi_celery.integration``; they can still be imported from here.
__all__ = ["broker_for", "integration", "settings_for", "setup", "source_of", "store_for"]

#: Scheme of a ``result_backend`` URL -> its class.
_BACKENDS = {
    "embedded": "gwi_celery.backends.embedded:EmbeddedBackend",
    "firestore": "gwi_celery.backends.firestore:FirestoreBackend",
}


#: What a worker does beside Celery's own steps. Named by strings, so that producers don't import it.
_BOOTSTEPS = (
    "gwi_celery.provisioned:NoEvents",
    "gwi_celery.service.worker:HealthServer",
    "gwi_celery.upkeep:Upkeep",
    "gwi_celery.worker.grace:ShutdownGrace",
    "gwi_celery.worker.pausing:PauseWatch",
    "gwi_celery.worker.pools:PoolCheck",
    "gwi_celery.worker.stopping:FolderWatch",
    "gwi_celery.worker.stopping:StopFlag",
)

#: The consumer class with which Celery's worker survives any message.
_CONSUMER = "gwi_celery.worker.consumer:Consumer"


#: App -> the arguments of its last ``setup()``.
_arguments: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


def setup(app: Any, **settings: Any) -> Settings:
    """Make ``app`` ready for reliable tasks: broker, store, result backend and safe defaults.

    Args:
        app: A Celery app. Settings that it already has stay; one that would break the guarantee is
            an error.
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
    app = unwrapped(app)
    _arguments[app] = dict(settings)
    loaded = _configure(app)
    logs.configure(loaded)
    tracing.configure(loaded)
    app.steps["worker"].update(_BOOTSTEPS)
    sending.keep_promises(app)
    beat.install()
    app.amqp.Connection = Connection
    # The entry point does the same, but only for an installed package, not for a plain checkout.
    app.loader.override_backends = {**app.loader.override_backends, **_BACKENDS}
    # app.config_from_object() after setup() starts from an empty configuration.
    app.on_after_configure.connect(_configured_again, sender=app, weak=False, dispatch_uid="gwi")
    signals.worker_process_init.connect(_trace_in_child, weak=False, dispatch_uid=__name__)
    return loaded


def _trace_in_child(**kwargs: Any) -> None:
    """Replace the tracers that Celery has just built in a new pool process."""
    app = unwrapped(current_app)
    if integrations.known(app) is not None and app.conf.worker_consumer == _CONSUMER:
        from gwi_celery.worker import tracer  # not needed by producers

        tracer.install(app)


def _configured_again(sender: Any, **kwargs: Any) -> None:
    """Celery only logs what is raised here, so the error is kept, and raised at the next use."""
    try:
        _configure(sender)
    except ConfigurationError as exc:
        integrations.refuse(sender, exc)
        conf = sender.conf
        if not config.urls(conf.broker_url):
            conf.broker_url = "embedded://"
        conf.broker_transport_options = {
            **(conf.broker_transport_options or {}),
            REFUSED_OPTION: str(exc),
        }


def _configure(app: Any) -> Settings:
    conf = app.conf
    known = integrations.known(app)
    if known is not None:
        # What an earlier setup() chose is not the app's own choice.
        for name, value in known.applied.items():
            if conf.changes.get(name) == value:
                del conf.changes[name]
    own, prefix = config.in_app(app)
    loaded = config.load(_arguments[app], own, prefix=prefix)
    ours: dict[str, Any] = {name: needed for name, (needed, _) in required.REQUIRED.items()}
    required.check(conf)
    if not conf.broker_url:
        ours["broker_url"] = loaded.effective_broker_url
    elif loaded.broker_url and conf.broker_url != loaded.broker_url:
        raise ConfigurationError(
            f"two brokers: app.conf.broker_url is {conf.broker_url!r}, and the setting is "
            f"{loaded.broker_url!r}; keep one"
        )
    made = Integration(loaded, ours, config.sources(_arguments[app], own, prefix))
    urls = config.urls(ours.get("broker_url") or conf.broker_url)
    if any(url.startswith(("embedded:", "pubsub:")) for url in urls):
        ours["broker_transport_options"] = {
            "lease_seconds": loaded.lease_seconds,
            "max_deliveries": loaded.max_deliveries,
            **(conf.broker_transport_options or {}),
            AUTHORITY_OPTION: made.authority.id,
        }
    elif loaded.signing_keys or loaded.queue_rights:
        raise ConfigurationError(
            "signing_keys and queue_rights need one of this package's brokers (embedded:// or "
            f"pubsub://): with {urls!r} nobody would sign or check the messages"
        )
    for url in urls:
        if not conf.broker_transport:
            check_url(url, setting=url == loaded.broker_url)
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
    if integrations.refused(app) or (
        known is not None
        and (
            known.applied.get("broker_url") != ours.get("broker_url")
            or not known.authority.same(loaded)
        )
    ):
        _forget_connections(app)
    for name, value in ours.items():
        conf[name] = value
    integrations.keep(app, made)
    return loaded


def _forget_connections(app: Any) -> None:
    """Drop the connections that the app opened before: they lead to its former broker, or to none."""
    if app._pool is not None:
        app._pool.force_close_all()
        app._pool = None
    app.amqp._producer_pool = None
    integrations.close_broker(app)


def _check_redis(url: str) -> None:
    if importlib.util.find_spec("redis") is None:
        raise ConfigurationError(
            f"{url.partition('@')[2] or url!r} needs the Redis client: pip install 'gwi-celery[redis]'"
        )


def _where_results_go(store_url: str) -> str:
    """The ``result_backend`` for a store. Raises ConfigurationError for a database per tenant."""
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
