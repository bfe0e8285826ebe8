"""The embedded broker's messages, as its tables have them. Every function takes a connection.

A message is *ready* while its ``due`` is NULL. Otherwise it becomes ready at ``due``: it is leased if it
has a ``lease``, and delayed if not. A poll promotes messages that have become due, so that their index
has the ready ones in delivery order, and taking the first costs the same however many wait behind it.

A lease that has run out stays on its message until the next delivery, so that a late ack counts unless
the message was delivered to somebody else.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Collection, Mapping

from gwi_celery.brokers.base import OutgoingMessage, QueueSize, StoredMessage
from gwi_celery.brokers.embedded.tables import Queue


def insert_message(
    c: sqlite3.Connection, queue: Queue, message: OutgoingMessage, now: float, retention: float
) -> None:
    due = now + message.delay if message.delay > 0 else None
    # No default drops a message before it may be delivered.
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


def oldest(c: sqlite3.Connection, queue: Queue, now: float) -> float | None:
    """When the oldest ready message was published."""
    row = c.execute(
        "SELECT min(published_at) AS oldest FROM messages WHERE queue = ? "
        "AND (due IS NULL OR due <= ?) AND expires_at > ?",
        (queue.id, now, now),
    ).fetchone()
    found: float | None = row["oldest"]
    return found


def time_to_live(queue: Queue, retention: float) -> float:
    """Seconds for which the queue keeps a message that has no time to live of its own."""
    return retention if queue.spec.message_ttl is None else queue.spec.message_ttl


def has_ready(c: sqlite3.Connection, queue: Queue, now: float) -> bool:
    """Whether a poll may find something; what is there may have expired."""
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
    """Make ready what has become due; returns how many."""
    return c.execute(
        "UPDATE messages SET due = NULL WHERE queue = ? AND due <= ?", (queue.id, now)
    ).rowcount


def ready(
    c: sqlite3.Connection, queue: Queue, limit: int, only: Collection[str] | None = None
) -> list[sqlite3.Row]:
    """The next ready messages in delivery order, expired ones too. Call :func:`promote` first."""
    return c.execute(
        "SELECT m.*, b.data, b.attributes FROM messages m CROSS JOIN bodies b ON b.id = m.id "
        "WHERE m.queue = :queue AND m.due IS NULL "
        "AND (:only IS NULL OR m.id IN (SELECT value FROM json_each(:only))) "
        "ORDER BY m.priority DESC, m.id LIMIT :limit",
        {"queue": queue.id, "limit": limit, "only": None if only is None else _ids(only)},
    ).fetchall()


def _ids(only: Collection[str]) -> str:
    """As a JSON list, without what can't be an id of a message here."""
    return json.dumps([int(id) for id in only if re.fullmatch("[0-9]{1,18}", id)])


def unleased(c: sqlite3.Connection, queue: Queue, only: Collection[str], now: float) -> list[int]:
    """Those of the ids that are in the queue and not leased."""
    rows = c.execute(
        "SELECT id FROM messages WHERE queue = ? AND (due IS NULL OR due <= ? OR lease IS NULL) "
        "AND id IN (SELECT value FROM json_each(?))",
        (queue.id, now, _ids(only)),
    )
    return [row["id"] for row in rows]


def take(c: sqlite3.Connection, id: int, lease: int, until: float, *, begun: bool) -> None:
    """Deliver a message; ``begun``: this counts as an attempt."""
    c.execute(
        "UPDATE messages SET due = ?, lease = ?, deliveries = deliveries + 1, "
        "attempts = attempts + ? WHERE id = ?",
        (until, lease, begun, id),
    )


def set_attempts(c: sqlite3.Connection, id: int, lease: int, attempts: int) -> None:
    c.execute("UPDATE messages SET attempts = ? WHERE id = ? AND lease = ?", (attempts, id, lease))


def leased(c: sqlite3.Connection, id: int, lease: int, now: float) -> sqlite3.Row | None:
    """The message under this lease, which may have run out; None: the lease is lost."""
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


def rewrite(c: sqlite3.Connection, id: int, data: bytes, attributes: Mapping[str, str]) -> None:
    c.execute(
        "UPDATE bodies SET data = ?, attributes = ? WHERE id = ?",
        (data, write_attributes(attributes), id),
    )


def take_back(c: sqlite3.Connection, id: int) -> None:
    """Undo a message's last delivery."""
    c.execute(
        "UPDATE messages SET lease = NULL, due = NULL, deliveries = deliveries - 1 WHERE id = ?",
        (id,),
    )


def move(
    c: sqlite3.Connection, id: int, queue: Queue, attributes: Mapping[str, str], expires_at: float
) -> None:
    """Move a message into another queue, as one that was never delivered."""
    c.execute(
        "UPDATE messages SET queue = ?, lease = NULL, due = NULL, deliveries = 0, attempts = 0, "
        "expires_at = ? "
        "WHERE id = ?",
        (queue.id, expires_at, id),
    )
    c.execute("UPDATE bodies SET attributes = ? WHERE id = ?", (write_attributes(attributes), id))


def delete_leased(c: sqlite3.Connection, id: int, lease: int) -> bool:
    """Delete the message if it is still under this lease; returns whether it was."""
    gone = c.execute("DELETE FROM messages WHERE id = ? AND lease = ?", (id, lease))
    if gone.rowcount:
        c.execute("DELETE FROM bodies WHERE id = ?", (id,))
    return gone.rowcount > 0


def delete(c: sqlite3.Connection, id: int) -> None:
    c.execute("DELETE FROM messages WHERE id = ?", (id,))
    c.execute("DELETE FROM bodies WHERE id = ?", (id,))


def delete_unleased(c: sqlite3.Connection, queue: Queue, now: float) -> int:
    """Delete what is ready or delayed; returns how many, without what had expired."""
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
    """Delete what has expired and isn't leased; returns how many."""
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
    # Each part by its index: to sort a long queue for its first page would take too long.
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
    """How many messages will expire within that many seconds."""
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
