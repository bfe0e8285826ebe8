"""What a queue's subscriptions should be: from its spec and the options, without a call."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from gwi_celery.brokers.base import DEAD_LETTER_SUFFIX, QueueSpec, dead_letter_queue
from gwi_celery.brokers.pubsub import naming
from gwi_celery.brokers.pubsub.client import pb
from gwi_celery.brokers.pubsub.options import PubSubOptions
from gwi_celery.brokers.pubsub.topology.paths import Paths
from gwi_celery.errors import ConfigurationError

#: Seconds without a reader after which a temporary queue's subscription expires: Pub/Sub's shortest.
EXPIRATION = 86400
#: Seconds: Pub/Sub's default of how long a subscription keeps messages.
RETENTION = 7 * 86400
#: Seconds for which a dead letter is kept: Pub/Sub's longest, as somebody has to look into it meanwhile.
DEAD_RETENTION = 31 * 86400
#: Seconds: Pub/Sub's shortest ack deadline, and the one that gcloud gives by default.
_SHORTEST_DEADLINE = 10.0
#: Deliveries after which Pub/Sub itself dead-letters, without a reason: its maximum, so that ours come
#: first.
_FORWARD_AFTER = 100


class Desired:
    """Subscriptions as one connection's options want them."""

    def __init__(self, options: PubSubOptions, paths: Paths) -> None:
        self._options = options
        self._paths = paths

    @property
    def dead_kept(self) -> float:
        """Seconds for which a dead letter's subscription keeps messages."""
        # Google's emulator takes 7 days at most.
        return (self._options.retention or RETENTION) if self._options.lax else DEAD_RETENTION

    def levels(self, spec: QueueSpec) -> list[tuple[int, str, range]]:
        """(lowest priority, subscription, priorities) of each level, from the lowest."""
        own = self._paths.subscription(spec.name)
        levels = self._options.priority_levels
        if len(levels) < 2 or spec.temporary or spec.name.endswith(DEAD_LETTER_SUFFIX):
            return [(0, own, range(10))]
        ends = [*levels[1:], 10]
        return [
            (level, own if level == 0 else naming.level_id(own, level), range(level, end))
            for level, end in zip(levels, ends, strict=True)
        ]

    def subscriptions(self, spec: QueueSpec, topic: str) -> Iterator[tuple[int, Any]]:
        """(lowest priority, subscription) of each level. The lowest is first: the queue's own."""
        levels = self.levels(spec)
        for n, (level, path, _) in enumerate(levels):
            wanted = self.subscription(spec, topic)
            wanted.name = path
            if len(levels) > 1:
                following = levels[n + 1][0] if n + 1 < len(levels) else None
                wanted.filter = naming.priority_filter(level, following)
            yield level, wanted

    def subscription(self, spec: QueueSpec, topic: str) -> Any:
        """A queue's own subscription, on its ``topic``."""
        options = self._options
        wanted = pb["Subscription"](
            name=self._paths.subscription(spec.name),
            topic=topic,
            ack_deadline_seconds=self.ack_deadline(spec),
            labels={**options.labels, **naming.name_labels(spec.name)},
            expiration_policy=pb["ExpirationPolicy"](),
        )
        if spec.message_ttl is not None:
            wanted.labels[naming.TTL_LABEL] = str(math.ceil(spec.message_ttl * 1000))
        if spec.max_deliveries is not None:
            wanted.labels[naming.MAX_DELIVERIES_LABEL] = str(spec.max_deliveries)
        if spec.temporary:
            wanted.labels[naming.TEMPORARY_LABEL] = "1"
            expiration = max(EXPIRATION, math.ceil(spec.expires or 0))
            wanted.expiration_policy.ttl.seconds = expiration
            # Not longer than the queue itself may be idle.
            wanted.message_retention_duration.seconds = min(expiration, RETENTION)
            wanted.filter = naming.queue_filter(spec.name)
            return wanted
        dead = spec.name.endswith(DEAD_LETTER_SUFFIX)
        kept = self.dead_kept if dead else options.retention or RETENTION
        wanted.message_retention_duration.seconds = int(kept)
        wanted.enable_exactly_once_delivery = options.exactly_once
        wanted.enable_message_ordering = options.ordering
        if options.retry_policy is not None:
            shortest, longest = options.retry_policy
            wanted.retry_policy.minimum_backoff.FromMilliseconds(round(shortest * 1000))
            wanted.retry_policy.maximum_backoff.FromMilliseconds(round(longest * 1000))
        if not dead:
            # Without this policy Pub/Sub counts no deliveries.
            wanted.dead_letter_policy.dead_letter_topic = self._paths.topic(
                dead_letter_queue(spec.name)
            )
            wanted.dead_letter_policy.max_delivery_attempts = _FORWARD_AFTER
        return wanted

    def binding(self, spec: QueueSpec, exchange: str, type: str, key: str) -> Any:
        """The subscription that a binding of a queue is."""
        wanted = self.subscription(spec, self._paths.topic(exchange))
        wanted.name = self._paths.binding(spec.name, exchange, key)
        wanted.filter = naming.binding_filter(type, key)
        wanted.labels.update(naming.key_labels(key))
        return wanted

    def ack_deadline(self, spec: QueueSpec) -> int:
        """Seconds a delivery of the queue is leased for."""
        seconds = spec.lease_seconds or self._options.lease_seconds
        if not 10 <= seconds <= 600:
            raise ConfigurationError(
                f"queue {spec.name!r}: lease_seconds is {seconds:g}; Pub/Sub takes 10 to 600"
            )
        return round(seconds)

    def first_lease(self, spec: QueueSpec) -> float:
        """Seconds for which a delivery is leased at least, before that is extended."""
        # Without an admin call a subscription's ack deadline can't be read: take the shortest.
        deadline = float(self.ack_deadline(spec))
        return deadline if self._options.managed else min(deadline, _SHORTEST_DEADLINE)

    def max_deliveries(self, spec: QueueSpec) -> int:
        """Attempts at a message before the dead letter; 0: no limit."""
        own = spec.max_deliveries
        return self._options.max_deliveries if own is None else own


def spec_of(name: str, subscription: Any) -> QueueSpec:
    """What a queue was declared with, as far as its subscription tells."""
    labels = subscription.labels
    ttl = labels.get(naming.TTL_LABEL)
    limit = labels.get(naming.MAX_DELIVERIES_LABEL)
    temporary = naming.TEMPORARY_LABEL in labels
    return QueueSpec(
        name,
        durable=not temporary,
        expires=float(EXPIRATION) if temporary else None,
        message_ttl=int(ttl) / 1000 if ttl else None,
        lease_seconds=float(subscription.ack_deadline_seconds),
        max_deliveries=int(limit) if limit else None,
    )
