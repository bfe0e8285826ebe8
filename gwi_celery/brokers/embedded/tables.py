"""The embedded broker's tables, and what is asked of them. Every function takes a connection.

A message is *ready* while its ``due`` is NULL. Else it becomes ready at ``due``: it is leased if it
has a ``lease``, and delayed if not. A poll promotes what has become due, so that the ready ones
stand in their index in delivery order, and taking the first costs the same however many wait behind.

A lease that has run out stays on its message until the next delivery, so that a late ack counts as
long as nobody else was given the message.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from gwi_celery.brokers import routing
from gwi_celery.brokers.base import (
    DEAD_LETTER_SUFFIX,
    Binding,
    OutgoingMessage,
    QueueSize,
    QueueSpec,
    StoredMessage,
)


def raw(text: str) -> bytes:
    """Any string as bytes, lone surrogates too."""
    return text.encode("utf-8", "surrogatepass")


def text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


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
        """By its name: such a queue has no limit of deliveries, and no dead letter of its own."""
        return self.spec.name.endswith(DEAD_LETTER_SUFFIX)


def _queue(row: sqlite3.Row) -> Queue:
    return Queue(
        row["id"],
        QueueSpec(
            name=text(row["name"]),
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
    """Make the queue, or give it these settings. Its ``expires`` counts from now."""
    if find_queue(c, spec.name, now) is None:
        drop_queue(c, spec.name)  # what an expired one has left
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
    """The queue, its bindings and its messages; its listeners stay."""
    row = c.execute("SELECT id FROM queues WHERE name = ?", (raw(name),)).fetchone()
    if row is None:
        return
    c.execute(
        "DELETE FROM bodies WHERE id IN (SELECT id FROM messages WHERE queue = ?)", (row["id"],)
    )
    c.execute("DELETE FROM messages WHERE queue = ?", (row["id"],))
    c.execute("DELETE FROM bindings WHERE queue = ?", (row["id"],))
    c.execute("DELETE FROM queues WHERE id = ?", (row["id"],))


def drop_expired_queues(c: sqlite3.Connection, now: float) -> None:
    for row in c.execute("SELECT name FROM ending_queues WHERE ends_at <= ?", (now,)).fetchall():
        drop_queue(c, text(row["name"]))


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
        drop_listener(c, text(row["queue"]), bell, now)


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
    return [text(row["name"]) for row in rows]


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
        Binding(text(row["name"]), text(row["exchange"]), text(row["routing_key"])) for row in rows
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
        if routing.matches(exchange_type, text(row["routing_key"]), routing_key)
    }
    return list(found.values())


# --- messages -------------------------------------------------------------------------------------


def insert_message(
    c: sqlite3.Connection, queue: Queue, message: OutgoingMessage, now: float, retention: float
) -> None:
    due = now + message.delay if message.delay > 0 else None
    # A default never drops what may not be delivered yet.
    expires_at = (due or now) + time_to_live(queue, retention)
    if message.ttl is not None:
        expires_at = now + message.ttl
    row = c.execute(
        "INSERT INTO messages (queue, priority, due, deliveries, published_at, expires_at) "
        "VALUES (?, ?, ?, 0, ?, ?)",
        (queue.id, message.priority, due, now, expires_at),
    )
    c.execute(
        "INSERT INTO bodies VALUES (?, ?, ?)",
        (row.lastrowid, message.data, write_attributes(message.attributes)),
    )


def set_paused(c: sqlite3.Connection, queue: Queue, paused: bool) -> None:
    c.execute("UPDATE queues SET paused = ? WHERE id = ?", (paused, queue.id))


def oldest(c: sqlite3.Connection, queue: Queue, now: float) -> float | None:
    """When the oldest that is ready was published."""
    row = c.execute(
        "SELECT min(published_at) AS oldest FROM messages WHERE queue = ? "
        "AND (due IS NULL OR due <= ?) AND expires_at > ?",
        (queue.id, now, now),
    ).fetchone()
    found: float | None = row["oldest"]
    return found


def time_to_live(queue: Queue, retention: float) -> float:
    """Seconds the queue keeps a message that doesn't say."""
    return retention if queue.spec.message_ttl is None else queue.spec.message_ttl


