"""Records of dead letters and of paused queues, in a store's file."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from typing import Final

from gwi_celery.brokers.letters import DeadLetter
from gwi_celery.clock import Clock
from gwi_celery.sqlite import Database
from gwi_celery.stores.paging import check_limit, place_of, token_after
from gwi_celery.stores.queues import (
    LEFT_OVER,
    LetterFilter,
    LetterPage,
    QueueRecords,
    kept_until,
    listed_until,
)
from gwi_celery.text import raw, unraw

#: Ids in one statement.
_BATCH: Final = 500


class SqliteQueues(QueueRecords):
    """The records in one file."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def keep(self, letter: DeadLetter) -> None:
        with self._database.write() as c:
            c.execute(
                "INSERT OR REPLACE INTO letters VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?)",
                (
                    letter.id,
                    *map(raw, (letter.queue, letter.reason, letter.task, letter.tenant)),
                    raw(letter.error_class),
                    raw(letter.task_id),
                    letter.died_at,
                    listed_until(letter),
                    kept_until(letter),
                    letter.dumps(),
                ),
            )

    def end(self, ids: Collection[str]) -> None:
        with self._database.write() as c:
            nothing = (*[b""] * 6, 0.0, 0.0, self._clock.time() + LEFT_OVER)
            c.executemany(
                "INSERT OR REPLACE INTO letters VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, '')",
                [(id, *nothing) for id in ids],
            )

    def known(self, ids: Collection[str]) -> dict[str, bool]:
        found: dict[str, bool] = {}
        every = list(ids)
        with self._database.read() as c:
            for start in range(0, len(every), _BATCH):
                batch = every[start : start + _BATCH]
                marks = ", ".join("?" * len(batch))
                rows = c.execute(f"SELECT id, ended FROM letters WHERE id IN ({marks})", batch)  # noqa: S608
                found |= {row["id"]: not row["ended"] for row in rows}
        return found

    def get(self, id: str) -> DeadLetter | None:
        with self._database.read() as c:
            row = c.execute(
                "SELECT entry FROM letters WHERE id = ? AND NOT ended AND expires_at > ?",
                (id, self._clock.time()),
            ).fetchone()
        return None if row is None else DeadLetter.loads(row["entry"])

    def find(
        self, wanted: LetterFilter, *, limit: int = 100, token: str | None = None
    ) -> LetterPage:
        check_limit(limit)
        where, values = _where(wanted, self._clock.time())
        if token is not None:
            where.append("(died_at, id) < (?, ?)")
            values.extend(place_of(token, wanted.id))
        sql = f"SELECT * FROM letters WHERE {' AND '.join(where)}"  # noqa: S608 - constants
        with self._database.read() as c:
            # One more than the page holds tells whether there is another.
            rows = c.execute(
                f"{sql} ORDER BY died_at DESC, id DESC LIMIT ?", (*values, limit + 1)
            ).fetchall()
        page, next_token = rows[:limit], None
        if len(rows) > limit:
            next_token = token_after(page[-1]["died_at"], page[-1]["id"], wanted.id)
        return LetterPage([DeadLetter.loads(row["entry"]) for row in page], next_token)

    def count(self, wanted: LetterFilter) -> int:
        where, values = _where(wanted, self._clock.time())
        with self._database.read() as c:
            sql = f"SELECT count(*) FROM letters WHERE {' AND '.join(where)}"  # noqa: S608
            return int(c.execute(sql, values).fetchone()[0])

    def expiring(self, before: float, *, limit: int = 1000) -> list[DeadLetter]:
        with self._database.read() as c:
            rows = c.execute(
                "SELECT entry FROM letters WHERE NOT ended AND expires_at > ? AND expires_at < ?"
                " ORDER BY expires_at LIMIT ?",
                (self._clock.time(), before, limit),
            ).fetchall()
        return [DeadLetter.loads(row["entry"]) for row in rows]

    def set_paused(self, queue: str, paused: bool) -> None:
        with self._database.write() as c:
            if paused:
                c.execute("INSERT OR IGNORE INTO paused_queues VALUES (?)", (raw(queue),))
            else:
                c.execute("DELETE FROM paused_queues WHERE queue = ?", (raw(queue),))

    def paused(self) -> frozenset[str]:
        with self._database.read() as c:
            rows = c.execute("SELECT queue FROM paused_queues").fetchall()
        return frozenset(unraw(row["queue"]) for row in rows)


def _where(wanted: LetterFilter, now: float) -> tuple[list[str], list[object]]:
    """The conditions and their values. The index of the first one is walked: see :func:`.lists.query`."""
    conditions = [
        *(("call", wanted.task_id), ("tenant", wanted.tenant), ("error", wanted.error)),
        *(("task", wanted.task), ("reason", wanted.reason), ("queue", wanted.queue)),
    ]
    given = [(column, value) for column, value in conditions if value is not None]
    where = ["NOT ended", "+expires_at > ?"]
    values: list[object] = [now]
    for n, (column, value) in enumerate(given):
        where.append(f"{'+' if n else ''}{column} = ?")
        values.append(raw(value))
    for condition, moment in ((">=", wanted.since), ("<", wanted.before)):
        if moment is not None:
            where.append(f"died_at {condition} ?")
            values.append(moment)
    return where, values


def delete_old(c: sqlite3.Connection, now: float, limit: int) -> int:
    """Delete up to ``limit`` records that have been kept long enough; how many."""
    return c.execute(
        "DELETE FROM letters WHERE id IN"
        " (SELECT id FROM letters WHERE kept_until <= ? ORDER BY kept_until LIMIT ?)",
        (now, limit),
    ).rowcount
