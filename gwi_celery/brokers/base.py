"""The broker seam: all that the Kombu transport knows of a message queue.

The semantics are Pub/Sub's, so that what works on the embedded broker works there:

- A delivery is *leased*. Until it is acked, nacked or dead-lettered, or its lease runs out, no
  other receiver gets it. :meth:`Broker.extend` extends the lease.
- A message leaves the broker only on :meth:`Broker.ack` (or into the dead letter). A process that
  is killed loses nothing: its leases run out and the messages are delivered again.
- Attempts are counted: deliveries that a consumer began to handle. After ``max_deliveries``
  attempts without an ack a message goes to its queue's dead letter instead of being redelivered.
  A message that is given back untouched is not counted, however often that happens.
- Order is by priority (higher first), then by age; it is not kept across a redelivery.

Foreign exceptions stop here: an implementation raises :mod:`gwi_celery.errors` only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

from gwi_celery import redrives
from gwi_celery.errors import BrokerUnusable, ConfigurationError

if TYPE_CHECKING:
    from gwi_celery.brokers.letters import DeadLetter

#: Suffix of the name of a queue's dead letter.
DEAD_LETTER_SUFFIX = ".dead"

#: Attributes of a message in a dead letter: why it was given up, its queue, how often it was delivered,
#: and when it was given up, in seconds since the epoch.
DEATH_REASON = "gwi-death-reason"
DEATH_QUEUE = "gwi-death-queue"
DEATH_DELIVERIES = "gwi-death-deliveries"
DEATH_TIME = "gwi-death-time"
#: One word of :data:`KINDS_OF_DEATH`; the error's class; its traceback, or the end of it; the number of
#: attempts; "host:pid" of the worker that gave it up.
DEATH_KIND = "gwi-death-kind"
DEATH_ERROR = "gwi-death-error"
DEATH_TRACEBACK = "gwi-death-traceback"
DEATH_ATTEMPTS = "gwi-death-attempts"
DEATH_WORKER = "gwi-death-worker"
#: Id of the death's record in the store, where the message's own id can't be that.
DEATH_ID = "gwi-death-id"
#: All of them. A message that is taken back out of a dead letter has none.
DEATH = frozenset(
    {
        *(DEATH_REASON, DEATH_QUEUE, DEATH_DELIVERIES, DEATH_TIME, DEATH_KIND),
        *(DEATH_ERROR, DEATH_TRACEBACK, DEATH_ATTEMPTS, DEATH_WORKER, DEATH_ID),
    }
)

#: Why a message was given up, in one word -> what that means.
KINDS_OF_DEATH = {
    "failed": "its job raised, and no retry was left",
    "time-limit": "its hard time limit passed",
    "deadline": "its deadline passed",
    "crashed": "it took its worker down too often",
    "mismatch": "its key was used before with another payload",
    "rejected": "its task rejected it",
    "unregistered": "no task of that name is registered",
    "malformed": "it is not a Celery message, or can't be decoded",
    "not-allowed": "it asks for what its publisher may not have",
    "deliveries": "too many attempts ended without an ack",
    "unknown": "its cause was not recorded",
}

#: Attribute of a message taken back out of a dead letter: unique to that redrive, so that a job
#: which failed runs again rather than being answered with its failure.
REDRIVE = "gwi-redrive"


#: Share of a lease for which its holder relies on it.
SURE = 0.9


def redriving(
    operators: Operators | None, queue: str, from_step: str | None = ""
) -> Callable[[str], str]:
    """Announce a redrive of the queue's dead letter; returns the function from a death's id to its mark.

    A death always gets the same mark, however often its redrive is repeated. Raises what
    :meth:`Operators.about_to` raises.
    """
    if operators is None:
        return partial(redrives.mark, from_step=from_step)
    operators.about_to("redrive", queue)
    return partial(operators.redrive_mark, from_step=from_step)


def dead_letter_queue(queue: str) -> str:
    """The name of ``queue``'s dead letter, itself an ordinary queue without one of its own."""
    return queue + DEAD_LETTER_SUFFIX


