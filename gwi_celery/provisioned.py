"""Switches off what a worker can't have on provisioned Pub/Sub, where nothing may be created.

Remote control and events need temporary queues and exchanges. ``setup()`` changes their settings, unless
the app has set them. Heartbeat events have no setting, so a bootstep switches them off, unless the
transport option ``queues`` names a topic for their exchange.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery import bootsteps

from gwi_celery.brokers.pubsub.options import OPTIONS, PubSubOptions, parse

#: Settings of features that need queues of their own for each worker.
_OFF = ("worker_enable_remote_control", "worker_send_task_events")


def settings(conf: Any, broker_url: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Celery's settings for a broker URL and its transport options. Empty unless it is provisioned."""
    if _options(broker_url, options).managed:
        return {}
    return {name: False for name in _OFF if not conf.value_set_for(name)}


def _options(broker_url: str, options: Mapping[str, Any]) -> PubSubOptions:
    known = {name: value for name, value in options.items() if name in OPTIONS}
    return parse(broker_url.partition(";")[0], known)


class NoEvents(bootsteps.Step):
    """Worker bootstep: no heartbeats and no gossip where the exchange of events has no topic."""

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        conf = worker.app.conf
        url = str(conf.broker_read_url or conf.broker_url)
        if not url.startswith("pubsub:"):
            return
        options = _options(url, conf.broker_transport_options or {})
        if not options.managed and conf.event_exchange not in options.queues:
            worker.options.update(without_heartbeat=True, without_gossip=True, without_mingle=True)
