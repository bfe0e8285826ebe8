"""Temporary queues that killed processes left behind: Pub/Sub would keep each for a day.

A project may have 10,000 subscriptions, and a worker that is killed leaves four. Pub/Sub doesn't tell
who reads from one, so each gets a message that has expired: a process that lives acks it as it arrives,
however busy it is, and where it is still there after a while nobody reads. If that was wrong after all,
the reader makes its queue again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from gwi_celery.brokers.base import OutgoingMessage
from gwi_celery.brokers.pubsub import naming
from gwi_celery.brokers.pubsub.admin import Admin
from gwi_celery.brokers.pubsub.broker import PubSubBroker
from gwi_celery.brokers.pubsub.client import pb
from gwi_celery.brokers.pubsub.topology.paths import Paths
from gwi_celery.errors import NotFound

logger = logging.getLogger(__name__)

#: Seconds that whoever lives has for the message.
_PATIENCE = 20.0
#: Queues in one sweep: three admin calls each, of the project's 6,000 a minute.
_AT_MOST = 500
#: Immediate pulls that may say of a queue with a message that it is empty, and seconds between two.
_PULLS, _PAUSE = 6, 0.1
#: Seconds: so that a probe has expired by the clock of whoever reads it, and is dropped.
_LONG_AGO = -86400.0


def sweep(broker: PubSubBroker, patience: float = _PATIENCE) -> int:
    """Delete temporary queues that nobody reads; how many. Raises as :meth:`Client.call`."""
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


def _ready(broker: PubSubBroker, path: str) -> Iterator[str]:
    """Ids of what nobody took; it is given back."""
    for _ in range(_PULLS):
        request = pb["PullRequest"](subscription=path, max_messages=100, return_immediately=True)
        try:
            received = broker.client.call("Pull", request, path).received_messages
        except NotFound:  # its reader has just left
            return
        if received:
            ids = [item.ack_id for item in received]
            back = pb["ModifyAckDeadlineRequest"](
                subscription=path, ack_ids=ids, ack_deadline_seconds=0
            )
            broker.client.call("ModifyAckDeadline", back, path)
            yield from (item.message.message_id for item in received)
            return
        time.sleep(_PAUSE)