@dataclass(frozen=True)
class QueueSpec:
    """A queue's settings."""

    name: str
    #: Kept while nobody uses it. False: a queue of one connection (replies, remote control).
    durable: bool = True
    #: Deleted when its last subscriber is gone, if it ever had one.
    auto_delete: bool = False
    #: Seconds without a subscriber after which the queue and what is in it are deleted;
    #: None: never. Every task queue is None.
    expires: float | None = None
    #: Seconds a message is kept; None: the broker's retention.
    message_ttl: float | None = None
    #: Seconds for which a delivery is leased; None: the broker's default.
    lease_seconds: float | None = None
    #: Attempts before the dead letter; None: the broker's default; 0: no limit.
    max_deliveries: int | None = None

    @property
    def temporary(self) -> bool:
        """Whether its messages may vanish with it: such a queue has no dead letter."""
        return self.auto_delete or self.expires is not None


@dataclass(frozen=True)
class OutgoingMessage:
    """One message to publish."""

    data: bytes
    #: Small strings a broker can filter on; never the message's content.
    attributes: Mapping[str, str] = field(default_factory=dict)
    #: 0 to 9; higher is delivered first.
    priority: int = 0
    #: Seconds before it may be delivered.
    delay: float = 0.0
    #: Seconds after which it is dropped undelivered; None: the queue's, then the broker's.
    ttl: float | None = None
    #: A reply: if its queue is gone, so is the reader, and the message is dropped.
    reply: bool = False
    #: Tells what a worker does: its sender need not wait until the broker has it.
    event: bool = False


@dataclass(frozen=True)
class Delivery:
    """One leased message. ``ack_id`` names this delivery, not the message."""

    queue: str
    ack_id: str
    message_id: str
    data: bytes
    attributes: Mapping[str, str]
    #: 1 on the first delivery.
    deliveries: int
    #: Seconds since the epoch.
    published_at: float
    priority: int
    #: Seconds for which this delivery is leased; extend the lease well before they have passed.
    lease_seconds: float
    #: Attempts before this one.
    attempts: int = 0
    #: Monotonic time, in the process that got it, from which the first lease counts.
    leased_at: float = field(default_factory=time.monotonic, compare=False)

    def held_until(self) -> float:
        """Monotonic time until which the lease certainly holds, if it was never extended.

        This is somewhat before its end, so that no message is handed over at the last moment.
        """
        return self.leased_at + SURE * self.lease_seconds


@dataclass(frozen=True)
class StoredMessage:
    """A message as an operator sees it."""

    queue: str
    message_id: str
    data: bytes
    attributes: Mapping[str, str]
    deliveries: int
    published_at: float
    priority: int
    #: "ready", "delayed" or "leased".
    state: str
    #: When it becomes ready, and when it is dropped, in seconds since the epoch. None: not known.
    due: float | None = None
    expires_at: float | None = None


@dataclass(frozen=True)
class QueueSize:
    """How many messages a queue holds, by state."""

    ready: int
    delayed: int
    leased: int

    @property
    def total(self) -> int:
        return self.ready + self.delayed + self.leased


@dataclass(frozen=True)
class QueueState:
    """A queue as an operator sees it. None: the broker can't say."""

    name: str
    ready: int | None = None
    delayed: int | None = None
    leased: int | None = None
    #: Seconds since the oldest ready message was published; 0 if there is none.
    oldest: float | None = None
    #: Connections that consume from it.
    consumers: int | None = None
    #: Messages in its dead letter.
    dead: int | None = None
    paused: bool = False


@dataclass(frozen=True)
class Binding:
    queue: str
    exchange: str
    routing_key: str


