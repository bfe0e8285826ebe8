"""Places of limits in a store's file: a row for each that is taken.

A place of ``max_running`` counts while the lock that it names has its token, so freeing a lock needs no
write here. Rows that no longer count are deleted by the next claim of that limit, or by ``cleanup()``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gwi_celery.stores import protocol
from gwi_celery.stores.history import dump_place, load_place
from gwi_celery.stores.limits import LimitRef, LimitSetting
from gwi_celery.stores.sqlite import writes
from gwi_celery.stores.values import ClaimRequest, Limited, PlaceRecord

#: A rate's place whose time is over; or one whose lock is free, or has been claimed again.
_FREE: Final = """(free_at <= ? OR lock_id IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM locks WHERE locks.lock_id = places.lock_id AND locks.token = places.token))"""

#: ``until`` is NULL for a place whose lock is free, or has been claimed again.
_TAKEN: Final = """
SELECT places.*, coalesce(free_at, expires_at) AS until FROM places
LEFT JOIN locks ON locks.lock_id = places.lock_id AND locks.token = places.token
"""


@dataclass(frozen=True)
class Taking:
    """What a claim takes once it has its token."""

    limits: Sequence[LimitRef] = ()
    #: Places of expired leases, whose locks the claim frees to take their places.
    silent: Sequence[sqlite3.Row] = ()


def choose(c: sqlite3.Connection, request: ClaimRequest, now: float) -> Taking | Limited:
    """What a claim takes if nothing else stands against it; or the limit that has no free place."""
    if not request.limits:
        return Taking()
    ours, elsewhere = protocol.kept_by(request, lambda: settings(c))
    silent: list[sqlite3.Row] = []
    for limit in ours:
        found = _look(c, limit, request, now)
        if isinstance(found, Limited):
            return found
        silent += found
    if elsewhere:
        assert request.rates is not None
        limited = request.rates(elsewhere)
        if limited is not None:
            return limited
    return Taking(ours, silent)


def _look(
    c: sqlite3.Connection, limit: LimitRef, request: ClaimRequest, now: float
) -> Sequence[sqlite3.Row] | Limited:
    """The places of expired leases that the claim needs; or that the limit has no free place."""
    if limit.period is not None:
        return _look_at_starts(c, limit, limit.period, now)
    c.execute(f"DELETE FROM places WHERE limit_id = ? AND {_FREE}", (limit.id, now))  # noqa: S608
    found = c.execute(
        f"{_TAKEN} WHERE limit_id = ? AND places.lock_id != ? ORDER BY until",
        (limit.id, request.lock.id),
    ).fetchall()
    live = [row for row in found if row["until"] > now]
    if len(live) >= limit.places:
        return Limited(limit, len(live), retry_after=live[0]["until"] - now)
    # An expired lease may still be renewed, as long as nobody needs its place.
    return found[: max(len(found) + 1 - limit.places, 0)]


def _look_at_starts(
    c: sqlite3.Connection, limit: LimitRef, period: float, now: float
) -> Sequence[sqlite3.Row] | Limited:
    """As :func:`_look`, for a rate. Its time may have been another when a place was taken."""
    since = now - period
    c.execute(
        "DELETE FROM places WHERE limit_id = ? AND free_at <= ? AND taken_at <= ?",
        (limit.id, now, since),
    )
    (kept,) = c.execute("SELECT count(*) FROM places WHERE limit_id = ?", (limit.id,)).fetchone()
    if kept < limit.places:
        return []
    counted = "FROM places WHERE limit_id = ? AND taken_at > ?"
    (taken,) = c.execute(f"SELECT count(*) {counted}", (limit.id, since)).fetchone()
    if taken < limit.places:
        return []
    # So many have to be over before another may start.
    (first,) = c.execute(
        f"SELECT taken_at {counted} ORDER BY taken_at LIMIT 1 OFFSET ?",
        (limit.id, since, taken - limit.places),
    ).fetchone()
    return Limited(limit, taken, first + period - now)


def take(
    c: sqlite3.Connection, request: ClaimRequest, taking: Taking, token: int, now: float
) -> None:
    """Take the places for the claim that has this token."""
    for row in taking.silent:
        writes.free_lock(c, row["lock_id"], row["token"])
    for limit in taking.limits:
        until = None if limit.period is None else now + limit.period
        lock_id = request.lock.id if until is None else None
        c.execute(
            "INSERT INTO places VALUES (?, ?, ?, ?, ?, ?)",
            (limit.id, lock_id, token, now, until, dump_place(limit, request)),
        )


def listed(c: sqlite3.Connection, limit_id: str | None, now: float, most: int) -> list[PlaceRecord]:
    """Up to ``most`` places that are taken, oldest first."""
    found = c.execute(
        f"{_TAKEN} WHERE (:id IS NULL OR limit_id = :id) AND until > :now ORDER BY taken_at LIMIT :most",
        {"id": limit_id, "now": now, "most": most},
    )
    return [_record(row) for row in found]


def _record(row: sqlite3.Row) -> PlaceRecord:
    return load_place(
        row["about"],
        limit_id=row["limit_id"],
        of_rate=row["lock_id"] is None,
        taken_at=row["taken_at"],
        free_at=row["until"],
    )


def delete_free(c: sqlite3.Connection, now: float, most: int) -> int:
    """Delete up to ``most`` rows that no longer count; how many."""
    return c.execute(
        f"DELETE FROM places WHERE rowid IN (SELECT rowid FROM places WHERE {_FREE} LIMIT ?)",  # noqa: S608
        (now, most),
    ).rowcount


# --- what operators set ---------------------------------------------------------------------------


def settings(c: sqlite3.Connection) -> dict[str, LimitSetting]:
    found = c.execute("SELECT limit_id, setting FROM limit_settings")
    return {row["limit_id"]: LimitSetting.loads(row["setting"]) for row in found}


def put_setting(c: sqlite3.Connection, setting: LimitSetting) -> None:
    c.execute("INSERT OR REPLACE INTO limit_settings VALUES (?, ?)", (setting.id, setting.dumps()))


def drop_setting(c: sqlite3.Connection, id: str) -> bool:
    return c.execute("DELETE FROM limit_settings WHERE limit_id = ?", (id,)).rowcount > 0
