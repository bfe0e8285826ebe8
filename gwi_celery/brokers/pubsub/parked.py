"""What an operator does to a message that this connection deferred until it is due.

Until the time to which it was deferred, nobody else gets the message, and its ack id stays valid.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from gwi_celery.brokers.base import Delivery

if TYPE_CHECKING:
    from gwi_celery.brokers.pubsub.broker import PubSubBroker

#: Seconds that its lease must still last, for publishing the copy and sending the ack.
_LEFT: Final = 2.0
#: Seconds that publishing copies may take: a worker does nothing else meanwhile.
_PUBLISH: Final = 5.0


class Parked:
    """The parked messages of one connection. Only the connection's own thread calls its methods."""

    def __init__(self, broker: PubSubBroker) -> None:
        self._broker = broker

    def find(self, queue: str, name: str) -> Delivery | None:
        """The message of that name (a task id, or a message's), if this connection has it parked."""
        found = self._broker.early.find(queue, name)
        enough = time.monotonic() + _LEFT
        if found is None or self._broker.deliveries.held_until(found.ack_id) < enough:
            return None
        return found

    def publish_now(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Republish each, due now, then ack the parked one; returns those for which that was done.

        All are of one queue. Raises BrokerError and TooLarge: what was not published stays parked.
        """
        taken = [delivery for delivery in deliveries if self._taken(delivery)]
        with self._broker.client.within(_PUBLISH):
            self._broker.deliveries.publish_now(taken)
        self._broker.early.forget(taken)
        return taken

    def drop(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Ack them; returns those that were acked."""
        taken = [delivery for delivery in deliveries if self._taken(delivery)]
        for delivery in taken:
            self._broker.deliveries.drop(delivery)
        self._broker.early.forget(taken)
        return taken

    def _taken(self, delivery: Delivery) -> bool:
        """Keep every receiver from handing it out; False if one already did."""
        return self._broker.deliveries.any_deferred([delivery.ack_id]) or any(
            receiver.take_out(delivery) for receiver in self._broker.receivers
        )