class Receiver(Protocol):
    """What one connection consumes. Used by one thread, except for :meth:`fileno`'s wake-ups."""

    def subscribe(self, queue: str, *, bulk: bool = False) -> None:
        """Begin to be woken for ``queue``. Raises NotFound if it doesn't exist.

        ``bulk``: the caller takes any number of messages and acks them at once.
        """

    def unsubscribe(self, queue: str) -> None:
        """End a subscription. An ``auto_delete`` queue without another subscriber is deleted."""

    def poll(self, queue: str, limit: int, *, room: int = 0, begun: bool = True) -> list[Delivery]:
        """Lease up to ``limit`` ready messages now. Never waits for one.

        ``begun``: the caller begins to handle them at once, so they count as attempted. Otherwise
        it calls :meth:`Broker.begin` for each. (Pub/Sub also counts a lease that runs out without that.)

        ``room``: how many messages the caller could hold, if more than ``limit``: a broker that
        fetches in the background may fetch that many.

        Returns [] when there are none, and for a queue that was deleted meanwhile. A broker that
        fetches in the background may also return [] before the first messages have arrived;
        :meth:`fileno` becomes readable when they do.
        """

    def want(self, queue: str, limit: int) -> None:
        """There is room for ``limit`` messages: a broker that fetches may do so ahead of the poll."""

    def return_unpolled(self, queue: str) -> None:
        """There is no room: give back what was fetched but not polled, and fetch nothing more."""

    def fileno(self) -> int:
        """A descriptor that becomes readable when a poll of a subscribed queue may find something.

        It may become readable without a reason; a publish that makes a message ready always makes it so.
        """

    def clear(self) -> None:
        """Reset :meth:`fileno`. Call it before polling, so that no wake-up is lost."""

    def next_due(self) -> float | None:
        """Seconds until a poll may find something although :meth:`fileno` stays silent.

        Then a delayed message becomes ready, or another consumer's lease runs out. None: nothing is due.
        """

    def close(self) -> None:
        """Unsubscribe from everything. Leases are not touched. Safe to call twice."""


class Operators(Protocol):
    """Authorizes and records what operators do with a broker."""

    def about_to(self, what: str, queue: str) -> None:
        """Called before an operator's action on the queue; raises to prevent it."""

    def redrive_mark(self, death: str, from_step: str | None = "") -> str:
        """The REDRIVE of that death: unique, and recognized by workers as an operator's."""

    def died(self, letter: DeadLetter) -> None:
        """Record a dead letter of a broker that can't be searched.

        Never raises: a missing record can be made later.
        """

    def ended(self, ids: Collection[str]) -> None:
        """Note that these dead letters are redriven or deleted; their messages are removed next.

        Raises StoreError.
        """


