"""Drift is what differs between what exists and what the options want: it is repaired, or an error."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Set
from typing import Any

from gwi_celery.brokers.base import DEAD_LETTER_SUFFIX, QueueSpec
from gwi_celery.brokers.pubsub.admin import Admin
from gwi_celery.brokers.pubsub.client import Client, FieldMask, pb
from gwi_celery.brokers.pubsub.options import PubSubOptions
from gwi_celery.brokers.pubsub.topology.desired import RETENTION, Desired
from gwi_celery.brokers.pubsub.topology.paths import Paths, id_of
from gwi_celery.errors import BrokerError, ConfigurationError

logger = logging.getLogger(__name__)


def _seconds(duration: Any) -> str:
    return f"{duration.seconds + duration.nanos / 1e9:g} s"


#: Field -> its value as text.
_COMPARED: dict[str, Any] = {
    "topic": lambda s: s.topic,
    "filter": lambda s: s.filter,
    "ack_deadline_seconds": lambda s: str(s.ack_deadline_seconds),
    "enable_message_ordering": lambda s: str(s.enable_message_ordering),
    "enable_exactly_once_delivery": lambda s: str(s.enable_exactly_once_delivery),
    "retry_policy": lambda s: (
        f"{_seconds(s.retry_policy.minimum_backoff)} to {_seconds(s.retry_policy.maximum_backoff)}"
        if s.HasField("retry_policy")
        else "none"
    ),
    "dead_letter_policy": lambda s: (
        f"{s.dead_letter_policy.dead_letter_topic} after "
        f"{s.dead_letter_policy.max_delivery_attempts} deliveries"
        if s.HasField("dead_letter_policy")
        else "none"
    ),
    "expiration_policy": lambda s: (
        f"after {_seconds(s.expiration_policy.ttl)}"
        if s.expiration_policy.HasField("ttl")
        else "never"
    ),
    "message_retention_duration": lambda s: (
        _seconds(s.message_retention_duration)
        if s.HasField("message_retention_duration")
        else f"{RETENTION} s"
    ),
}
_KEPT_FOR = "message_retention_duration"
_IMMUTABLE = frozenset({"topic", "filter", "enable_message_ordering"})
_NOT_UPDATED_BY_EMULATOR = frozenset({"labels", "expiration_policy", "message_storage_policy"})


class Drift:
    """Compares for one connection."""

    def __init__(
        self, client: Client, admin: Admin, options: PubSubOptions, paths: Paths, desired: Desired
    ) -> None:
        self._client = client
        self._admin = admin
        self._options = options
        self._paths = paths
        self._desired = desired
        #: Paths of topics that are as the options want them.
        self._compared: set[str] = set()

    def compare(self, queue: str, wanted: Any, found: Any) -> None:
        """Repair drift of a subscription, or raise ConfigurationError with both values."""
        different = {
            name: (text(found), text(wanted))
            for name, text in _COMPARED.items()
            if text(found) != text(wanted)
        }
        labels = _merged_labels(found, wanted)
        if labels != dict(found.labels):
            different["labels"] = (str(dict(found.labels)), str(labels))
        if different.keys() == {_KEPT_FOR} and queue.endswith(DEAD_LETTER_SUFFIX):
            self._keep_longer(wanted)  # an earlier version created it
            return
        if not different:
            return
        what = f"queue {queue!r}: subscription {wanted.name}"
        if "filter" in different:
            what = self._levels_left(queue) + what
        self._refuse_or_repair(what, different, _IMMUTABLE)
        wanted.labels.clear()
        wanted.labels.update(labels)
        self._update("Subscription", wanted, different)

    def _keep_longer(self, dead: Any) -> None:
        """Keep dead letters for longer: that needs no ``repair``."""
        try:
            self._update("Subscription", dead, [_KEPT_FOR])
        except BrokerError as exc:
            logger.warning("%s keeps dead letters for less than 31 days: %s", dead.name, exc)

    def _levels_left(self, queue: str) -> str:
        """Names levels of a former ``priority_levels``, which nobody would read from."""
        own = self._paths.subscription(queue)
        read = {path for _, path, _ in self._desired.levels(QueueSpec(queue))}
        found = {s.name for s in self._admin.subscriptions() if s.name.startswith(f"{own}~p")}
        left = sorted(id_of(path) for path in found - read)
        if not left:
            return ""
        return (
            f"priority_levels was changed: once they are drained, delete {', '.join(left)}, which "
            "nobody reads from any more. "
        )

    def compare_topic(self, path: str) -> None:
        """The same for a topic, in what the options say about topics."""
        options = self._options
        if not (options.managed and (options.kms_key or options.storage_regions or options.labels)):
            return
        if path in self._compared:
            return
        topic = self._client.persist("GetTopic", pb["GetTopicRequest"](topic=path), path)
        regions = topic.message_storage_policy.allowed_persistence_regions
        labels = {**topic.labels, **options.labels}
        different: dict[str, tuple[str, str]] = {}
        if options.kms_key and topic.kms_key_name != options.kms_key:
            different["kms_key_name"] = (topic.kms_key_name or "none", options.kms_key)
        if options.storage_regions and set(regions) != set(options.storage_regions):
            found, wanted = sorted(regions), sorted(options.storage_regions)
            different["message_storage_policy"] = (", ".join(found) or "any", ", ".join(wanted))
        if labels != dict(topic.labels):
            different["labels"] = (str(dict(topic.labels)), str(labels))
        if different:
            self._refuse_or_repair(f"topic {path}", different, {"kms_key_name"})
            topic.labels.update(options.labels)
            topic.message_storage_policy.allowed_persistence_regions[:] = options.storage_regions
            self._update("Topic", topic, different)
        self._compared.add(path)

    def _refuse_or_repair(
        self, what: str, different: dict[str, tuple[str, str]], immutable: Set[str]
    ) -> None:
        """Raises ConfigurationError unless it may be, and can be, repaired."""

        def named(names: Iterable[str]) -> str:
            return "; ".join(
                f"{n} is {different[n][0]}, should be {different[n][1]}" for n in names
            )

        if not self._options.repair:
            raise ConfigurationError(
                f"{what} differs from the configuration: {named(different)}. Change the "
                "configuration, or set repair=True in broker_transport_options"
            )
        fixed = [name for name in different if name in immutable]
        if fixed:
            kind, path = what.split(" ")[-2:]
            raise ConfigurationError(
                f"{what} differs in what Pub/Sub can't change: {named(fixed)}. Drain it, `gcloud "
                f"pubsub {kind}s delete {id_of(path)} --project={path.split('/')[1]}`, and start "
                "again, or use another queue"
            )

    def _update(self, kind: str, resource: Any, different: Iterable[str]) -> None:
        repaired = []
        for name in sorted(different):
            request = pb[f"Update{kind}Request"](
                **{kind.lower(): resource}, update_mask=FieldMask(paths=[name])
            )
            try:
                self._client.persist(f"Update{kind}", request, resource.name)
                repaired.append(name)
            except BrokerError:
                if not (self._options.lax and name in _NOT_UPDATED_BY_EMULATOR):
                    raise
        logger.warning("repaired %s of %s", ", ".join(repaired) or "nothing", resource.name)


def _merged_labels(found: Any, wanted: Any) -> dict[str, str]:
    """The labels as they should be: others' stay, and this package's are those wanted."""
    kept = {k: v for k, v in found.labels.items() if not k.startswith("gwi-")}
    return {**kept, **wanted.labels}