def has_ready(c: sqlite3.Connection, queue: Queue, now: float) -> bool:
    """Whether a poll has anything to look at, if only something expired."""
    row = c.execute(
        "SELECT EXISTS (SELECT 1 FROM messages WHERE queue = ? AND due IS NULL) "
        "OR EXISTS (SELECT 1 FROM messages WHERE queue = ? AND due <= ?) AS found",
        (queue.id, queue.id, now),
    ).fetchone()
    return bool(row["found"])


def first_due(c: sqlite3.Connection, queue: Queue, after: float) -> float | None:
    """When the next message becomes ready after that time."""
    row = c.execute(
        "SELECT min(due) AS first FROM messages WHERE queue = ? AND due > ?", (queue.id, after)
    ).fetchone()
    first: float | None = row["first"]
    return first


def promote(c: sqlite3.Connection, queue: Queue, now: float) -> int:
    """Make ready what has become due; how many."""
    return c.execute(
        "UPDATE messages SET due = NULL WHERE queue = ? AND due <= ?", (queue.id, now)
    ).rowcount


def ready(
    c: sqlite3.Connection, queue: Queue, limit: int, only: Collection[str] | None = None
) -> list[sqlite3.Row]:
    """The next messages in delivery order, once promoted; expired ones among them."""
    return c.execute(
        "SELECT m.*, b.data, b.attributes FROM messages m CROSS JOIN bodies b ON b.id = m.id "
        "WHERE m.queue = ?1 AND m.due IS NULL "
        "AND (?3 IS NULL OR m.id IN (SELECT value FROM json_each(?3))) "
        "ORDER BY m.priority DESC, m.id LIMIT ?2",
        (queue.id, limit, None if only is None else _ids(only)),
    ).fetchall()


def _ids(only: Collection[str]) -> str:
    """As a JSON list; what is no id of ours names no message."""
    return json.dumps([int(id) for id in only if id.isascii() and id.isdigit()])


def unleased(c: sqlite3.Connection, queue: Queue, only: Collection[str], now: float) -> list[int]:
    """Those of the ids that are in the queue, and in nobody's hands."""
    rows = c.execute(
        "SELECT id FROM messages WHERE queue = ? AND (due IS NULL OR due <= ? OR lease IS NULL) "
        "AND id IN (SELECT value FROM json_each(?))",
        (queue.id, now, _ids(only)),
    )
    return [row["id"] for row in rows]


def take(c: sqlite3.Connection, id: int, lease: int, until: float, *, begun: bool) -> None:
    """Deliver a message once more; ``begun``: which is an attempt."""
    c.execute(
        "UPDATE messages SET due = ?, lease = ?, deliveries = deliveries + 1, "
        "attempts = attempts + ? WHERE id = ?",
        (until, lease, begun, id),
    )


def set_attempts(c: sqlite3.Connection, id: int, lease: int, attempts: int) -> None:
    c.execute("UPDATE messages SET attempts = ? WHERE id = ? AND lease = ?", (attempts, id, lease))


def leased(c: sqlite3.Connection, id: int, lease: int, now: float) -> sqlite3.Row | None:
    """The message under this lease, although it may have run out; None: it is lost."""
    row: sqlite3.Row | None = c.execute(
        "SELECT m.*, b.attributes FROM messages m CROSS JOIN bodies b ON b.id = m.id "
        "WHERE m.id = ? AND m.lease = ? AND (m.expires_at > ? OR m.due > ?)",
        (id, lease, now, now),
    ).fetchone()
    return row


def set_due(c: sqlite3.Connection, id: int, due: float) -> None:
    c.execute("UPDATE messages SET due = ? WHERE id = ?", (due, id))


