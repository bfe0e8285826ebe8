"""Celery's results in the embedded store's file: ``result_backend = "embedded:///path/to/folder"``.

Whether a final state may be overwritten is decided in the same transaction as the write.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from typing import Any

from celery import states
from celery.exceptions import TimeoutError

from gwi_celery import embedded_url
from gwi_celery.backends import tenants
from gwi_celery.backends.base import RENEW_CHORD_AFTER, Counted, ReliableBackend
from gwi_celery.clock import SYSTEM_CLOCK, Clock
from gwi_celery.sqlite import Database
from gwi_celery.stores.sqlite import SqliteStore, memory_store

#: The first and the longest pause, seconds, between polls for a result that isn't ready.
_FIRST_LOOK, _LONGEST_LOOK = 0.002, 0.05

#: Results and chords deleted in one transaction.
_BATCH = 1000

_DELETE_CHORD = (
    "DELETE FROM chord_parts WHERE group_id = ?",
    "DELETE FROM chord_sizes WHERE group_id = ?",
    "DELETE FROM chords WHERE group_id = ?",
)


class EmbeddedBackend(ReliableBackend):
    """Results in the file of the embedded store that the URL names."""

    def __init__(
        self, app: Any, url: str | None = None, *, clock: Clock = SYSTEM_CLOCK, **kwargs: Any
    ) -> None:
        super().__init__(app=app, url=url, **kwargs)
        parsed = embedded_url.parse(url or "embedded://")
        store = memory_store(parsed.memory) if parsed.folder is None else SqliteStore(parsed.folder)
        self._db = store.database
        self._clock = clock

    def as_uri(self, include_password: bool = False) -> str:
        return embedded_url.absolute(self.url or "embedded://")

    # --- the key-value verbs ------------------------------------------------------------------

    def get(self, key: str) -> Any:
        with self._db.read() as c:
            row = c.execute(
                "SELECT meta FROM results WHERE task_id = ? AND (expires IS NULL OR expires > ?)",
                (key, self._clock.time()),
            ).fetchone()
        return None if row is None else row["meta"]

    def mget(self, keys: Iterable[str]) -> list[Any]:
        return [self.get(key) for key in keys]

    def delete(self, key: str) -> None:
        with self._db.write() as c:
            c.execute("DELETE FROM results WHERE task_id = ?", (key,))

    def expire(self, key: str, value: Any) -> None:
        with self._db.write() as c:
            c.execute(
                "UPDATE results SET expires = ? WHERE task_id = ?",
                (self._clock.time() + value if value else None, key),
            )

    def put(self, key: str, value: Any, state: str | None, expires: Any, request: Any) -> None:
        now = self._clock.time()
        # Not synced: a power cut may lose this copy of the result, but never the outcome of a reliable
        # job, which answers the next call.
        ours = tenants.tenant_of(request)
        with self._db.write(durable=False) as c:
            stored = c.execute(
                "SELECT meta FROM results WHERE task_id = ? AND (expires IS NULL OR expires > ?)",
                (key, now),
            ).fetchone()
            if stored is not None and tenants.is_anothers(tenants.tenant_in(stored["meta"]), ours):
                self.log_taken(key)
                return
            c.execute(
                """
                INSERT INTO results (task_id, status, meta, updated, expires)
                VALUES (?, ?, ?, ?, ?)
                ON CONFLICT (task_id) DO UPDATE SET
                    status = excluded.status, meta = excluded.meta,
                    updated = excluded.updated, expires = excluded.expires
                WHERE results.status IS NULL OR results.expires <= excluded.updated
                    OR results.status <> 'SUCCESS' AND (? OR results.status NOT IN (?, ?))
                """,
                (
                    *(key, state, value, now, now + expires if expires else None),
                    *(state in states.READY_STATES, states.FAILURE, states.REVOKED),
                ),
            )

    # --- results ------------------------------------------------------------------------------

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_interval: Any = None,
        **kwargs: Any,
    ) -> Any:
        self._ensure_not_eager()
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _FIRST_LOOK
        while True:
            meta = self.get_task_meta(task_id)
            if meta["status"] in states.READY_STATES:
                return self.arrived(meta, on_interval)
            if on_interval:
                on_interval()
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError("The operation timed out.")
            time.sleep(min(pause, interval or pause))
            pause = min(pause * 1.5, _LONGEST_LOOK)

    def get_many(self, task_ids: Any, timeout: Any = None, interval: Any = 0.5, **kw: Any) -> Any:
        interval = min(interval or _LONGEST_LOOK, _LONGEST_LOOK)
        for task_id, meta in super().get_many(task_ids, timeout=timeout, interval=interval, **kw):
            yield task_id, tenants.checked(task_id, meta)

    @property
    def database(self) -> Database:
        return self._db

    def cleanup(self) -> None:
        """Delete what has expired. Workers do so without being asked."""
        while self.delete_expired(_BATCH) >= _BATCH:
            pass

    def delete_expired(self, limit: int) -> int:
        """Delete up to ``limit`` expired results, and as many chords, in one transaction."""
        now = self._clock.time()
        with self._db.write(durable=False) as c:
            results = c.execute(
                "DELETE FROM results WHERE task_id IN"
                " (SELECT task_id FROM results WHERE expires <= ? LIMIT ?)",
                (now, limit),
            ).rowcount
            chords = c.execute(
                "SELECT group_id FROM chords WHERE expires <= ? LIMIT ?", (now, limit)
            ).fetchall()
            for statement in _DELETE_CHORD:
                c.executemany(statement, map(tuple, chords))
        return max(results, len(chords))

    # --- chords -------------------------------------------------------------------------------

    def open_chord(self, group_id: str, key: str, value: Any) -> None:
        self.put(key, value, None, self.expires, None)
        with self._db.write(durable=False) as c:
            over = c.execute(
                "SELECT 1 FROM chords WHERE group_id = ? AND (dispatched NOTNULL OR expires <= ?)",
                (group_id, self._clock.time()),
            ).fetchone()
            for statement in _DELETE_CHORD if over else ():
                c.execute(statement, (group_id,))

    def keep_chord_size(self, group_id: str, size: int) -> None:
        with self._db.write() as c:
            self._keep_chord(c, group_id)
            c.execute(
                "INSERT INTO chord_sizes VALUES (?, ?, 0) ON CONFLICT (group_id) "
                "DO UPDATE SET size = excluded.size",
                (group_id, size),
            )

    def add_to_chord(self, chord_id: str, result: Any) -> None:
        with self._db.write() as c:
            self._keep_chord(c, chord_id)
            c.execute(
                "INSERT INTO chord_sizes VALUES (?, NULL, 1) ON CONFLICT (group_id) "
                "DO UPDATE SET extra = extra + 1",
                (chord_id,),
            )

    def count_part(self, group_id: str, part: str) -> Counted:
        with self._db.write() as c:
            c.execute("INSERT OR IGNORE INTO chord_parts VALUES (?, ?)", (group_id, part))
            self._keep_chord(c, group_id)
            row = c.execute(
                """
                SELECT dispatched, size, coalesce(extra, 0) AS extra,
                    (SELECT count(*) FROM chord_parts AS p WHERE p.group_id = c.group_id) AS parts
                FROM chords AS c LEFT JOIN chord_sizes USING (group_id) WHERE c.group_id = ?
                """,
                (group_id,),
            ).fetchone()
        return Counted(
            row["parts"], row["dispatched"] is not None, size=row["size"], extra=row["extra"]
        )

    def _keep_chord(self, c: sqlite3.Connection, group_id: str) -> None:
        """Keep the whole chord for the TTL of a result from now on: its last part needs it."""
        expires = self._clock.time() + self.expires if self.expires else None
        c.execute("INSERT OR IGNORE INTO chords VALUES (?, NULL, ?)", (group_id, expires))
        row = c.execute("SELECT expires FROM chords WHERE group_id = ?", (group_id,)).fetchone()
        kept = row["expires"]
        if kept is None or expires is None or expires - kept < self.expires * RENEW_CHORD_AFTER:
            return
        c.execute("UPDATE chords SET expires = ? WHERE group_id = ?", (expires, group_id))
        c.execute(
            "UPDATE results SET expires = ? WHERE expires > ? AND (task_id = ? OR task_id IN "
            "(SELECT ? || part FROM chord_parts WHERE group_id = ?))",
            (
                *(expires, self._clock.time(), self.get_key_for_group(group_id)),
                *(self.task_keyprefix, group_id),
            ),
        )

    def parts(self, group_id: str) -> list[str]:
        with self._db.read() as c:
            rows = c.execute(
                "SELECT part FROM chord_parts WHERE group_id = ? ORDER BY rowid", (group_id,)
            )
            return [row["part"] for row in rows]

    def mark_sent(self, group_id: str) -> None:
        with self._db.write() as c:
            c.execute(
                "UPDATE chords SET dispatched = ? WHERE group_id = ?",
                (self._clock.time(), group_id),
            )
