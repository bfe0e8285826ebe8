"""Topics and subscriptions of all projects, and what the admin calls do to them."""

from __future__ import annotations

import random
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import field_mask_pb2
from google.pubsub_v1 import types

from gwi_celery.testing.twin import checks
from gwi_celery.testing.twin.backlog import Backlog, Entry
from gwi_celery.testing.twin.behaviour import Behaviour
from gwi_celery.testing.twin.checks import Refused
from gwi_celery.testing.twin.costs import Costs
from gwi_celery.testing.twin.filters import Predicate, parse
from gwi_celery.testing.twin.iam import Rights

DELETED_TOPIC = "_deleted-topic_"
#: What Google adds to a message that it forwards to a dead letter topic.
_FORWARDED = "CloudPubSubDeadLetterSource"
#: Fields that can't be changed, of topics and of subscriptions.
_FIXED_OF_TOPIC = ("name", "tags", *checks.OUTPUT_ONLY)
_FIXED = (*_FIXED_OF_TOPIC, "topic", "filter", "enable_message_ordering")

_Message: Any = types.PubsubMessage.pb()
_Received: Any = types.ReceivedMessage.pb()


@dataclass
class Topic:
    config: Any
    made: float
    subscriptions: list[Subscription] = field(default_factory=list)


@dataclass
class Subscription:
    config: Any
    made: float
    backlog: Backlog
    matches: Predicate
    used: float

    def received(self, entry: Entry) -> Any:
        """google.pubsub.v1.ReceivedMessage of a delivery."""
        return _Received(
            ack_id=entry.ack_id,
            message=entry.message,
            delivery_attempt=entry.deliveries if self.backlog.attempts_counted else 0,
        )


