"""The embedded broker's queues, exchanges, bindings and listeners. See also :mod:`.messages`.

Every function takes a connection.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from gwi_celery.brokers import routing
from gwi_celery.brokers.base import DEAD_LETTER_SUFFIX, Binding, QueueSpec
from gwi_celery.text import raw, unraw


def check_writable(c: sqlite3.Connection) -> None:
    """Fail on a read-only file, which a transaction that changes nothing would not notice."""
    c.execute("DELETE FROM queues WHERE id IS NULL")


# --- queues and who listens -----------------------------------------------------------------------


@dataclass(frozen=True)
class Queue:
    """A queue's row."""

    id: int
    spec: QueueSpec
    paused: bool = False

    @property
    def takes_dead_letters(self) -> bool:
        """Whether it is a dead letter, by its name: it has no limit of attempts, and no dead letter."""
        return self.spec.name.endswith(DEAD_LETTER_SUFFIX)


def _queue(row: sqlite3.Row) -> Queue:
    return Queue(
        row["id"],
        QueueSpec(
            name=unraw(row["name"]),
            durable=bool(row["durable"]),
            auto_delete=bool(row["auto_delete"]),
            expires=row["expires"],
            message_ttl=row["message_ttl"],
            lease_seconds=row["lease_seconds"],
            max_deliveries=row["max_deliveries"],
        ),
        bool(row["paused"]),
    )


def find_queue(c: sqlite3.Connection, name: str, now: float) -> Queue | None:
    """The queue; None if there is none, or it has expired."""
    row = c.execute(
        "SELECT * FROM ending_queues WHERE name = ? AND (ends_at IS NULL OR ends_at > ?)",
        (raw(name), now),
    ).fetchone()
    return None if row is None else _queue(row)


def all_queues(c: sqlite3.Connection, now: float) -> list[Queue]:
    rows = c.execute(
        "SELECT * FROM ending_queues WHERE ends_at IS NULL OR ends_at > ? ORDER BY name", (now,)
    )
    return [_queue(row) for row in rows]


def put_queue(c: sqlite3.Connection, spec: QueueSpec, now: float) -> Queue:
    """Create the queue, or give it these settings. Its ``expires`` counts from now."""
    if find_queue(c, spec.name, now) is None:
        drop_queue(c, spec.name)  # what an expired one left
    c.execute(
        "INSERT INTO queues (name, durable, auto_delete, expires, message_ttl, lease_seconds, "
        "max_deliveries, gone_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (name) DO UPDATE SET durable = excluded.durable, "
        "auto_delete = excluded.auto_delete, expires = excluded.expires, "
        "message_ttl = excluded.message_ttl, lease_seconds = excluded.lease_seconds, "
        "max_deliveries = excluded.max_deliveries, gone_at = excluded.gone_at",
        (
            raw(spec.name),
            spec.durable,
            spec.auto_delete,
            spec.expires,
            spec.message_ttl,
            spec.lease_seconds,
            spec.max_deliveries,
            None if spec.expires is None else now + spec.expires,
        ),
    )
    row = c.execute("SELECT id FROM queues WHERE name = ?", (raw(spec.name),)).fetchone()
    return Queue(row["id"], spec)


def drop_queue(c: sqlite3.Connection, name: str) -> None:
    """Delete the queue, its bindings and its messages; its listeners stay."""
    row = c.execute("SELECT id FROM queues WHERE name = ?", (raw(name),)).fetchone()
    if row is None:
        return
    c.execute(
        "DELETE FROM bodies WHERE id IN (SELECT id FROM messages WHERE queue = ?)", (row["id"],)
    )
    c.execute("DELETE FROM messages WHERE queue = ?", (row["id"],))
    c.execute("DELETE FROM bindings WHERE queue = ?", (row["id"],))
    c.execute("DELETE FROM queues WHERE id = ?", (row["id"],))


def set_paused(c: sqlite3.Connection, queue: Queue, paused: bool) -> None:
    c.execute("UPDATE queues SET paused = ? WHERE id = ?", (paused, queue.id))


def drop_expired_queues(c: sqlite3.Connection, now: float) -> None:
    for row in c.execute("SELECT name FROM ending_queues WHERE ends_at <= ?", (now,)).fetchall():
        drop_queue(c, unraw(row["name"]))


def listeners(c: sqlite3.Connection, queue: str) -> list[str]:
    """The bells to ring for the queue, dead ones among them."""
    rows = c.execute("SELECT intake FROM listeners WHERE queue = ?", (raw(queue),))
    return [row["intake"] for row in rows]


def all_listeners(c: sqlite3.Connection) -> list[str]:
    return [row["intake"] for row in c.execute("SELECT DISTINCT intake FROM listeners")]


