"""The embedded broker's tables."""

from __future__ import annotations

from typing import Final

#: Marks the file as a broker of ours: "gwib" in ASCII.
APPLICATION_ID: Final = 0x67776962
VERSION: Final = 3
#: 0.1 counted deliveries, which say nothing about attempts: these begin at 0.
MIGRATIONS: Final = {
    1: "ALTER TABLE messages ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0",
    2: "ALTER TABLE queues ADD COLUMN paused INTEGER NOT NULL DEFAULT 0",
}

# Names are BLOBs, because UTF-8 text can't carry a lone surrogate. Listeners refer to their queue by
# name, so that they stay when it is deleted and made again. Bodies have a table of their own, because
# each lease changes a message's row, and SQLite rewrites a changed row as a whole.
SCHEMA: Final = """
CREATE TABLE queues (
    id INTEGER PRIMARY KEY,
    name BLOB NOT NULL UNIQUE,
    durable INTEGER NOT NULL,
    auto_delete INTEGER NOT NULL,
    expires REAL,
    message_ttl REAL,
    lease_seconds REAL,
    max_deliveries INTEGER,
    gone_at REAL,
    paused INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE listeners (
    queue BLOB NOT NULL, intake TEXT NOT NULL, PRIMARY KEY (queue, intake)
) WITHOUT ROWID;
CREATE INDEX listeners_by_intake ON listeners (intake);

CREATE VIEW ending_queues AS
SELECT q.*, CASE
    WHEN q.gone_at IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM listeners l WHERE l.queue = q.name) THEN q.gone_at
END AS ends_at FROM queues q;

CREATE TABLE exchanges (name BLOB PRIMARY KEY, type TEXT NOT NULL);

CREATE TABLE bindings (
    exchange BLOB NOT NULL,
    routing_key BLOB NOT NULL,
    queue INTEGER NOT NULL,
    PRIMARY KEY (exchange, routing_key, queue)
) WITHOUT ROWID;
CREATE INDEX bindings_by_queue ON bindings (queue);

CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    due REAL,
    lease INTEGER,
    deliveries INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    published_at REAL NOT NULL,
    expires_at REAL NOT NULL
);
CREATE INDEX messages_ready ON messages (queue, priority DESC) WHERE due IS NULL;
CREATE INDEX messages_due ON messages (queue, due, lease) WHERE due IS NOT NULL;

CREATE TABLE bodies (id INTEGER PRIMARY KEY, data BLOB NOT NULL, attributes TEXT NOT NULL)
"""