class World:
    """All state of one twin. Only the event loop's thread uses it."""

    def __init__(self, behaviour: Behaviour, seed: int) -> None:
        self.behaviour = behaviour
        self._seed = seed
        self.rights = Rights()
        self.clear()

    def clear(self) -> None:
        """Forget everything but the switches."""
        seed = self._seed
        self.dice = random.Random(seed)  # noqa: S311 faults that can be repeated
        self.costs = Costs()
        self.topics: dict[str, Topic] = {}
        self.subscriptions: dict[str, Subscription] = {}
        #: Project -> when a topic of it was first to be made.
        self._projects: dict[str, float] = {}
        #: Deleted name -> the time from which it can be used again.
        self._resting: dict[str, float] = {}
        self._admin_calls: deque[float] = deque()
        self._message_ids = 0

    # --- finding ------------------------------------------------------------------------------

    def topic(self, path: str) -> Topic:
        checks.name(path, "topics")
        found = self.topics.get(path)
        if found is None or self._unsettled(found.made):
            raise Refused(f"Resource not found (resource={_id(path)}).", "NOT_FOUND")
        return found

    def subscription(self, path: str) -> Subscription:
        checks.name(path, "subscriptions")
        found = self.subscriptions.get(path)
        if found is not None and self._expired(found):
            self.delete_subscription(path)
            found = None
        if found is None or self._unsettled(found.made):
            raise Refused(f"Resource not found (resource={_id(path)}).", "NOT_FOUND")
        return found

    def check_pullable(self, found: Subscription) -> None:
        """Raises Refused for one that has been deleted or detached, also while its reader waits."""
        if self.subscriptions.get(found.config.name) is not found:
            raise Refused("Resource not found (it was deleted).", "NOT_FOUND")
        if found.config.detached:
            raise Refused("The subscription is detached from its topic.", "FAILED_PRECONDITION")

    def _unsettled(self, made: float) -> bool:
        young = time.time() - made < self.behaviour.settle
        return young and self.dice.random() < self.behaviour.settle_misses

    def _check_project(self, project: str, path: str) -> None:
        """Raises Refused for one that isn't ready."""
        first = self._projects.setdefault(project, time.time())
        if self.behaviour.projects_settle and self._unsettled(first):
            raise Refused(
                f"The topic {path} cannot be created or updated due to an organization policy specified "
                "at the project or organization level. If the topic's project was recently created, you "
                "may need to wait a few minutes for the project's organization policy to be properly "
                "initialized, and then retry this operation."
            )

    def _expired(self, subscription: Subscription) -> bool:
        policy = subscription.config.expiration_policy
        unused = time.time() - subscription.used
        return policy.HasField("ttl") and unused > checks.seconds(policy.ttl)

    def count_admin_call(self) -> None:
        """Raises Refused once a minute's quota is used up."""
        if not self.behaviour.admin_quota:
            return
        now = time.monotonic()
        while self._admin_calls and self._admin_calls[0] < now - 60:
            self._admin_calls.popleft()
        if len(self._admin_calls) >= self.behaviour.admin_quota:
            raise Refused(
                "Quota exceeded for quota metric 'Administrator operations' and limit "
                "'Administrator operations per minute' of service 'pubsub.googleapis.com'.",
                "RESOURCE_EXHAUSTED",
            )
        self._admin_calls.append(now)

    # --- topics -------------------------------------------------------------------------------

    def create_topic(self, config: Any) -> Any:
        checks.name(config.name, "topics")
        checks.settings(config)
        checks.made(config)
        self._check_project(config.name.split("/")[1], config.name)
        self._claim_name(config.name, self.topics)
        if self.behaviour.limits:
            checks.topic(config)
            checks.room("topics-per-project", _in_project(self.topics, config.name))
        self.topics[config.name] = Topic(config, time.time())
        return config

    def update_topic(self, request: Any) -> Any:
        found = self.topic(request.topic.name)
        paths = request.update_mask.paths
        wanted = _updated(found.config, request.topic, paths, fixed=_FIXED_OF_TOPIC)
        checks.settings(wanted)
        if self.behaviour.limits:
            checks.topic(wanted)
        found.config.CopyFrom(wanted)
        for subscription in found.subscriptions:
            _tell_retention(subscription.config, found.config)
        return found.config

    def delete_topic(self, path: str) -> None:
        found = self.topic(path)
        del self.topics[path]
        self._rest(path)
        for subscription in found.subscriptions:
            subscription.config.topic = DELETED_TOPIC

    # --- subscriptions ------------------------------------------------------------------------

    def create_subscription(self, config: Any) -> Any:
        """Without a name it gets one, in its topic's project."""
        if not config.name:
            of_project = "/".join(config.topic.split("/")[:2])
            config.name = f"{of_project}/subscriptions/s-{self.dice.getrandbits(64):016x}"
        checks.name(config.name, "subscriptions")
        checks.settings(config)
        checks.made(config)
        checks.fill_in(config)
        topic = self.topic(config.topic)
        _tell_retention(config, topic.config)
        self._check_subscription(config)
        self._claim_name(config.name, self.subscriptions)
        if self.behaviour.limits:
            number = _in_project(self.subscriptions, config.name)
            checks.room("subscriptions-per-project", number)
            checks.room("subscriptions-per-topic", len(topic.subscriptions))
        now = time.time()
        made = Subscription(
            config,
            now,
            Backlog(self.behaviour, config, lambda entry: self._forward(config, entry), self.dice),
            parse(config.filter if self.behaviour.filters else ""),
            now,
        )
        self.subscriptions[config.name] = made
        topic.subscriptions.append(made)
        return config

    def update_subscription(self, request: Any) -> Any:
        found = self.subscription(request.subscription.name)
        paths = request.update_mask.paths
        wanted = _updated(found.config, request.subscription, paths, fixed=_FIXED)
        checks.settings(wanted)
        checks.fill_in(wanted)
        self._check_subscription(wanted)
        found.config.CopyFrom(wanted)
        found.backlog.wake()
        return found.config

    def modify_push_config(self, request: Any) -> None:
        found = self.subscription(request.subscription)
        if self.behaviour.limits:
            checks.push(request.push_config, exactly_once=found.backlog.exactly_once)
        before = found.config.push_config.attributes.get("x-goog-version", "")
        found.config.push_config.CopyFrom(request.push_config)
        checks.push_version(found.config.push_config, before)
        found.backlog.wake()

    def detach(self, found: Subscription) -> None:
        """https://cloud.google.com/pubsub/docs/detach-subscriptions"""
        self._leave_topic(found)
        found.config.detached = True
        found.backlog.seek(float("inf"))
        found.backlog.wake()

    def _leave_topic(self, found: Subscription) -> None:
        topic = self.topics.get(found.config.topic)
        if topic is not None and found in topic.subscriptions:
            topic.subscriptions.remove(found)

    def _check_subscription(self, wanted: Any) -> None:
        """Raises Refused, also where the topic of its dead letters doesn't exist.

        https://cloud.google.com/pubsub/docs/reference/rpc/google.pubsub.v1#deadletterpolicy
        """
        if not self.behaviour.limits:
            return
        checks.subscription(wanted)
        if wanted.dead_letter_policy.dead_letter_topic:
            self.topic(wanted.dead_letter_policy.dead_letter_topic)

    def delete_subscription(self, path: str) -> None:
        found = self.subscriptions.pop(path, None)
        if found is None:
            raise Refused(f"Resource not found (resource={_id(path)}).", "NOT_FOUND")
        self._rest(path)
        self._leave_topic(found)
        found.backlog.wake()

    # --- messages -----------------------------------------------------------------------------

    def publish(self, path: str, messages: Any) -> list[Any]:
        """The messages as they are stored."""
        topic = self.topic(path)
        now = time.time()
        return [self._publish(topic, message, now) for message in messages]

    def _publish(self, topic: Topic, message: Any, now: float) -> Any:
        self._message_ids += 1
        stored = _Message()
        stored.CopyFrom(message)
        stored.message_id = str(self._message_ids)
        stored.publish_time.FromNanoseconds(int(now * 1e9))
        for subscription in topic.subscriptions:
            if subscription.matches(stored.attributes):
                subscription.backlog.add(stored, now)
            else:
                subscription.backlog.counts.filtered += 1
                self.costs.keep_back(stored)
        return stored

    def refused_for_now(self, found: Subscription, ack_ids: Any) -> tuple[list[str], list[str]]:
        """Ids that are dealt with, and those that an exactly-once subscription does nothing with."""
        share = self.behaviour.transient_acks if found.backlog.exactly_once else 0.0
        refused = [id for id in ack_ids if self.dice.random() < share] if share else []
        return [id for id in ack_ids if id not in refused], refused

    def _forward(self, config: Any, entry: Entry) -> bool:
        topic = self.topics.get(config.dead_letter_policy.dead_letter_topic)
        if topic is None or not self.rights.may_dead_letter(config.name, topic.config.name):
            return False
        message = _Message(data=entry.message.data, attributes=entry.message.attributes)
        message.attributes[f"{_FORWARDED}Subscription"] = _id(config.name)
        message.attributes[f"{_FORWARDED}SubscriptionProject"] = config.name.split("/")[1]
        message.attributes[f"{_FORWARDED}DeliveryCount"] = str(entry.deliveries)
        message.attributes[f"{_FORWARDED}TopicPublishTime"] = (
            entry.message.publish_time.ToJsonString()
        )
        self._publish(topic, message, time.time())
        return True

    # --- names --------------------------------------------------------------------------------

    def _claim_name(self, path: str, among: dict[str, Any]) -> None:
        if path in among or self._resting.get(path, 0.0) > time.time():
            raise Refused(
                f"Resource already exists in the project (resource={_id(path)}).", "ALREADY_EXISTS"
            )

    def _rest(self, path: str) -> None:
        self._resting[path] = time.time() + self.behaviour.name_rest


