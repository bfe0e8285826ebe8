"""Full names (``projects/P/topics/T``) of the topics and subscriptions of queues and exchanges."""

from __future__ import annotations

from typing import Any

from gwi_celery.brokers.pubsub import naming
from gwi_celery.brokers.pubsub.options import PubSubOptions


class Paths:
    """Paths in one project, with one prefix."""

    def __init__(self, options: PubSubOptions) -> None:
        self._options = options

    def topic(self, name: str) -> str:
        """Path of an exchange's topic, or of a queue's own."""
        mapped = self._options.queues.get(name, {}).get("topic")
        return self._path("topics", mapped or naming.topic_id(self._options.prefix, name))

    def subscription(self, queue: str) -> str:
        """Path of a queue's own subscription."""
        mapped = self._options.queues.get(queue, {}).get("subscription")
        return self._path(
            "subscriptions", mapped or naming.subscription_id(self._options.prefix, queue)
        )

    def binding(self, queue: str, exchange: str, key: str) -> str:
        """Path of a binding's subscription."""
        id = naming.binding_id(self._options.prefix, queue, exchange, key)
        return self._path("subscriptions", id)

    def temporary_topic(self) -> str:
        """Path of the topic that temporary queues share."""
        return self._path("topics", naming.temporary_topic_id(self._options.prefix))

    def mapped_dead_topic(self, queue: str) -> str | None:
        """Path of the topic that the options name for a queue's dead letter; None: they name none."""
        mapped = self._options.queues.get(queue, {}).get("dead_letter_topic")
        return self._path("topics", mapped) if mapped else None

    def name_of(self, path: str, labels: Any) -> str | None:
        """The exchange or queue that a path stands for; None if it stands for neither."""
        return naming.name_of(self._options.prefix, id_of(path), labels)

    def _path(self, kind: str, id: str) -> str:
        return id if id.startswith("projects/") else f"projects/{self._options.project}/{kind}/{id}"


def id_of(path: str) -> str:
    """The last part of a path."""
    return path.rpartition("/")[2]
