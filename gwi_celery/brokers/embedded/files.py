"""The database of an embedded broker, and whom its changes wake; for the package's other modules."""

from __future__ import annotations

import contextlib
import sqlite3
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gwi_celery.brokers.base import QueueSpec
from gwi_celery.brokers.checks import no_queue
from gwi_celery.brokers.embedded import messages, schema, tables
from gwi_celery.brokers.embedded.tables import Queue
from gwi_celery.brokers.wakeups import LOOK_INTERVAL, FolderWakeups, PipeWakeups, Wakeups
from gwi_celery.clock import Clock
from gwi_celery.errors import BrokerError, BrokerUnavailable, BrokerUnusable
from gwi_celery.sqlite import Database

if TYPE_CHECKING:
    from gwi_celery.brokers.embedded.receiver import EmbeddedReceiver

#: The most expired messages that housekeeping deletes in one transaction, so that nobody waits for long.
SWEEP_LIMIT = 1000


class Change:
    """One write transaction, and the listeners to wake after it."""

    def __init__(self, c: sqlite3.Connection, now: float) -> None:
        self.c = c
        self.now = now
        self.listeners: set[str] = set()

    def wake(self, queue: str) -> None:
        self.listeners.update(tables.listeners(self.c, queue))


class Memory:
    """A broker's state within one process."""

    def __init__(self) -> None:
        self.database = open_database(None)
        self.wakeups = PipeWakeups()


class Files:
    """What the parts of one broker share.

    Args:
        folder: None: in memory.
        lease_seconds, max_deliveries: Used where a queue has none of its own. 0 deliveries: no limit.
        retention: Seconds a message is kept, where neither it nor its queue says.
    """

    def __init__(
        self,
        folder: Path | None,
        memory: Memory | None,
        clock: Clock,
        *,
        lease_seconds: float,
        max_deliveries: int,
        retention: float,
    ) -> None:
        self.clock = clock
        self.retention = retention
        self._default_lease = lease_seconds
        self._default_limit = max_deliveries
        self._owns_database = memory is None
        self.wakeups: Wakeups
        if folder is not None:
            self.database = open_database(folder / "broker.sqlite3")
            self.wakeups = FolderWakeups(folder / "wake")
        else:
            memory = memory or Memory()
            self.database, self.wakeups = memory.database, memory.wakeups
        self.receivers: weakref.WeakSet[EmbeddedReceiver] = weakref.WeakSet()
        self._swept_at = clock.monotonic()

    # --- queues -------------------------------------------------------------------------------

    def find(self, c: sqlite3.Connection, name: str) -> Queue:
        """Raises NotFound."""
        queue = tables.find_queue(c, name, self.clock.time())
        if queue is None:
            raise no_queue(name)
        return queue

    def ensure(self, change: Change, name: str) -> Queue:
        """The queue, created as a durable one if it doesn't exist."""
        found = tables.find_queue(change.c, name, change.now)
        return found or tables.put_queue(change.c, QueueSpec(name), change.now)

    def max_deliveries(self, queue: Queue) -> int:
        """0: no limit."""
        if queue.takes_dead_letters:
            return 0
        own = queue.spec.max_deliveries
        return self._default_limit if own is None else own

    def lease_seconds(self, queue: Queue) -> float:
        own = queue.spec.lease_seconds
        return self._default_lease if own is None else own

    # --- changes, and whom they wake ----------------------------------------------------------

    @contextmanager
    def change(self, *, durable: bool = False) -> Iterator[Change]:
        """A write transaction, which wakes the listeners it concerns once it is committed."""
        with self.database.write(durable=durable) as c:
            change = Change(c, self.clock.time())
            yield change
        dead = self.wakeups.ring(change.listeners)
        if dead:
            # If this fails, the change stands nevertheless.
            with contextlib.suppress(BrokerError):
                self._bury_receivers(dead)

    def dead(self, bells: Iterable[str]) -> list[str]:
        """Those of the bells whose receivers are gone."""
        return [bell for bell in bells if not self.wakeups.alive(bell)]

    def _bury_receivers(self, bells: Iterable[str]) -> None:
        """End the subscriptions of receivers that died without closing."""
        with self.database.write(durable=False) as c:
            for bell in bells:
                tables.drop_bell(c, bell, self.clock.time())
        for bell in bells:
            self.wakeups.remove(bell)

    # --- upkeep -------------------------------------------------------------------------------

    def housekeep(self, limit: int = SWEEP_LIMIT) -> int:
        """Delete what has expired and what dead receivers left; returns the number of messages.

        Receivers and publishers do so by themselves about twice a minute.
        """
        for receiver in list(self.receivers):
            receiver.refresh()
        with self.database.read() as c:
            listeners = tables.all_listeners(c)
            expired = messages.has_expired(c, self.clock.time())
        dead = self.dead(listeners)
        if not dead and not expired:
            return 0
        self._bury_receivers(dead)
        with self.database.write(durable=False) as c:
            tables.drop_expired_queues(c, self.clock.time())
            return messages.delete_expired(c, self.clock.time(), limit=limit)

    def sweep_if_due(self) -> None:
        now = self.clock.monotonic()
        if now - self._swept_at >= LOOK_INTERVAL:
            self._swept_at = now
            # The caller asked for something else; the next call tries again.
            with contextlib.suppress(BrokerError):
                self.housekeep()

    def close(self) -> None:
        for receiver in list(self.receivers):
            receiver.close()
        if self._owns_database:
            self.database.close()


def open_database(path: Path | None) -> Database:
    return Database(
        path,
        kind="broker",
        schema=schema.SCHEMA,
        application_id=schema.APPLICATION_ID,
        version=schema.VERSION,
        migrations=schema.MIGRATIONS,
        unavailable=BrokerUnavailable,
        unusable=BrokerUnusable,
    )
