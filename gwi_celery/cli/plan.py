"""What an app's own configuration needs of Google Cloud, for ``gwi init`` and ``gwi doctor``."""

from __future__ import annotations

from typing import Any

from gwi_celery import deployment
from gwi_celery.brokers.base import QueueSpec
from gwi_celery.brokers.pubsub.options import OPTIONS, parse
from gwi_celery.config import urls
from gwi_celery.deployment import Deployment
from gwi_celery.errors import ConfigurationError
from gwi_celery.firestore.url import parse as parse_store
from gwi_celery.integration import settings_for
from gwi_celery.transport.declaring import prepared, queue_spec


def queues_of(app: Any) -> list[QueueSpec]:
    """The app's task queues, as its channels would declare them. Raises ConfigurationError."""
    return [
        queue_spec(
            queue.name,
            queue.durable,
            queue.auto_delete or queue.exclusive,
            prepared(queue.queue_arguments, expires=queue.expires, message_ttl=queue.message_ttl),
        )
        for queue in app.amqp.queues.values()
    ]


def options_of(app: Any) -> dict[str, Any]:
    """Those of ``pubsub://`` in the app's ``broker_transport_options``."""
    given = app.conf.broker_transport_options or {}
    return {name: value for name, value in given.items() if name in OPTIONS}


def plan_of(app: Any) -> Deployment:
    """Raises ConfigurationError where the broker is not Pub/Sub."""
    url = next((u for u in urls(app.conf.broker_url) if u.startswith("pubsub:")), None)
    if url is None:
        raise ConfigurationError(
            f"{app.conf.broker_url} needs nothing of Google Cloud: set GCP_PROJECT_ID, or a "
            "pubsub:// broker_url"
        )
    options = parse(url, options_of(app))
    store_url = settings_for(app).effective_store_url
    store = parse_store(store_url) if store_url.startswith("firestore:") else None
    return deployment.plan(options, queues_of(app), store)