def free(c: sqlite3.Connection, id: int, due: float | None) -> None:
    """End a message's lease; it is ready at ``due``, or now."""
    c.execute("UPDATE messages SET lease = NULL, due = ? WHERE id = ?", (due, id))


def take_back(c: sqlite3.Connection, id: int) -> None:
    """Undo a message's last delivery."""
    c.execute(
        "UPDATE messages SET lease = NULL, due = NULL, deliveries = deliveries - 1 WHERE id = ?",
        (id,),
    )


def move(
    c: sqlite3.Connection, id: int, queue: Queue, attributes: Mapping[str, str], expires_at: float
) -> None:
    """Put a message into another queue, as one that was never delivered."""
    c.execute(
        "UPDATE messages SET queue = ?, lease = NULL, due = NULL, deliveries = 0, attempts = 0, "
        "expires_at = ? "
        "WHERE id = ?",
        (queue.id, expires_at, id),
    )
    c.execute("UPDATE bodies SET attributes = ? WHERE id = ?", (write_attributes(attributes), id))


def delete_leased(c: sqlite3.Connection, id: int, lease: int) -> bool:
    """Delete the message if it is still under this lease; whether it was."""
    gone = c.execute("DELETE FROM messages WHERE id = ? AND lease = ?", (id, lease))
    if gone.rowcount:
        c.execute("DELETE FROM bodies WHERE id = ?", (id,))
    return gone.rowcount > 0


def delete(c: sqlite3.Connection, id: int) -> None:
    c.execute("DELETE FROM messages WHERE id = ?", (id,))
    c.execute("DELETE FROM bodies WHERE id = ?", (id,))


def delete_unleased(c: sqlite3.Connection, queue: Queue, now: float) -> int:
    """Delete what is ready or delayed; how many."""
    delete_expired(c, now, queue)
    c.execute(
        "DELETE FROM bodies WHERE id IN (SELECT id FROM messages "
        "WHERE queue = ? AND (due IS NULL OR due <= ? OR lease IS NULL))",
        (queue.id, now),
    )
    return c.execute(
        "DELETE FROM messages WHERE queue = ? AND (due IS NULL OR due <= ? OR lease IS NULL)",
        (queue.id, now),
    ).rowcount


def delete_expired(
    c: sqlite3.Connection, now: float, queue: Queue | None = None, limit: int = -1
) -> int:
    """Delete what has outlived its time and is in nobody's hands; how many."""
    rows = c.execute(
        "SELECT id FROM messages WHERE expires_at <= :now "
        "AND queue = coalesce(:queue, queue) "
        "AND (due IS NULL OR due <= :now OR lease IS NULL) LIMIT :limit",
        {"now": now, "queue": None if queue is None else queue.id, "limit": limit},
    ).fetchall()
    ids = [(row["id"],) for row in rows]
    c.executemany("DELETE FROM messages WHERE id = ?", ids)
    c.executemany("DELETE FROM bodies WHERE id = ?", ids)
    return len(ids)


def has_expired(c: sqlite3.Connection, now: float) -> bool:
    """Whether there is an expired queue or message to delete."""
    row = c.execute(
        "SELECT EXISTS (SELECT 1 FROM ending_queues WHERE ends_at <= :now) "
        "OR EXISTS (SELECT 1 FROM messages WHERE expires_at <= :now "
        "AND (due IS NULL OR due <= :now OR lease IS NULL)) AS found",
        {"now": now},
    ).fetchone()
    return bool(row["found"])


