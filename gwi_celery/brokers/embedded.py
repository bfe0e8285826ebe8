"""The embedded broker: a durable message queue in a folder, for any number of processes.

It keeps the broker seam's promises on one SQLite file, ``broker.sqlite3``, in WAL mode:

- A publish returns after an fsync. What is lost in a power cut is at most a lease, an ack or a nack
  of the last moment, so that a message comes once more.
- Time is the wall clock of the machine, which all of its processes share.
- Receivers are woken through FIFOs in the folder ``wake`` (see :mod:`gwi_celery.brokers.wakeups`);
  nobody polls. A receiver that is alive keeps its ``auto_delete`` and ``expires`` queues alive. One
  that was killed is noticed by the next publish to it, or within about half a minute.
- What has expired counts as gone at once, and is deleted when somebody comes across it.

Retention: a message is kept for ``retention`` seconds from when it could first be delivered, unless
its own or its queue's time to live says otherwise. One that is moved to a dead letter is kept there
for ``retention`` seconds from then on, whatever its time to live was. A message in somebody's hands
is never dropped.

A queue whose name ends in ``.dead`` is a dead letter: nothing dies there. What is dead-lettered from
it stays in it, and is delivered again after its lease's time.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from gwi_celery.brokers import embedded_tables as tables
from gwi_celery.brokers.base import (
    DEAD_LETTER_SUFFIX,
    DEATH_DELIVERIES,
    DEATH_QUEUE,
    DEATH_REASON,
    DEATH_TIME,
    REDRIVE,
    Binding,
    Delivery,
    Operators,
    OutgoingMessage,
    QueueSize,
    QueueSpec,
    StoredMessage,
    dead_letter_queue,
    redriving,
)
from gwi_celery.brokers.checks import above_zero, check_spec, exists_to_stay
from gwi_celery.brokers.embedded_tables import Queue
from gwi_celery.brokers.routing import DIRECT, EXCHANGE_TYPES
from gwi_celery.brokers.wakeups import LOOK_INTERVAL, Bell, FolderWakeups, PipeWakeups, Wakeups
from gwi_celery.clock import SYSTEM_CLOCK, Clock
from gwi_celery.errors import (
    BrokerError,
    BrokerUnavailable,
    BrokerUnusable,
    ConfigurationError,
    NotDeleted,
    NotFound,
)
from gwi_celery.sqlite import Database
from gwi_celery.text import REASON_BYTES, cut

#: Seconds a message is kept: a week, as Pub/Sub does.
RETENTION = 7 * 86400.0
#: Expired messages deleted in one go by housekeeping, so that nobody waits long for it.
_SWEEP_LIMIT = 1000
#: Messages that a redrive moves in one transaction.
_REDRIVE_BATCH = 1000
_DEATH_ATTRIBUTES = frozenset({DEATH_REASON, DEATH_QUEUE, DEATH_DELIVERIES, DEATH_TIME})


class EmbeddedBroker:
    """A :class:`~gwi_celery.brokers.base.Broker` in ``folder``, or in memory.

    Args:
        folder: Made if need be. None: a memory of its own; see :func:`memory_broker` to share one.
        clock: What expires, expires by its ``time()``.
        lease_seconds: How long a delivery is leased for, where its queue doesn't say.
        max_deliveries: Deliveries before the dead letter, where the queue doesn't say; 0: no limit.
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
        above_zero("lease_seconds", lease_seconds)
        above_zero("retention", retention)
        if max_deliveries < 0:
            raise ConfigurationError(f"max_deliveries is {max_deliveries}; 0 is without a limit")
        self.lease_seconds = lease_seconds
        self.operators: Operators | None = None
        self._max_deliveries = max_deliveries
        self._retention = retention
        self._clock = clock
        self._owns_database = memory is None
        self._wakeups: Wakeups
        if folder is not None:
            self._database = _database(folder / "broker.sqlite3")
            self._wakeups = FolderWakeups(folder / "wake")
        else:
            memory = memory or Memory()
            self._database, self._wakeups = memory.database, memory.wakeups
        self._receivers: weakref.WeakSet[EmbeddedReceiver] = weakref.WeakSet()
        self._swept_at = clock.monotonic()

    def connect(self) -> None:
        with self._database.write(durable=False) as c:
            tables.check_writable(c)

    # --- exchanges, queues, bindings --------------------------------------------------------------

    def declare_exchange(self, name: str, type: str) -> None:
        if type not in EXCHANGE_TYPES:
            raise ConfigurationError(
                f"exchange {name!r} has type {type!r}: use one of {', '.join(EXCHANGE_TYPES)}"
            )
        with self._database.read() as c:
            found = DIRECT if name == "" else tables.exchange_type(c, name)
        if found is None:
            with self._database.write() as c:
                tables.put_exchange(c, name, type)
                found = tables.exchange_type(c, name)
        if found != type:
            raise ConfigurationError(
                f"exchange {name!r} exists with type {found!r}, not {type!r}: declare it with "
                "that type, or delete it first"
            )

    def delete_exchange(self, name: str, *, if_unused: bool = False) -> None:
        with self._database.write() as c:
            bound = tables.bound_to(c, name, self._clock.time()) if if_unused else []
            if bound:
                raise NotDeleted(f"exchange {name!r} is used: queue {bound[0]!r} is bound to it")
            tables.drop_exchange(c, name)

    def has_exchange(self, name: str) -> bool:
        with self._database.read() as c:
            return name == "" or tables.exchange_type(c, name) is not None

    def declare_queue(self, spec: QueueSpec) -> None:
        check_spec(spec)
        with self._database.read() as c:
            found = tables.find_queue(c, spec.name, self._clock.time())
            listeners = tables.listeners(c, spec.name) if spec.temporary else []
        if found is not None and found.spec == spec and spec.expires is None and not listeners:
            return
        dead = [bell for bell in listeners if not self._wakeups.alive(bell)]
        with self._database.write(durable=not spec.temporary) as c:
            now = self._clock.time()
            # First: what a killed process left in an auto_delete queue is gone with it.
            for bell in dead:
                tables.drop_bell(c, bell, now)
            found = tables.find_queue(c, spec.name, now)
            if found is not None and spec.temporary and not found.spec.temporary:
                raise exists_to_stay(spec.name)
            tables.put_queue(c, spec, now)

    def delete_queue(self, name: str, *, if_unused: bool = False, if_empty: bool = False) -> None:
        with self._database.read() as c:
            found = tables.find_queue(c, name, self._clock.time())
            listeners = tables.listeners(c, name) if if_unused else []
        if found is None:
            return
        dead = [bell for bell in listeners if not self._wakeups.alive(bell)]
        with self._database.write(durable=not found.spec.temporary) as c:
            now = self._clock.time()
            for bell in dead:
                tables.drop_bell(c, bell, now)
            found = tables.find_queue(c, name, now)
            if found is None:
                return
            if if_unused and tables.listeners(c, name):
                raise NotDeleted(f"queue {name!r} is used: somebody consumes from it")
            if if_empty and (size := tables.size(c, found, now)).total:
                raise NotDeleted(
                    f"queue {name!r} is not empty: {size.ready} messages are ready, "
                    f"{size.delayed} delayed and {size.leased} leased"
                )
            tables.drop_queue(c, name)

    def has_queue(self, name: str) -> bool:
        with self._database.read() as c:
            return tables.find_queue(c, name, self._clock.time()) is not None

    def bind(self, queue: str, exchange: str, routing_key: str) -> None:
        if exchange == "":
            if routing_key == queue:
                return
            raise ConfigurationError(
                f"queue {queue!r} can't be bound to the default exchange under {routing_key!r}: "
                "it has every queue under its own name; declare another exchange"
            )
        with self._database.read() as c:
            found = self._bindable(c, queue, exchange)
            if tables.has_binding(c, found, exchange, routing_key):
                return
        with self._database.write(durable=not found.spec.temporary) as c:
            tables.put_binding(c, self._bindable(c, queue, exchange), exchange, routing_key)

    def unbind(self, queue: str, exchange: str, routing_key: str) -> None:
        with self._database.write() as c:
            found = tables.find_queue(c, queue, self._clock.time())
            if found is not None:
                tables.drop_binding(c, found, exchange, routing_key)

    def bindings(self) -> list[Binding]:
        with self._database.read() as c:
            return tables.all_bindings(c, self._clock.time())

    def queues(self) -> list[str]:
        with self._database.read() as c:
            return [queue.spec.name for queue in tables.all_queues(c, self._clock.time())]

    def _bindable(self, c: sqlite3.Connection, queue: str, exchange: str) -> Queue:
        if tables.exchange_type(c, exchange) is None:
            raise _no_exchange(exchange)
        return self._find(c, queue)

    def _find(self, c: sqlite3.Connection, name: str) -> Queue:
        queue = tables.find_queue(c, name, self._clock.time())
        if queue is None:
            raise NotFound(f"there is no queue {name!r}: declare it first")
        return queue

    # --- publish ----------------------------------------------------------------------------------

    def publish(self, exchange: str, routing_key: str, message: OutgoingMessage) -> int:
        return self.publish_many([(exchange, routing_key, message)])[0]

    def publish_many(self, messages: Sequence[tuple[str, str, OutgoingMessage]]) -> list[int]:
        if not messages:
            return []
        self._sweep_if_due()
        routes: dict[tuple[str, str], list[Queue]] = {}
        reached = []
        with self._change(durable=True) as change:
            for exchange, routing_key, message in messages:
                route = (exchange, routing_key)
                if route not in routes:
                    routes[route] = self._route(change, exchange, routing_key)
                if not routes[route] and not exchange and not message.reply:
                    routes[route] = [self._ensure(change, routing_key)]
                reached.append(len(routes[route]))
                for queue in routes[route]:
                    tables.insert_message(change.c, queue, message, change.now, self._retention)
            for queues in routes.values():
                for queue in queues:
                    change.wake(queue.spec.name)
        return reached

    def _route(self, change: _Change, exchange: str, routing_key: str) -> list[Queue]:
        if exchange:
            type = tables.exchange_type(change.c, exchange)
            if type is None:
                raise _no_exchange(exchange)
            return tables.route(change.c, exchange, type, routing_key, change.now)
        if not routing_key:
            raise NotFound("the default exchange needs a queue's name as the routing key")
        found = tables.find_queue(change.c, routing_key, change.now)
        return [] if found is None else [found]

    def _ensure(self, change: _Change, name: str) -> Queue:
        """The queue, made as a durable one if there is none."""
        found = tables.find_queue(change.c, name, change.now)
        return found or tables.put_queue(change.c, QueueSpec(name), change.now)

    # --- deliveries -------------------------------------------------------------------------------

    def receiver(self) -> EmbeddedReceiver:
        receiver = EmbeddedReceiver(self, self._wakeups.open())
        self._receivers.add(receiver)
        return receiver

    def _poll(self, name: str, limit: int, *, busy: bool, begun: bool = True) -> list[Delivery]:
        """``busy``: more is likely to be there, so that a look before the lock isn't worth it."""
        self._sweep_if_due()
        if not busy:
            now = self._clock.time()
            with self._database.read() as c:
                found = tables.find_queue(c, name, now)
                if found is None or not tables.has_ready(c, found, now):
                    return []
        deliveries: list[Delivery] = []
        with self._change() as change:
            queue = tables.find_queue(change.c, name, change.now)
            if queue is None:
                return []
            promoted = tables.promote(change.c, queue, change.now)
            while len(deliveries) < limit:
                rows = tables.ready(change.c, queue, limit - len(deliveries))
                if not rows:
                    break
                for row in rows:
                    if row["expires_at"] <= change.now:
                        tables.delete(change.c, row["id"])
                    elif 0 < self._limit(queue) <= row["attempts"]:
                        reason = f"delivered {row['attempts']} times without an ack"
                        self._bury(change, queue, row, reason)
                    else:
                        deliveries.append(self._deliver(change, queue, row, begun))
            if promoted > len(deliveries):
                # Another receiver may be about to wait for what was due and now is ready.
                change.wake(name)
        return deliveries

    def _limit(self, queue: Queue) -> int:
        if queue.takes_dead_letters:
            return 0
        own = queue.spec.max_deliveries
        return self._max_deliveries if own is None else own

    def _deliver(self, change: _Change, queue: Queue, row: sqlite3.Row, begun: bool) -> Delivery:
        seconds = self._lease_seconds(queue)
        # Not from a counter: it must not be used again, should the file be replaced under a worker.
        lease = int.from_bytes(os.urandom(8), "big") >> 1
        tables.take(change.c, row["id"], lease, change.now + seconds, begun=begun)
        return Delivery(
            queue=queue.spec.name,
            ack_id=f"{row['id']}.{lease}",
            message_id=str(row["id"]),
            data=row["data"],
            attributes=tables.read_attributes(row["attributes"]),
            deliveries=row["deliveries"] + 1,
            attempts=row["attempts"],
            published_at=row["published_at"],
            priority=row["priority"],
            lease_seconds=seconds,
        )

    def _lease_seconds(self, queue: Queue) -> float:
        own = queue.spec.lease_seconds
        return self.lease_seconds if own is None else own

    def ack(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        if not deliveries:
            return []
        with self._database.write(durable=False) as c:
            return [d for d in deliveries if not tables.delete_leased(c, *_lease_of(d))]

    def begin(self, delivery: Delivery) -> None:
        with self._database.write(durable=False) as c:
            tables.set_attempts(c, *_lease_of(delivery), delivery.attempts + 1)

    def nack(self, delivery: Delivery, delay: float = 0.0) -> None:
        with self._change() as change:
            id, lease = _lease_of(delivery)
            if tables.leased(change.c, id, lease, change.now) is not None:
                tables.set_attempts(change.c, id, lease, delivery.attempts + 1)
                tables.free(change.c, id, change.now + delay if delay > 0 else None)
                change.wake(delivery.queue)

    def give_back(self, delivery: Delivery) -> None:
        with self._change() as change:
            id, lease = _lease_of(delivery)
            if tables.leased(change.c, id, lease, change.now) is not None:
                tables.set_attempts(change.c, id, lease, delivery.attempts)
                tables.take_back(change.c, id)
                change.wake(delivery.queue)

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> list[Delivery]:
        if not deliveries:
            return []
        lost = []
        with self._change() as change:
            until = change.now + seconds
            for delivery in deliveries:
                id, lease = _lease_of(delivery)
                row = tables.leased(change.c, id, lease, change.now)
                if row is None:
                    lost.append(delivery)
                    continue
                tables.set_due(change.c, id, until)
                if row["due"] is not None and until < row["due"]:
                    change.wake(delivery.queue)
        return lost

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        with self._change() as change:
            row = tables.leased(change.c, *_lease_of(delivery), change.now)
            queue = tables.find_queue(change.c, delivery.queue, change.now)
            if row is not None and queue is not None:
                self._bury(change, queue, row, reason, delivery.attributes)

    def bury(self, delivery: Delivery, reason: str) -> None:
        attributes = {
            **delivery.attributes,
            DEATH_REASON: cut(reason, REASON_BYTES),
            DEATH_QUEUE: delivery.queue,
            DEATH_DELIVERIES: str(delivery.deliveries),
            DEATH_TIME: f"{self._clock.time():.6f}",
        }
        message = OutgoingMessage(delivery.data, attributes, delivery.priority)
        self.publish("", dead_letter_queue(delivery.queue), message)

    def _bury(
        self,
        change: _Change,
        queue: Queue,
        row: sqlite3.Row,
        reason: str,
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Move it to the dead letter; ``more``: attributes that its consumer gave it."""
        if queue.spec.temporary:
            tables.delete(change.c, row["id"])
            return
        if queue.takes_dead_letters:
            # Back at once, it would keep a consumer that refuses it busy for ever.
            tables.free(change.c, row["id"], change.now + self._lease_seconds(queue))
            change.wake(queue.spec.name)
            return
        attributes = {
            **more,
            **tables.read_attributes(row["attributes"]),
            DEATH_REASON: cut(reason, REASON_BYTES),
            DEATH_QUEUE: queue.spec.name,
            DEATH_DELIVERIES: str(row["deliveries"]),
            DEATH_TIME: f"{change.now:.6f}",
        }
        dead = self._ensure(change, dead_letter_queue(queue.spec.name))
        tables.move(change.c, row["id"], dead, attributes, change.now + self._retention)
        change.wake(dead.spec.name)

    # --- for operators ----------------------------------------------------------------------------

    def size(self, queue: str) -> QueueSize | None:
        """As :meth:`Broker.size`."""
        now = self._clock.time()
        with self._database.read() as c:
            if queue.endswith(DEAD_LETTER_SUFFIX) and tables.find_queue(c, queue, now) is None:
                return QueueSize(0, 0, 0)
            return tables.size(c, self._find(c, queue), now)

    def purge(self, queue: str) -> int:
        """Delete what is ready or delayed, not what is leased; how many. 0 for a missing queue."""
        if self.operators is not None:
            self.operators.about_to("purge", queue)
        with self._change(durable=True) as change:
            found = tables.find_queue(change.c, queue, change.now)
            return 0 if found is None else tables.delete_unleased(change.c, found, change.now)

    def peek(self, queue: str, limit: int = 100) -> list[StoredMessage]:
        """What is ready in delivery order, then the rest by when it is; [] for a missing queue."""
        now = self._clock.time()
        with self._database.read() as c:
            found = tables.find_queue(c, queue, now)
            return [] if found is None else tables.peek(c, found, limit, now)

    def redrive(self, queue: str, limit: int | None = None) -> int:
        """Move what is ready in the dead letter back, in its order; how many that was.

        Their time to live starts anew. The queue is made if it is gone.
        """
        dead = dead_letter_queue(queue)
        with self._database.read() as c:
            found = tables.find_queue(c, dead, self._clock.time())
            if found is None:
                return 0
            # No more than there are now: some may die again meanwhile.
            left = tables.size(c, found, self._clock.time()).ready
        left = left if limit is None else min(limit, left)
        redrive = redriving(self.operators, queue)
        moved = 0
        while left > moved:
            batch = self._redrive(queue, dead, min(_REDRIVE_BATCH, left - moved), redrive)
            if not batch:
                break
            moved += batch
        return moved

    def _redrive(self, queue: str, dead: str, limit: int, redrive: str) -> int:
        with self._change(durable=True) as change:
            source = tables.find_queue(change.c, dead, change.now)
            if source is None:
                return 0
            tables.delete_expired(change.c, change.now, source)
            tables.promote(change.c, source, change.now)
            target = self._ensure(change, queue)
            expires_at = change.now + tables.time_to_live(target, self._retention)
            rows = tables.ready(change.c, source, limit)
            for row in rows:
                attributes = tables.read_attributes(row["attributes"])
                kept = {k: v for k, v in attributes.items() if k not in _DEATH_ATTRIBUTES}
                tables.move(change.c, row["id"], target, {**kept, REDRIVE: redrive}, expires_at)
            change.wake(queue)
            return len(rows)

    @property
    def database(self) -> Database:
        return self._database

    def housekeep(self, limit: int = _SWEEP_LIMIT) -> int:
        """Delete what dead receivers and the passing of time have left; how many messages.

        Receivers and publishers do so by themselves about twice a minute.
        """
        for receiver in list(self._receivers):
            receiver._refresh()
        with self._database.read() as c:
            listeners = tables.all_listeners(c)
            expired = tables.has_expired(c, self._clock.time())
        dead = [bell for bell in listeners if not self._wakeups.alive(bell)]
        if not dead and not expired:
            return 0
        self._bury_receivers(dead)
        with self._database.write(durable=False) as c:
            tables.drop_expired_queues(c, self._clock.time())
            return tables.delete_expired(c, self._clock.time(), limit=limit)

    def _sweep_if_due(self) -> None:
        now = self._clock.monotonic()
        if now - self._swept_at >= LOOK_INTERVAL:
            self._swept_at = now
            # It is not what the caller asked for; the next one tries again.
            with contextlib.suppress(BrokerError):
                self.housekeep()

    def close(self) -> None:
        for receiver in list(self._receivers):
            receiver.close()
        if self._owns_database:
            self._database.close()

    # --- wake-ups ---------------------------------------------------------------------------------

    @contextmanager
    def _change(self, *, durable: bool = False) -> Iterator[_Change]:
        """A write transaction; once it is committed, whom it concerns is woken."""
        with self._database.write(durable=durable) as c:
            change = _Change(c, self._clock.time())
            yield change
        dead = self._wakeups.ring(change.listeners)
        if dead:
            # The change stands, whatever becomes of this.
            with contextlib.suppress(BrokerError):
                self._bury_receivers(dead)

    def _bury_receivers(self, bells: Iterable[str]) -> None:
        """End the subscriptions of receivers that died without a word."""
        with self._database.write(durable=False) as c:
            for bell in bells:
                tables.drop_bell(c, bell, self._clock.time())
        for bell in bells:
            self._wakeups.remove(bell)


class _Change:
    """One write transaction, and who is to be woken after it."""

    def __init__(self, c: sqlite3.Connection, now: float) -> None:
        self.c = c
        self.now = now
        self.listeners: set[str] = set()

    def wake(self, queue: str) -> None:
        self.listeners.update(tables.listeners(self.c, queue))


class EmbeddedReceiver:
    """A :class:`~gwi_celery.brokers.base.Receiver`. It stays with the process that made it.

    A fork's child has a closed copy: closing it does nothing, using it raises BrokerUnusable.
    """

    def __init__(self, broker: EmbeddedBroker, bell: Bell) -> None:
        self._broker = broker
        self._bell = bell
        #: Queue -> the time up to which what became due there is known to our user.
        self._queues: dict[str, float] = {}
        #: Queues whose last poll gave all that was asked for.
        self._busy: set[str] = set()
        self._pid = os.getpid()
        self._closed = False

    def subscribe(self, queue: str, *, bulk: bool = False) -> None:
        self._check()
        broker = self._broker
        with broker._database.write(durable=False) as c:
            broker._find(c, queue)
            tables.add_listener(c, queue, self._bell.name)
        self._queues.setdefault(queue, -math.inf)
        self._bell.ring()  # what is there already was published before anyone could wake us

    def unsubscribe(self, queue: str) -> None:
        self._check()
        if queue in self._queues:
            self._leave([queue])
            del self._queues[queue]

    def poll(self, queue: str, limit: int, *, room: int = 0, begun: bool = True) -> list[Delivery]:
        self._check()
        now = self._broker._clock.time()
        deliveries = self._broker._poll(queue, limit, busy=queue in self._busy, begun=begun)
        if limit and len(deliveries) == limit:
            self._busy.add(queue)
        else:
            self._busy.discard(queue)
        if queue in self._queues:
            self._queues[queue] = now
        return deliveries

    def want(self, queue: str, limit: int) -> None:
        """Nothing to do: a poll finds what there is."""

    def return_unpolled(self, queue: str) -> None:
        """Nothing to do: only a poll leases."""

    def fileno(self) -> int:
        self._check()
        return self._bell.fileno()

    def clear(self) -> None:
        self._check()
        self._bell.clear()

    def next_due(self) -> float | None:
        """Seconds until a poll may find something although nobody wakes us. Call it after polling.

        What could be polled already is not announced, or only once: a user who has no room for it
        must not be called again and again. At most half a minute, as a publisher may have been
        killed before it could wake us.
        """
        self._check()
        broker = self._broker
        broker._sweep_if_due()
        now = broker._clock.time()
        waits = []
        if self._queues and self._bell.interval is not None:
            waits.append(self._bell.interval)
        with broker._database.read() as c:
            for name, known in self._queues.items():
                queue = tables.find_queue(c, name, now)
                due = None if queue is None else tables.first_due(c, queue, min(known, now))
                if due is not None:
                    waits.append(max(due - now, 0.0))
                    self._queues[name] = now
        return min(waits, default=None)

    def close(self) -> None:
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        try:
            # If this fails, others find the bell dead.
            with contextlib.suppress(BrokerError):
                if self._queues:
                    self._leave(self._queues)
        finally:
            self._queues = {}
            self._bell.close()
            self._broker._wakeups.remove(self._bell.name)

    def _leave(self, queues: Iterable[str]) -> None:
        """End our subscriptions; those of dead receivers must not keep a queue."""
        broker = self._broker
        with broker._database.read() as c:
            others = {bell for queue in queues for bell in tables.listeners(c, queue)}
        others.discard(self._bell.name)
        dead = [bell for bell in others if not broker._wakeups.alive(bell)]
        with broker._database.write(durable=False) as c:
            for bell in dead:
                tables.drop_bell(c, bell, broker._clock.time())
            for queue in queues:
                tables.drop_listener(c, queue, self._bell.name, broker._clock.time())
        for bell in dead:
            broker._wakeups.remove(bell)

    def _refresh(self) -> None:
        if not self._closed and os.getpid() == self._pid:
            self._broker._wakeups.refresh(self._bell)

    def _check(self) -> None:
        if self._closed:
            raise BrokerUnusable("this receiver was closed: ask the broker for another one")
        if os.getpid() != self._pid:
            raise BrokerUnusable(
                "this receiver belongs to the process that this one was forked from: ask the "
                "broker for another one"
            )


# --- memory ---------------------------------------------------------------------------------------


class Memory:
    """A broker's state within one process."""

    def __init__(self) -> None:
        self.database = _database(None)
        self.wakeups = PipeWakeups()


_memories: dict[str, Memory] = {}


def memory_broker(
    name: str = "default",
    *,
    clock: Clock = SYSTEM_CLOCK,
    lease_seconds: float = 30.0,
    max_deliveries: int = 20,
    retention: float = RETENTION,
) -> EmbeddedBroker:
    """A broker on this process's memory of that name, which all who name it share.

    The memory outlives the broker's ``close()``, as a server would: it lasts as long as the
    process, or until :func:`forget_memory`.
    """
    return EmbeddedBroker(
        None,
        clock=clock,
        lease_seconds=lease_seconds,
        max_deliveries=max_deliveries,
        retention=retention,
        memory=_memories.setdefault(name, Memory()),
    )


def forget_memory(name: str = "default") -> None:
    """Drop the memory of that name and all it holds. Brokers still on it raise BrokerUnusable."""
    memory = _memories.pop(name, None)
    if memory is not None:
        memory.database.close()


# --- small things ---------------------------------------------------------------------------------


def _database(path: Path | None) -> Database:
    return Database(
        path,
        kind="broker",
        schema=tables.SCHEMA,
        application_id=tables.APPLICATION_ID,
        version=tables.VERSION,
        migrations=tables.MIGRATIONS,
        unavailable=BrokerUnavailable,
        unusable=BrokerUnusable,
    )


def _lease_of(delivery: Delivery) -> tuple[int, int]:
    id, _, lease = delivery.ack_id.partition(".")
    return int(id), int(lease)


def _no_exchange(name: str) -> NotFound:
    return NotFound(f"there is no exchange {name!r}: declare it first")
