"""Actions of operators, and the key that proves who is an operator, in a store's file."""

from __future__ import annotations

import secrets
import sqlite3

from gwi_celery.actions import KEPT, Action
from gwi_celery.stores.paging import no_such_action
from gwi_celery.stores.sqlite.rows import raw_or_none


def key(c: sqlite3.Connection) -> bytes:
    """The file's own key, created on first use."""
    c.execute("INSERT OR IGNORE INTO operator_key VALUES (1, ?)", (secrets.token_bytes(32),))
    (found,) = c.execute("SELECT secret FROM operator_key").fetchone()
    return bytes(found)


def keep(c: sqlite3.Connection, action: Action) -> None:
    """Keep a record of an action."""
    c.execute(
        "INSERT INTO actions (at, tenant, entry) VALUES (?, ?, ?)",
        (action.at, raw_or_none(action.tenant), action.dumps()),
    )


def listed(
    c: sqlite3.Connection, tenant: str | None, limit: int, before: str | None
) -> list[Action]:
    """As :meth:`gwi_celery.stores.base.Store.list_actions`."""
    if before is not None and not (before.isascii() and before.isdigit() and len(before) < 19):
        raise no_such_action(before)
    found = c.execute(
        "SELECT id, entry FROM actions WHERE (:tenant IS NULL OR tenant = :tenant)"
        " AND (:before IS NULL OR id < :before) ORDER BY id DESC LIMIT :limit",
        {
            "tenant": raw_or_none(tenant),
            "before": None if before is None else int(before),
            "limit": limit,
        },
    )
    return [Action.loads(row["entry"], str(row["id"])) for row in found]


def delete_old(c: sqlite3.Connection, now: float, limit: int) -> int:
    """Delete up to ``limit`` that have been kept long enough; how many."""
    return c.execute(
        "DELETE FROM actions WHERE id IN (SELECT id FROM actions WHERE at <= ? ORDER BY id LIMIT ?)",
        (now - KEPT, limit),
    ).rowcount
