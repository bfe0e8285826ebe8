"""What operators see of a queue on Pub/Sub, and what they do to it.

A message in a subscription can't be seen without leasing it: whoever looks pulls it, and gives it back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from gwi_celery.brokers.base import (
    DEAD_LETTER_SUFFIX,
    QueueSize,
    QueueSpec,
    QueueState,
    StoredMessage,
    dead_letter_queue,
)
from gwi_celery.brokers.pubsub import wire
from gwi_celery.brokers.pubsub.client import AckIdsRefused, pb
from gwi_celery.brokers.pubsub.dead import DeadLetters, Walk, joined
from gwi_celery.brokers.pubsub.monitoring import Monitoring, QueueDepth
from gwi_celery.errors import NotFound

if TYPE_CHECKING:
    from gwi_celery.brokers.pubsub.broker import PubSubBroker

#: Messages in one pull of a purge.
_LOOK = 1000


class Operating:
    """What operators do through one connection."""

    def __init__(self, broker: PubSubBroker, dead_letters: DeadLetters) -> None:
        self._broker = broker
        self._dead_letters = dead_letters
        options = broker.options
        self._monitoring = Monitoring(options.timeout, options.endpoint if options.strict else "")

    def close(self) -> None:
        self._monitoring.close()

    def size(self, queue: str) -> QueueSize | None:
        """None: Pub/Sub has no exact count. Raises NotFound."""
        try:
            self._broker.topology.spec(queue)
        except NotFound:
            if queue.endswith(DEAD_LETTER_SUFFIX):
                return QueueSize(0, 0, 0)
            raise
        return None

    def depth(self, queue: str) -> QueueDepth | None:
        """As :meth:`.broker.PubSubBroker.depth`."""
        if self._broker.options.lax:
            return None
        return self._monitoring.depth(
            source.path for source in self._broker.topology.sources(queue)
        )

    def state(self, queue: str) -> QueueState:
        """What Cloud Monitoring measured some minutes ago, where that can be asked."""
        self._broker.topology.spec(queue)
        waiting, dead = self.depth(queue), None
        with contextlib.suppress(NotFound):
            dead = self.depth(dead_letter_queue(queue))
        return QueueState(
            queue,
            ready=None if waiting is None else waiting.messages,
            oldest=None if waiting is None else waiting.oldest_age_seconds,
            dead=None if dead is None else dead.messages,
        )

    def peek(self, queue: str, limit: int) -> list[StoredMessage]:
        """Ready messages. They are leased for a moment and then given back."""
        deliveries = self._broker.looks.at_once(queue, limit)
        self._broker.deliveries.give_back(deliveries)
        self._broker.flush()
        return [self._dead_letters.stored(d) for d in joined(deliveries)][:limit]

    def browse(self, queue: str) -> Iterator[StoredMessage]:
        """What is ready, leased for as long as it takes to see all of it, and then given back."""
        walk = Walk(self._broker, queue)
        try:
            for _ in walk:
                pass
        finally:
            walk.give_back()
        yield from map(self._dead_letters.stored, joined(walk.held))

    def purge(self, queue: str) -> int:
        """Ack ready messages until none is left; returns how many.

        Includes delayed messages that are delivered for the first time, but not deferred ones.
        """
        broker = self._broker
        if broker.operators is not None:
            broker.operators.about_to("purge", queue)
        purged = 0
        broker.flush()
        left = broker.topology.sources(queue)
        while left:
            pulled = broker.looks.pull_all(left, _LOOK)
            left = [source for source, _, more in pulled if more]
            for source, received, _ in pulled:
                if not received:
                    continue
                request = pb["AcknowledgeRequest"](
                    subscription=source.path, ack_ids=[item.ack_id for item in received]
                )
                self._dead_letters.end(queue, received)
                with contextlib.suppress(AckIdsRefused):  # lost ones are pulled again
                    broker.client.persist("Acknowledge", request, source.path)
                purged += sum(source.takes(wire.parse(item.message)) for item in received)
        return purged

    def discard(self, queue: str, only: Collection[str]) -> int:
        if self._broker.operators is not None:
            self._broker.operators.about_to("purge", queue)
        return self._dead_letters.discard(queue, only)

    def push_to(self, queue: str, url: str, service_account: str, audience: str) -> None:
        """As :meth:`.broker.PubSubBroker.push_to`."""
        topology = self._broker.topology
        topology.declare_queue(QueueSpec(queue))
        for source in topology.sources(queue):
            request = pb["ModifyPushConfigRequest"](subscription=source.path)
            request.push_config.push_endpoint = url
            if service_account:
                request.push_config.oidc_token.service_account_email = service_account
                request.push_config.oidc_token.audience = audience
            self._broker.client.persist("ModifyPushConfig", request, source.path)
            topology.admin.note_push(source.path, url)
