"""What Pub/Sub keeps of bindings: their subscriptions, and the signs of those that need none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gwi_celery.brokers.base import Binding
from gwi_celery.brokers.pubsub import naming
from gwi_celery.brokers.pubsub.admin import Admin
from gwi_celery.brokers.pubsub.topology.exchanges import Exchanges
from gwi_celery.brokers.pubsub.topology.paths import Paths
from gwi_celery.brokers.pubsub.topology.sources import Queue
from gwi_celery.brokers.routing import DIRECT


class Bindings:
    """All connections' bindings, as one connection finds them."""

    def __init__(self, admin: Admin, paths: Paths, exchanges: Exchanges) -> None:
        self._admin = admin
        self._paths = paths
        self._exchanges = exchanges

    def note(self, queue: Queue) -> None:
        """Leave a sign of bindings to the exchange of the queue's own name.

        These need no subscription, as queue and exchange share a topic, but other connections must know
        of them. A queue without a sign or another binding counts as bound by its name, as by Celery.
        """
        name = queue.spec.name
        own = queue.bound.get(name, set()) if self._paths.topic(name) == queue.topic else set()
        elsewhere = any(keys for exchange, keys in queue.bound.items() if exchange != name)
        if own == {name} and self._exchanges.type_of(name) == DIRECT and not elsewhere:
            return
        for key in own - queue.noted:
            labels = {**naming.name_labels(name), **naming.key_labels(key)}
            self._admin.sign(self._paths.binding(name, name, key), labels)
            queue.noted.add(key)

    def all(self) -> Iterator[Binding]:
        topics = self._exchanges.topics()
        for subscription in self._admin.subscriptions():
            binding = self._of(subscription, topics)
            if binding is not None:
                yield binding

    def of_queue(self, name: str) -> Iterator[Binding]:
        own = self._paths.subscription(name)
        topics: dict[str, str] | None = None
        for subscription in self._admin.subscriptions():
            if subscription.name.startswith(own + "~b"):
                topics = self._exchanges.topics() if topics is None else topics
                binding = self._of(subscription, topics)
                if binding is not None:
                    yield binding

    def _of(self, subscription: Any, topics: dict[str, str]) -> Binding | None:
        path, parted, _ = subscription.name.rpartition("~b")
        key = naming.key_of(subscription.labels)
        queue = self._paths.name_of(path, subscription.labels)
        if not parted or key is None or queue is None:
            return None
        signed = subscription.topic == self._admin.signs_topic
        exchange = queue if signed else topics.get(subscription.topic)
        return None if exchange is None else Binding(queue, exchange, key)