def size(c: sqlite3.Connection, queue: Queue, now: float) -> QueueSize:
    """Counted from the indices alone; what has expired counts as gone."""
    row = c.execute(
        "SELECT (SELECT count(*) FROM messages WHERE queue = :queue AND due IS NULL) "
        "+ (SELECT count(*) FROM messages WHERE queue = :queue AND due <= :now) AS ready, "
        "count(*) - count(lease) AS delayed, count(lease) AS leased "
        "FROM messages WHERE queue = :queue AND due > :now",
        {"queue": queue.id, "now": now},
    ).fetchone()
    expired = c.execute(
        "SELECT count(*) AS n, total(due > :now) AS delayed "
        "FROM messages WHERE expires_at <= :now "
        "AND queue = :queue AND (due IS NULL OR due <= :now OR lease IS NULL)",
        {"queue": queue.id, "now": now},
    ).fetchone()
    delayed = int(expired["delayed"])
    return QueueSize(
        ready=row["ready"] - (expired["n"] - delayed),
        delayed=row["delayed"] - delayed,
        leased=row["leased"],
    )


def peek(c: sqlite3.Connection, queue: Queue, limit: int, now: float) -> list[StoredMessage]:
    """The ready ones in delivery order, then the others by the time they become ready."""
    # In two parts, each by its index: sorting a long queue for its first page would not do.
    values = {"queue": queue.id, "now": now, "limit": limit}
    unsorted = c.execute(
        "SELECT * FROM (SELECT m.*, b.data, b.attributes FROM messages m "
        "CROSS JOIN bodies b ON b.id = m.id WHERE m.queue = :queue AND m.due IS NULL "
        "AND m.expires_at > :now ORDER BY m.priority DESC, m.id LIMIT :limit) "
        "UNION ALL SELECT m.*, b.data, b.attributes FROM messages m "
        "CROSS JOIN bodies b ON b.id = m.id "
        "WHERE m.queue = :queue AND m.due <= :now AND m.expires_at > :now",
        values,
    ).fetchall()
    rows = sorted(unsorted, key=lambda row: (-row["priority"], row["id"]))[:limit]
    values["limit"] -= len(rows)
    rows += c.execute(
        "SELECT m.*, b.data, b.attributes FROM messages m CROSS JOIN bodies b ON b.id = m.id "
        "WHERE m.queue = :queue AND m.due > :now AND (m.expires_at > :now OR m.lease IS NOT NULL) "
        "ORDER BY m.due, m.priority DESC, m.id LIMIT :limit",
        values,
    ).fetchall()
    return [_stored(queue, row, now) for row in rows]


def expiring(c: sqlite3.Connection, queue: Queue, now: float, within: float) -> int:
    """How many messages that are there will have expired by then."""
    row = c.execute(
        "SELECT count(*) AS n FROM messages WHERE queue = ? AND expires_at > ? AND expires_at <= ?",
        (queue.id, now, now + within),
    ).fetchone()
    return int(row["n"])


def page(
    c: sqlite3.Connection, queue: Queue, after: int, limit: int, now: float
) -> list[StoredMessage]:
    """Messages by their ids, whatever their state."""
    rows = c.execute(
        "SELECT m.*, b.data, b.attributes FROM messages m CROSS JOIN bodies b ON b.id = m.id "
        "WHERE m.id > ? AND m.queue = ? AND (m.expires_at > ? OR m.lease IS NOT NULL) "
        "ORDER BY m.id LIMIT ?",
        (after, queue.id, now, limit),
    )
    return [_stored(queue, row, now) for row in rows]


def _stored(queue: Queue, row: sqlite3.Row, now: float) -> StoredMessage:
    if row["due"] is None or row["due"] <= now:
        state = "ready"
    else:
        state = "delayed" if row["lease"] is None else "leased"
    return StoredMessage(
        queue=queue.spec.name,
        message_id=str(row["id"]),
        data=row["data"],
        attributes=read_attributes(row["attributes"]),
        deliveries=row["deliveries"],
        published_at=row["published_at"],
        priority=row["priority"],
        state=state,
        due=row["due"],
        expires_at=row["expires_at"],
    )


def write_attributes(attributes: Mapping[str, str]) -> str:
    # Escapes all but ASCII, so that SQLite can take a lone surrogate too.
    return json.dumps(dict(attributes), separators=(",", ":"))


def read_attributes(text: str) -> dict[str, str]:
    attributes: dict[str, str] = json.loads(text)
    return attributes