def add_listener(c: sqlite3.Connection, queue: str, bell: str) -> None:
    c.execute("INSERT OR IGNORE INTO listeners VALUES (?, ?)", (raw(queue), bell))


def drop_listener(c: sqlite3.Connection, queue: str, bell: str, now: float) -> None:
    """End one subscription, and the queue with it if it was the last of an auto_delete queue."""
    key = raw(queue)
    gone = c.execute("DELETE FROM listeners WHERE queue = ? AND intake = ?", (key, bell))
    if not gone.rowcount or listeners(c, queue):
        return
    row = c.execute("SELECT auto_delete FROM queues WHERE name = ?", (key,)).fetchone()
    if row is not None and row["auto_delete"]:
        drop_queue(c, queue)
    c.execute("UPDATE queues SET gone_at = ? + expires WHERE name = ?", (now, key))


def drop_bell(c: sqlite3.Connection, bell: str, now: float) -> None:
    """End all subscriptions of one receiver."""
    rows = c.execute("SELECT queue FROM listeners WHERE intake = ?", (bell,)).fetchall()
    for row in rows:
        drop_listener(c, unraw(row["queue"]), bell, now)


# --- exchanges ------------------------------------------------------------------------------------


def exchange_type(c: sqlite3.Connection, name: str) -> str | None:
    row = c.execute("SELECT type FROM exchanges WHERE name = ?", (raw(name),)).fetchone()
    return None if row is None else str(row["type"])


def put_exchange(c: sqlite3.Connection, name: str, type: str) -> None:
    c.execute("INSERT OR IGNORE INTO exchanges VALUES (?, ?)", (raw(name), type))


def drop_exchange(c: sqlite3.Connection, name: str) -> None:
    c.execute("DELETE FROM bindings WHERE exchange = ?", (raw(name),))
    c.execute("DELETE FROM exchanges WHERE name = ?", (raw(name),))


def bound_to(c: sqlite3.Connection, exchange: str, now: float) -> list[str]:
    """The queues that are bound to the exchange."""
    rows = c.execute(
        "SELECT DISTINCT q.name FROM bindings b JOIN ending_queues q ON q.id = b.queue "
        "WHERE b.exchange = ? AND (ends_at IS NULL OR ends_at > ?) ORDER BY q.name",
        (raw(exchange), now),
    )
    return [unraw(row["name"]) for row in rows]


def put_binding(c: sqlite3.Connection, queue: Queue, exchange: str, routing_key: str) -> None:
    c.execute(
        "INSERT OR IGNORE INTO bindings VALUES (?, ?, ?)",
        (raw(exchange), raw(routing_key), queue.id),
    )


def has_binding(c: sqlite3.Connection, queue: Queue, exchange: str, routing_key: str) -> bool:
    row = c.execute(
        "SELECT 1 FROM bindings WHERE exchange = ? AND routing_key = ? AND queue = ?",
        (raw(exchange), raw(routing_key), queue.id),
    ).fetchone()
    return row is not None


def drop_binding(c: sqlite3.Connection, queue: Queue, exchange: str, routing_key: str) -> None:
    c.execute(
        "DELETE FROM bindings WHERE exchange = ? AND routing_key = ? AND queue = ?",
        (raw(exchange), raw(routing_key), queue.id),
    )


def all_bindings(c: sqlite3.Connection, now: float) -> list[Binding]:
    rows = c.execute(
        "SELECT q.name, b.exchange, b.routing_key FROM bindings b "
        "JOIN ending_queues q ON q.id = b.queue WHERE ends_at IS NULL OR ends_at > ? "
        "ORDER BY q.name, b.exchange, b.routing_key",
        (now,),
    )
    return [
        Binding(unraw(row["name"]), unraw(row["exchange"]), unraw(row["routing_key"]))
        for row in rows
    ]


def route(
    c: sqlite3.Connection, exchange: str, exchange_type: str, routing_key: str, now: float
) -> list[Queue]:
    """The queues that the exchange sends this routing key to, each once."""
    if exchange_type == routing.DIRECT:
        rows = c.execute(
            "SELECT q.*, b.routing_key FROM bindings b JOIN ending_queues q ON q.id = b.queue "
            "WHERE b.exchange = ? AND b.routing_key = ? AND (ends_at IS NULL OR ends_at > ?)",
            (raw(exchange), raw(routing_key), now),
        )
    else:
        rows = c.execute(
            "SELECT q.*, b.routing_key FROM bindings b JOIN ending_queues q ON q.id = b.queue "
            "WHERE b.exchange = ? AND (ends_at IS NULL OR ends_at > ?)",
            (raw(exchange), now),
        )
    found = {
        row["id"]: _queue(row)
        for row in rows
        if routing.matches(exchange_type, unraw(row["routing_key"]), routing_key)
    }
    return list(found.values())
