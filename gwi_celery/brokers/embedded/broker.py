"""The embedded broker: a durable message queue in a folder, for any number of processes.

It keeps the broker seam's promises on one SQLite file, ``broker.sqlite3``, in WAL mode:

- A publish returns after an fsync. A power cut loses at most the latest leases, acks and nacks, so
  that some messages are redelivered.
- Time is the wall clock of the machine, which all of its processes share.
- Receivers are woken through FIFOs in the folder ``wake`` (see :mod:`gwi_celery.brokers.wakeups`);
  nobody polls. A receiver keeps its ``auto_delete`` and ``expires`` queues alive as long as it lives.
  One that was killed is noticed by the next publish to it, or within about half a minute.
- What has expired counts as gone at once; it is deleted later, by whoever finds it.

Retention: a message is kept for ``retention`` seconds from when it could first be delivered, unless
its own or its queue's time to live says otherwise. In a dead letter it is kept for ``retention`` seconds
from when it was moved there, whatever its time to live was. A leased message is never dropped.

A queue whose name ends in ``.dead`` is a dead letter: nothing is dead-lettered from it. A message
that is rejected there stays, and is redelivered once its lease has run out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from gwi_celery.brokers.base import (
    DEAD_LETTER_SUFFIX,
    DEATH_DELIVERIES,
    DEATH_QUEUE,
    DEATH_REASON,
    DEATH_TIME,
    Binding,
    Delivery,
    Operators,
    OutgoingMessage,
    QueueSize,
    QueueSpec,
    QueueState,
    StoredMessage,
    dead_letter_queue,
    redriving,
)
from gwi_celery.brokers.checks import check_seconds
from gwi_celery.brokers.embedded import messages, tables
from gwi_celery.brokers.embedded.deliveries import Deliveries
from gwi_celery.brokers.embedded.entities import Entities
from gwi_celery.brokers.embedded.files import SWEEP_LIMIT, Files, Memory
from gwi_celery.brokers.embedded.looking import Edit, Looking
from gwi_celery.brokers.embedded.messages import insert_message
from gwi_celery.brokers.embedded.receiver import EmbeddedReceiver
from gwi_celery.brokers.embedded.tables import Queue
from gwi_celery.clock import SYSTEM_CLOCK, Clock
from gwi_celery.errors import ConfigurationError
from gwi_celery.sqlite import Database
from gwi_celery.text import REASON_BYTES, cut

#: Seconds a message is kept: a week, as Pub/Sub does.
RETENTION = 7 * 86400.0
#: Messages that a redrive moves in one transaction.
_REDRIVE_BATCH = 1000


class EmbeddedBroker:
    """A :class:`~gwi_celery.brokers.base.Broker` in ``folder``, or in memory.

    Over 25 methods, as the seam has them; the other modules of the package do the work.

    Args:
        folder: Created if it doesn't exist. None: in memory; see :func:`memory_broker` to share that.
        clock: Every expiry is decided by its ``time()``.
        lease_seconds: How long a delivery is leased for, where its queue doesn't say.
        max_deliveries: Attempts before the dead letter, where the queue doesn't say; 0: no limit.
        retention: Seconds a message is kept, where neither it nor its queue says.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        clock: Clock = SYSTEM_CLOCK,
        lease_seconds: float = 30.0,
        max_deliveries: int = 20,
        retention: float = RETENTION,
        memory: Memory | None = None,
    ) -> None:
        check_seconds("lease_seconds", lease_seconds)
        check_seconds("retention", retention)
        if max_deliveries < 0:
            raise ConfigurationError(
                f"max_deliveries is {max_deliveries}: write 1 or more, or 0 for no limit"
            )
        self.lease_seconds = lease_seconds
        self.operators: Operators | None = None
        self._files = Files(
            folder,
            memory,
            clock,
            lease_seconds=lease_seconds,
            max_deliveries=max_deliveries,
            retention=retention,
        )
        self._entities = Entities(self._files)
        self._deliveries = Deliveries(self._files)
        self._looking = Looking(self._files)

    def connect(self) -> None:
        with self._files.database.write(durable=False) as c:
            tables.check_writable(c)

    # --- exchanges, queues, bindings --------------------------------------------------------------

    def declare_exchange(self, name: str, type: str) -> None:
        self._entities.declare_exchange(name, type)

    def delete_exchange(self, name: str, *, if_unused: bool = False) -> None:
        self._entities.delete_exchange(name, if_unused=if_unused)

    def has_exchange(self, name: str) -> bool:
        return self._entities.has_exchange(name)

    def declare_queue(self, spec: QueueSpec) -> None:
        self._entities.declare_queue(spec)

    def delete_queue(self, name: str, *, if_unused: bool = False, if_empty: bool = False) -> None:
        self._entities.delete_queue(name, if_unused=if_unused, if_empty=if_empty)

    def has_queue(self, name: str) -> bool:
        return self._entities.has_queue(name)

    def bind(self, queue: str, exchange: str, routing_key: str) -> None:
        self._entities.bind(queue, exchange, routing_key)

    def unbind(self, queue: str, exchange: str, routing_key: str) -> None:
        self._entities.unbind(queue, exchange, routing_key)

    def bindings(self) -> list[Binding]:
        return self._entities.bindings()

    def queues(self) -> list[str]:
        return self._entities.queues()

    # --- publish ----------------------------------------------------------------------------------

    def publish(self, exchange: str, routing_key: str, message: OutgoingMessage) -> int:
        return self.publish_many([(exchange, routing_key, message)])[0]

    def publish_many(self, messages: Sequence[tuple[str, str, OutgoingMessage]]) -> list[int]:
        if not messages:
            return []
        self._files.sweep_if_due()
        routes: dict[tuple[str, str], list[Queue]] = {}
        reached = []
        with self._files.change(durable=True) as change:
            for exchange, routing_key, message in messages:
                route = (exchange, routing_key)
                if route not in routes:
                    routes[route] = self._entities.route(change, exchange, routing_key)
                if not routes[route] and not exchange and not message.reply:
                    routes[route] = [self._files.ensure(change, routing_key)]
                reached.append(len(routes[route]))
                for queue in routes[route]:
                    insert_message(change.c, queue, message, change.now, self._files.retention)
            for queues in routes.values():
                for queue in queues:
                    change.wake(queue.spec.name)
        return reached

    # --- deliveries -------------------------------------------------------------------------------

    def receiver(self) -> EmbeddedReceiver:
        receiver = EmbeddedReceiver(self._files, self._deliveries, self._files.wakeups.open())
        self._files.receivers.add(receiver)
        return receiver

    def ack(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        return self._deliveries.ack(deliveries)

    def begin(self, delivery: Delivery) -> None:
        self._deliveries.begin(delivery)

    def nack(self, delivery: Delivery, delay: float = 0.0) -> None:
        self._deliveries.nack(delivery, delay)

    def give_back(self, delivery: Delivery) -> None:
        self._deliveries.give_back(delivery)

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> list[Delivery]:
        return self._deliveries.extend(deliveries, seconds)

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        self._deliveries.dead_letter(delivery, reason)

    def bury(self, delivery: Delivery, reason: str) -> None:
        attributes = {
            **delivery.attributes,
            DEATH_REASON: cut(reason, REASON_BYTES),
            DEATH_QUEUE: delivery.queue,
            DEATH_DELIVERIES: str(delivery.deliveries),
            DEATH_TIME: f"{self._files.clock.time():.6f}",
        }
        message = OutgoingMessage(delivery.data, attributes, delivery.priority)
        self.publish("", dead_letter_queue(delivery.queue), message)

    # --- for operators ----------------------------------------------------------------------------

    def size(self, queue: str) -> QueueSize | None:
        """As :meth:`Broker.size`."""
        now = self._files.clock.time()
        with self._files.database.read() as c:
            if queue.endswith(DEAD_LETTER_SUFFIX) and tables.find_queue(c, queue, now) is None:
                return QueueSize(0, 0, 0)
            return messages.size(c, self._files.find(c, queue), now)

    def purge(self, queue: str) -> int:
        """As :meth:`Broker.purge`. 0 for a missing queue."""
        self._about_to("purge", queue)
        with self._files.change(durable=True) as change:
            found = tables.find_queue(change.c, queue, change.now)
            return 0 if found is None else messages.delete_unleased(change.c, found, change.now)

    def peek(self, queue: str, limit: int = 100) -> list[StoredMessage]:
        """Ready messages in delivery order, then the others by their due time; [] for a missing queue."""
        now = self._files.clock.time()
        with self._files.database.read() as c:
            found = tables.find_queue(c, queue, now)
            return [] if found is None else messages.peek(c, found, limit, now)

    def state(self, queue: str) -> QueueState:
        return self._looking.state(queue)

    def expiring(self, within: float) -> dict[str, int]:
        """Queue -> how many of its dead letters are dropped within that many seconds."""
        return self._looking.expiring(within)

    def browse(self, queue: str) -> Iterator[StoredMessage]:
        return self._looking.browse(queue)

    def discard(self, queue: str, only: Collection[str]) -> int:
        self._about_to("purge", queue)
        return self._looking.discard(queue, only)

    def hasten(self, queue: str, only: Collection[str], edit: Edit | None = None) -> int:
        """Make these delayed messages ready now, rewritten by ``edit``; returns how many that was."""
        self._about_to("hasten", queue)
        return self._looking.hasten(queue, only, edit)

    def set_paused(self, queue: str, paused: bool) -> None:
        """Deliver nothing from the queue until it is resumed. Former deliveries aren't affected."""
        self._about_to("pause" if paused else "resume", queue)
        self._looking.set_paused(queue, paused)

    def _about_to(self, what: str, queue: str) -> None:
        if self.operators is not None:
            self.operators.about_to(what, queue)

    @property
    def dead_kept(self) -> float:
        return self._files.retention

    def redrive(
        self,
        queue: str,
        limit: int | None = None,
        *,
        only: Collection[str] | None = None,
        from_step: str | None = "",
        moved: Callable[[int], object] = lambda n: None,
    ) -> int:
        """As :meth:`Broker.redrive`, in the order of the dead letter.

        The messages' time to live starts again. The queue is created if it is gone.
        """
        dead = dead_letter_queue(queue)
        with self._files.database.read() as c:
            found = tables.find_queue(c, dead, self._files.clock.time())
            if found is None:
                return 0
            # No more than there are now: some may be dead-lettered again meanwhile.
            left = messages.size(c, found, self._files.clock.time()).ready
        left = left if limit is None else min(limit, left)
        mark = redriving(self.operators, queue, from_step)
        total = 0
        while left > total:
            batch = self._deliveries.redrive(
                queue, dead, min(_REDRIVE_BATCH, left - total), mark, only
            )
            if not batch:
                break
            if only is not None:  # one that died again meanwhile is not taken twice
                only = frozenset(only) - frozenset(batch)
            total += len(batch)
            moved(len(batch))
        return total

    @property
    def database(self) -> Database:
        return self._files.database

    def housekeep(self, limit: int = SWEEP_LIMIT) -> int:
        """See :meth:`Files.housekeep`."""
        return self._files.housekeep(limit)

    def close(self) -> None:
        self._files.close()