class Broker(Protocol):
    """A message queue service.

    Methods may be called from any thread. After a fork the child may keep using the same object,
    which reopens what it needs; deliveries leased by the parent remain the parent's.

    Over 25 methods: what AMQP's channel can do, and what operators need beside it.
    """

    #: The default lease, seconds.
    lease_seconds: float
    #: None: nobody authorizes operators. Workers then refuse redriven messages, which anyone could mark.
    operators: Operators | None

    @property
    def dead_kept(self) -> float:
        """Seconds for which the broker keeps a dead letter."""

    def connect(self) -> None:
        """One cheap call that proves the broker can be used.

        Raises BrokerUnavailable (try again) or BrokerUnusable (don't).
        """

    def declare_exchange(self, name: str, type: str) -> None:
        """Make sure the exchange exists. ``type`` is direct, topic or fanout.

        Raises ConfigurationError if it exists with another type.
        """

    def delete_exchange(self, name: str, *, if_unused: bool = False) -> None:
        """Delete the exchange and its bindings; the queues stay.

        ``if_unused``: only without a binding. Raises NotDeleted if there is one, or if that can't
        be known.
        """

    def has_exchange(self, name: str) -> bool: ...

    def declare_queue(self, spec: QueueSpec) -> None:
        """Make sure the queue exists, with ``spec``'s settings.

        Raises ConfigurationError for a temporary queue with the name of a permanent one, whose
        messages would be deleted with the last subscriber.
        """

    def delete_queue(self, name: str, *, if_unused: bool = False, if_empty: bool = False) -> None:
        """Delete the queue, its bindings and all its messages.

        ``if_unused``: only without a subscriber, in any process. ``if_empty``: only without a
        message, ready, delayed or leased. Raises NotDeleted if there is one, or if that can't be
        known. A queue that doesn't exist is no error.
        """

    def has_queue(self, name: str) -> bool: ...

    def bind(self, queue: str, exchange: str, routing_key: str) -> None:
        """Send ``queue`` what is published to ``exchange`` under ``routing_key``.

        For a topic exchange the key is a pattern: ``*`` is one word, ``#`` any number of words.
        """

    def unbind(self, queue: str, exchange: str, routing_key: str) -> None: ...

    def bindings(self) -> list[Binding]: ...

    def queues(self) -> list[str]: ...

    def publish(self, exchange: str, routing_key: str, message: OutgoingMessage) -> int | None:
        """Publish, and return once the broker keeps the message.

        Returns the number of queues it reached; None where the broker can't say.

        The default exchange ``""`` reaches the queue named ``routing_key``, which is created as a
        durable queue if it doesn't exist, unless the message is a ``reply``. A queue bound twice gets
        one copy. Any process's subscribed receivers are woken.
        """

    def publish_many(
        self, messages: Sequence[tuple[str, str, OutgoingMessage]]
    ) -> Sequence[int | None]:
        """Publish (exchange, routing key, message) triples together: all of them, or none.

        A broker that can't promise that raises PublishFailed, with an error for each failure.
        """

    def receiver(self) -> Receiver: ...

    def ack(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Remove messages that have been handled.

        One whose lease was lost is left alone, without an error. Returns the deliveries whose lease
        the broker knows to be lost: it has redelivered them, or will.
        """

    def begin(self, delivery: Delivery) -> None:
        """Count an attempt: the consumer begins to handle the message now."""

    def nack(self, delivery: Delivery, delay: float = 0.0) -> None:
        """Have the message redelivered after ``delay`` seconds. Counts as an attempt."""

    def give_back(self, delivery: Delivery) -> None:
        """Have the message redelivered at once, without counting an attempt.

        For a message that was held but never started, as at a shutdown.
        """

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> list[Delivery]:
        """Extend the leases to ``seconds`` from now. Returns the deliveries whose lease is lost.

        Raises BrokerUnavailable or BrokerUnusable: try again while they last.
        """

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        """Move the message to its queue's dead letter, with ``reason``.

        A temporary queue has no dead letter: its message is deleted.
        """

    def bury(self, delivery: Delivery, reason: str) -> None:
        """Dead-letter a pushed message, which has no lease. Returns once the broker keeps it."""

    def size(self, queue: str) -> QueueSize | None:
        """How many messages the queue holds; None where the broker can't tell. Raises NotFound.

        A dead letter is created with its first message: until then it is empty, not missing.
        """

    def state(self, queue: str) -> QueueState:
        """The queue at a glance. Raises NotFound."""

    def purge(self, queue: str) -> int:
        """Delete the messages that are ready or delayed, not leased ones; returns how many."""

    def peek(self, queue: str, limit: int = 100) -> list[StoredMessage]:
        """The messages in the queue, in delivery order, without leasing them."""

    def browse(self, queue: str) -> Iterator[StoredMessage]:
        """All messages in the queue that can be seen, each once, without leasing them for long."""

    def discard(self, queue: str, only: Collection[str]) -> int:
        """Delete the messages with these ids that are not leased; returns how many."""

    def redrive(
        self,
        queue: str,
        limit: int | None = None,
        *,
        only: Collection[str] | None = None,
        from_step: str | None = "",
        moved: Callable[[int], object] = lambda n: None,
    ) -> int:
        """Move up to ``limit`` messages from ``queue``'s dead letter back to it; returns how many.

        Their deliveries count from 0 again, the DEATH attributes are removed, and REDRIVE is set anew.
        None is lost if this process is killed meanwhile. A message that is then in both places has one
        REDRIVE, so that its reliable job runs once. The embedded broker moves it in one transaction.

        Args:
            only: Ids of the messages to move; None: all.
            from_step: Where a failed job continues: see ``Replay``.
            moved: Called with the number of messages that were moved since its last call.
        """

    def close(self) -> None:
        """Close what this process opened. Safe to call twice."""


def check_default_binding(queue: str, routing_key: str) -> None:
    """Raise ConfigurationError unless the default exchange sends that key to the queue by itself."""
    if routing_key != queue:
        raise ConfigurationError(
            f"queue {queue!r} can't be bound to the default exchange under {routing_key!r}: "
            "it has every queue under its own name; declare another exchange"
        )


def check_usable(closed: bool, pid: int) -> None:
    """Raise BrokerUnusable for a receiver that is closed, or belongs to another process: ``pid``."""
    if closed:
        raise BrokerUnusable("this receiver was closed: ask the broker for another one")
    if os.getpid() != pid:
        raise BrokerUnusable(
            "this receiver belongs to the process that this one was forked from: ask the "
            "broker for another one"
        )
