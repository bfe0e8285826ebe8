"""Creates the topics and subscriptions of queues, while other processes create and delete them too."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from gwi_celery.brokers.base import DEAD_LETTER_SUFFIX
from gwi_celery.brokers.checks import exists_to_stay
from gwi_celery.brokers.pubsub import naming
from gwi_celery.brokers.pubsub.admin import Admin, made_though_deleted
from gwi_celery.brokers.pubsub.options import PubSubOptions
from gwi_celery.brokers.pubsub.topology.desired import Desired
from gwi_celery.brokers.pubsub.topology.drift import Drift
from gwi_celery.brokers.pubsub.topology.paths import Paths
from gwi_celery.brokers.pubsub.topology.sources import Queue
from gwi_celery.errors import NotFound

#: Seconds after joining another connection's queue for which older messages are left to other readers.
_SPARED = 60.0
#: Seconds by which this machine's clock may be ahead of Google's when old messages are told from new.
_SKEW = 2.0


class Making:
    """For one connection. ``make_dead_letter`` creates the dead letter of the queue it is given."""

    def __init__(
        self,
        admin: Admin,
        options: PubSubOptions,
        paths: Paths,
        desired: Desired,
        drift: Drift,
        make_dead_letter: Callable[[str], object],
    ) -> None:
        self._admin = admin
        self._options = options
        self._paths = paths
        self._desired = desired
        self._drift = drift
        self._make_dead_letter = make_dead_letter

    def durable(self, queue: Queue) -> None:
        """Create a permanent queue, with its dead letter."""
        made_though_deleted(lambda: self._try(queue))

    def _try(self, queue: Queue) -> None:
        name = queue.spec.name
        for level, wanted in self._desired.subscriptions(queue.spec, queue.topic):
            found = self._admin.get_subscription(wanted.name)
            if level == 0:
                if found is None:
                    self._admin.create_topic(queue.topic, naming.name_labels(name))
                self._drift.compare_topic(queue.topic)
            if found is not None:
                if self._options.repair and _dead_topic(found) != _dead_topic(wanted):
                    self._make_dead_letter(name)  # a policy's topic has to exist
                self._drift.compare(name, wanted, found)
                continue
            if level == 0 and not name.endswith(DEAD_LETTER_SUFFIX):
                self._make_dead_letter(name)
            try:
                made = self._admin.create_subscription(wanted)
            except NotFound:
                self.renew_topic(queue)
                raise
            if not made:  # another process was faster
                found = self._admin.get_subscription(wanted.name)
                if found is None:
                    raise NotFound(f"queue {name!r} was deleted while it was declared: try again")
                self._drift.compare(name, wanted, found)

    def renew_topic(self, queue: Queue) -> None:
        """A permanent queue's topic was not found: if it is gone, create it.

        Then its subscriptions are deleted too, as they get nothing from a new topic of that name. After
        a race between deleting a topic and subscribing to it, the emulator shows them as if they did.
        """
        if self._admin.create_topic(queue.topic, naming.name_labels(queue.spec.name)):
            for _, left in self._desired.subscriptions(queue.spec, queue.topic):
                self._admin.delete_subscription(left.name)

    def temporary(self, queue: Queue, *, first: bool) -> None:
        """Create or join a temporary queue; ``first``: this connection didn't know it."""
        wanted = self._desired.subscription(queue.spec, queue.topic)
        wanted.labels[naming.MAKER_LABEL] = uuid.uuid4().hex
        made = self._create_temporary(wanted)
        if not made:
            made = self._take_over(queue, wanted)
        queue.made = queue.made or made
        if first and (self._options.lax or not made):
            queue.since = self._beginning()
            queue.spared_until = 0.0 if made else time.time() + _SPARED

    def binding(self, queue: Queue, exchange: str, type: str, key: str) -> None:
        """Create the subscription of a binding. Raises NotFound if the exchange's topic is missing."""
        name = queue.spec.name
        wanted = self._desired.binding(queue.spec, exchange, type, key)
        if self._admin.create_subscription(wanted):
            return
        if queue.spec.temporary:
            if not self._take_over(queue, wanted) and not queue.since:
                queue.since = self._beginning()
            return
        found = self._admin.get_subscription(wanted.name)
        if found is None:  # it belonged to an exchange that was deleted
            self._admin.create_subscription(wanted)
        else:
            self._drift.compare(name, wanted, found)

    def _create_temporary(self, wanted: Any) -> bool:
        """False if it existed already. The topic that such queues share is created with the first."""
        try:
            return self._admin.create_subscription(wanted)
        except NotFound:
            if wanted.topic != self._paths.temporary_topic():
                raise  # an exchange's
            self._admin.create_topic(wanted.topic, {})
            return self._admin.create_subscription(wanted)

    def _take_over(self, queue: Queue, wanted: Any) -> bool:
        """Use an existing subscription of that name; returns whether this connection created it."""
        found = self._admin.get_subscription(wanted.name)
        if found is None:  # its topic was deleted, or another process deleted it just now
            return self._create_temporary(wanted)
        if found.topic != wanted.topic:
            raise exists_to_stay(queue.spec.name)
        # Ours if the call that created it took effect, but its answer was lost and it was retried.
        maker = wanted.labels.get(naming.MAKER_LABEL)
        return maker is not None and found.labels.get(naming.MAKER_LABEL) == maker

    def _beginning(self) -> float:
        """The time from which messages are the queue's: what was published earlier is skipped.

        The emulator gives a new subscription a topic's retained messages, and a subscription that a
        killed process left behind may hold messages for that process.
        """
        # The emulator's times are in whole milliseconds, by this machine's clock.
        now = int(time.time() * 1000) / 1000
        return now if self._options.lax else now - _SKEW


def _dead_topic(subscription: Any) -> str:
    return str(subscription.dead_letter_policy.dead_letter_topic)
