"""Temporary queues that killed processes left behind: Pub/Sub would keep each for a day.

A project may have 10,000 subscriptions, and a worker that is killed leaves four. Pub/Sub doesn't tell
who reads from one, so each gets an expired message as a probe: a living process acks it on arrival,
however busy it is, and if it is still there after a while nobody reads the queue. Should that be wrong
after all, the reader recreates its queue.
"""

from __future__ import annotations

import logging
import time

from gwi_celery.brokers.base import OutgoingMessage
from gwi_celery.brokers.pubsub import naming
from gwi_celery.brokers.pubsub.admin import Admin
from gwi_celery.brokers.pubsub.broker import PubSubBroker
from gwi_celery.brokers.pubsub.client import pb
from gwi_celery.brokers.pubsub.topology.paths import Paths
from gwi_celery.errors import NotFound

logger = logging.getLogger(__name__)

#: Seconds that a living reader has for the probe.
_PATIENCE = 20.0
#: Queues in one sweep: three admin calls each, of the project's 6,000 a minute.
_AT_MOST = 500
#: Immediate pulls after which a queue counts as empty (each may miss a message), and seconds between two.
_PULLS, _PAUSE = 6, 0.1
#: Seconds: a probe that old has expired by any reader's clock, and is dropped.
_LONG_AGO = -86400.0


def sweep(broker: PubSubBroker, patience: float = _PATIENCE) -> int:
    """Delete temporary queues that nobody reads; returns how many. Raises as :meth:`Client.call`."""
    if not broker.options.managed:
        return 0
    admin, paths = Admin(broker.client, broker.options), Paths(broker.options)
    found = {subscription.name: subscription for subscription in admin.subscriptions()}
    queues: dict[str, str] = {}
    for path, subscription in found.items():
        name = paths.name_of(path, subscription.labels)
        own = name is not None and paths.subscription(name) == path
        if name is not None and own and naming.TEMPORARY_LABEL in subscription.labels:
            queues[path] = name
    queues = dict(list(queues.items())[:_AT_MOST])
    if not queues:
        return 0
    probe = OutgoingMessage(b"", ttl=_LONG_AGO)
    made = [broker.publisher.made("", name, probe) for name in queues.values()]
    sent = set(broker.publisher.send(paths.temporary_topic(), made))
    time.sleep(patience)
    deleted = 0
    for path, name in queues.items():
        if sent.isdisjoint(_ready(broker, path)):
            continue
        logger.info("queue %r is deleted: nobody reads it any more", name)
        for other in [other for other in found if other.startswith(f"{path}~")]:
            admin.delete_subscription(other)
        admin.delete_subscription(path)
        deleted += 1
    return deleted


def _ready(broker: PubSubBroker, path: str) -> list[str]:
    """Ids of the messages that nobody took. They are given back."""
    request = pb["PullRequest"](subscription=path, max_messages=100, return_immediately=True)
    try:
        for _ in range(_PULLS):
            received = broker.client.call("Pull", request, path).received_messages
            if received:
                ids = [item.ack_id for item in received]
                back = pb["ModifyAckDeadlineRequest"](
                    subscription=path, ack_ids=ids, ack_deadline_seconds=0
                )
                broker.client.call("ModifyAckDeadline", back, path)
                return [item.message.message_id for item in received]
            time.sleep(_PAUSE)
    except NotFound:  # its reader has just left
        pass
    return []