def _updated(config: Any, wanted: Any, paths: Any, *, fixed: tuple[str, ...]) -> Any:
    """A copy of ``config`` with the fields of ``wanted`` that ``paths`` names. Raises Refused."""
    if not paths:
        raise Refused("The update_mask in the request must be set, and must contain a path.")
    updated = type(config)()
    updated.CopyFrom(config)
    for path in paths:
        if path in fixed or path not in config.DESCRIPTOR.fields_by_name:
            raise Refused(f"Invalid update_mask provided in the request: {path} can't be changed.")
        updated.ClearField(path)
        field_mask_pb2.FieldMask(paths=[path]).MergeMessage(wanted, updated)
    return updated


def _tell_retention(subscription: Any, topic: Any) -> None:
    """Show a topic's retention in its subscription, as the service does."""
    subscription.ClearField("topic_message_retention_duration")
    if topic.HasField("message_retention_duration"):
        kept = topic.message_retention_duration
        subscription.topic_message_retention_duration.CopyFrom(kept)


def _in_project(found: dict[str, Any], path: str) -> int:
    """How many are in the project of ``path``."""
    project = path[: path.index("/", len("projects/")) + 1]
    return sum(each.startswith(project) for each in found)


def _id(path: str) -> str:
    return path.rpartition("/")[2]
