"""The subscriptions that a queue's messages arrive by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gwi_celery.brokers.base import QueueSpec
from gwi_celery.brokers.pubsub import wire
from gwi_celery.brokers.pubsub.options import PubSubOptions
from gwi_celery.brokers.pubsub.topology.desired import Desired
from gwi_celery.brokers.pubsub.topology.paths import Paths
from gwi_celery.brokers.routing import DIRECT, matches


@dataclass
class Queue:
    """What one connection knows of a queue."""

    spec: QueueSpec
    #: Path of the topic that its own subscription is on.
    topic: str
    #: Exchange -> binding keys, as far as they are known.
    bound: dict[str, set[str]] = field(default_factory=dict)
    #: Whether bindings made by others have been looked for.
    discovered: bool = False
    #: As :attr:`Source.since`.
    since: float = 0.0
    #: Keys of bindings to the exchange of its own name for which there is a sign.
    noted: set[str] = field(default_factory=set)
    #: Whether this connection created it, and so deletes a temporary one when it leaves.
    made: bool = False
    #: As :attr:`Source.spared_until`.
    spared_until: float = 0.0
    #: Whether this connection declared it, and so recreates it.
    declared: bool = False
    #: Whether recreating it failed half-way.
    broken: bool = False


@dataclass(frozen=True)
class Source:
    """One subscription that a queue's messages arrive by."""

    #: projects/P/subscriptions/S
    path: str
    queue: str
    #: The exchange behind the topic; None: the topic that temporary queues share.
    exchange: str | None
    #: (binding key, exchange's type) of each binding that this subscription stands for.
    keys: tuple[tuple[str, str], ...] = ()
    #: Binding keys of the same exchange whose subscriptions come first.
    earlier: tuple[tuple[str, str], ...] = ()
    #: Whether the default exchange's messages for the queue come this way.
    own: bool = False
    #: On its own topic: whether all of the exchange's messages are taken, as its bindings are unknown.
    anything: bool = False
    #: Priorities that it takes.
    priorities: range = range(10)
    #: Seconds since the epoch; what was published earlier is not for this queue, which is younger.
    since: float = 0.0
    #: Seconds since the epoch; until then, what is older than ``since`` may be for another reader.
    spared_until: float = 0.0
    #: Seconds after which a message is dropped.
    message_ttl: float | None = None

    def takes(self, message: wire.Received) -> bool:
        """Whether a message on this subscription is one for the queue."""
        if message.priority not in self.priorities:
            return False
        if not message.exchange:
            # On its own topic everything is the queue's, whoever published it.
            return self.own and (self.exchange is not None or message.routing_key == self.queue)
        if message.exchange != self.exchange:
            return False
        if self.anything:
            return True
        key = message.routing_key
        return _any_matches(self.keys, key) and not _any_matches(self.earlier, key)


def _any_matches(keys: tuple[tuple[str, str], ...], routing_key: str) -> bool:
    return any(matches(type, key, routing_key) for key, type in keys)


class Sources:
    """The sources of the queues that one connection knows. ``exchange_type`` looks an exchange up."""

    def __init__(
        self,
        options: PubSubOptions,
        paths: Paths,
        desired: Desired,
        exchange_type: Callable[[str], str | None],
    ) -> None:
        self._options = options
        self._paths = paths
        self._desired = desired
        self._exchange_type = exchange_type

    def of(self, queue: Queue) -> Iterator[Source]:
        """The subscriptions of a queue, most urgent first."""
        name = queue.spec.name
        shares_topic = self._paths.topic(name) == queue.topic
        common: dict[str, Any] = {
            "queue": name,
            "since": queue.since,
            "spared_until": queue.spared_until,
            "message_ttl": queue.spec.message_ttl,
        }
        on_own_topic = self._on_own_topic(queue) if shares_topic else ()
        for _, path, priorities in reversed(self._desired.levels(queue.spec)):
            yield Source(
                path=path,
                exchange=name if shares_topic else None,
                keys=on_own_topic or (),
                own=True,
                anything=on_own_topic is None,
                priorities=priorities,
                **common,
            )
        for exchange, keys in queue.bound.items():
            if not self._options.managed or (shares_topic and exchange == name):
                continue
            ordered = self._typed(exchange, sorted(keys))
            for n, key in enumerate(ordered):
                yield Source(
                    path=self._paths.binding(name, exchange, key[0]),
                    exchange=exchange,
                    keys=(key,),
                    earlier=ordered[:n],
                    **common,
                )

    def _on_own_topic(self, queue: Queue) -> tuple[tuple[str, str], ...] | None:
        """Bindings of a queue to the exchange of its own name; None: its bindings are unknown."""
        name = queue.spec.name
        if name in queue.bound:
            return self._typed(name, sorted(queue.bound[name]))
        if queue.bound:
            return ()
        if queue.declared and self._options.managed:
            return ((name, DIRECT),)  # as Celery binds it, maybe by another connection
        return None

    def _typed(self, exchange: str, keys: Any) -> tuple[tuple[str, str], ...]:
        type = (self._exchange_type(exchange) if keys else None) or DIRECT
        return tuple((key, type) for key in keys)
