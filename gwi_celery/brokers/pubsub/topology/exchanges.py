"""Exchanges as topics, whose label says the exchange's type."""

from __future__ import annotations

from typing import Any

from gwi_celery.brokers.checks import check_exchange_type, check_same_type
from gwi_celery.brokers.pubsub import naming
from gwi_celery.brokers.pubsub.admin import Admin, made_though_deleted
from gwi_celery.brokers.pubsub.client import Client, FieldMask, pb
from gwi_celery.brokers.pubsub.options import PubSubOptions
from gwi_celery.brokers.pubsub.topology.drift import Drift
from gwi_celery.brokers.pubsub.topology.paths import Paths
from gwi_celery.brokers.routing import DIRECT
from gwi_celery.errors import BrokerError, NotFound


class Exchanges:
    """The exchanges that one connection knows."""

    def __init__(
        self, client: Client, admin: Admin, options: PubSubOptions, paths: Paths, drift: Drift
    ) -> None:
        self._client = client
        self._admin = admin
        self._options = options
        self._paths = paths
        self._drift = drift
        self._types: dict[str, str] = {}
        #: Exchanges declared by this connection, to be recreated if they are deleted.
        self._declared: dict[str, str] = {}

    def declare(self, name: str, type: str) -> None:
        check_exchange_type(name, type)
        known = self.type_of(name)
        if known is None:
            known = self._make(name, type)
        if name not in self._declared:
            self._drift.compare_topic(self._paths.topic(name))
        check_same_type(name, known, type)
        self._types[name] = self._declared[name] = known

    def _make(self, name: str, type: str) -> str:
        if not self._options.managed:
            return type
        labels = {naming.EXCHANGE_LABEL: type, **naming.name_labels(name)}
        path = self._paths.topic(name)

        def existing() -> Any:
            if self._admin.create_topic(path, labels):
                return None
            return self._client.persist("GetTopic", pb["GetTopicRequest"](topic=path), path)

        topic = made_though_deleted(existing)
        if topic is None:
            return type
        if naming.EXCHANGE_LABEL in topic.labels:  # made by another process just now
            return str(topic.labels[naming.EXCHANGE_LABEL])
        # So far it is only a queue's topic.
        topic.labels[naming.EXCHANGE_LABEL] = type
        request = pb["UpdateTopicRequest"](topic=topic, update_mask=FieldMask(paths=["labels"]))
        try:
            self._client.persist("UpdateTopic", request, path)
        except BrokerError:
            if not self._options.lax:  # the emulator can't update a topic's labels
                raise
        return type

    def type_of(self, name: str) -> str | None:
        """The type of an exchange; None if there is none."""
        if name == "":
            return DIRECT
        known = self._types.get(name)
        if known is not None or not self._options.managed:
            return known
        path = self._paths.topic(name)
        try:
            topic = self._client.persist("GetTopic", pb["GetTopicRequest"](topic=path), path)
        except NotFound:
            return None
        found = topic.labels.get(naming.EXCHANGE_LABEL)
        if found:
            self._types[name] = found
        return found or None

    def declared(self, name: str) -> bool:
        """Whether this connection declared it."""
        return name in self._declared

    def restore(self, name: str) -> bool:
        """Recreate an exchange that may be gone. False if this connection didn't declare it."""
        self.look_again(name)
        type = self._declared.get(name)
        if type is not None:
            self.declare(name, type)
        return type is not None

    def look_again(self, name: str) -> None:
        """Forget what is known of it: it may have changed."""
        self._types.pop(name, None)

    def forget(self, name: str) -> None:
        self.look_again(name)
        self._declared.pop(name, None)

    def delete(self, name: str) -> None:
        """Delete its topic, and the bindings to it. If a queue has its name, the topic stays."""
        topic, own = self._paths.topic(name), self._paths.subscription(name)
        for subscription in self._admin.subscriptions():
            bound = subscription.topic == topic and "~b" in subscription.name
            noted = subscription.topic == self._admin.signs_topic
            if bound or (noted and subscription.name.startswith(own + "~b")):
                self._admin.delete_subscription(subscription.name)
        if self._admin.get_subscription(own) is None:
            self._admin.delete_topic(topic)

    def topics(self) -> dict[str, str]:
        """Path of each exchange's topic -> the exchange's name."""
        names = {}
        for topic in self._admin.topics():
            name = self._paths.name_of(topic.name, topic.labels)
            if name is not None and naming.EXCHANGE_LABEL in topic.labels:
                names[topic.name] = name
                self._types.setdefault(name, topic.labels[naming.EXCHANGE_LABEL])
        return names
