"""Converts SQLite's rows to the store's records, and to what the protocol's rules look at."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from gwi_celery.stores import history, protocol
from gwi_celery.stores.values import (
    AttemptEnd,
    Checkpoint,
    CheckpointKind,
    JobRecord,
    JobRef,
    JobStatus,
    LockRecord,
    LockRef,
    PastAttempt,
)
from gwi_celery.text import raw, unraw


def raw_or_none(value: str | None) -> bytes | None:
    return None if value is None else raw(value)


def raw_scope(lock: LockRef) -> bytes:
    return raw(json.dumps(lock.scope, ensure_ascii=False))


def job_row(c: sqlite3.Connection, job: JobRef) -> sqlite3.Row | None:
    """The job's row, expired or not."""
    row: sqlite3.Row | None = c.execute("SELECT * FROM jobs WHERE job_id = ?", (job.id,)).fetchone()
    return row


def unless_expired(row: sqlite3.Row | None, now: float) -> sqlite3.Row | None:
    """The row; None if it has expired."""
    if row is None or (row["expires_at"] is not None and row["expires_at"] <= now):
        return None
    return row


def lock_row(c: sqlite3.Connection, lock: LockRef) -> sqlite3.Row | None:
    """The lock's row, held or expired."""
    row: sqlite3.Row | None = c.execute(
        "SELECT * FROM locks WHERE lock_id = ?", (lock.id,)
    ).fetchone()
    return row


def checkpoints(
    c: sqlite3.Connection, job: JobRef, *, at_most: int | None = None
) -> list[Checkpoint]:
    """A job's checkpoints, in the order they were first saved.

    They come without their bytes if these are more than ``at_most`` in all.
    """
    blob = "blob"
    if at_most is not None:
        (size,) = c.execute(
            "SELECT coalesce(sum(length(blob)), 0) FROM checkpoints WHERE job_id = ?", (job.id,)
        ).fetchone()
        blob = "blob" if size <= at_most else "NULL AS blob"
    rows = c.execute(
        f"SELECT name, kind, {blob}, length(blob) AS size, version, saved_at, ordinal"  # noqa: S608
        " FROM checkpoints"
        " WHERE job_id = ? ORDER BY ordinal",
        (job.id,),
    )
    return [_checkpoint(row) for row in rows]


def checkpoint_named(c: sqlite3.Connection, job: JobRef, name: str) -> Checkpoint | None:
    """One checkpoint with its bytes."""
    row = c.execute(
        "SELECT *, length(blob) AS size FROM checkpoints WHERE job_id = ? AND name = ?",
        (job.id, raw(name)),
    ).fetchone()
    return None if row is None else _checkpoint(row)


def _checkpoint(row: sqlite3.Row) -> Checkpoint:
    return Checkpoint(
        name=unraw(row["name"]),
        kind=CheckpointKind(row["kind"]),
        blob=row["blob"] or b"",
        version=row["version"],
        saved_at=row["saved_at"],
        ordinal=row["ordinal"],
        deferred=row["blob"] is None,
        size=row["size"],
    )


def ref(row: sqlite3.Row) -> JobRef:
    """The job that a row of the table jobs or locks names."""
    return JobRef(unraw(row["tenant"]), unraw(row["task"]), unraw(row["key"]))


def job_record(row: sqlite3.Row) -> JobRecord:
    past = history_of(row)
    return JobRecord(
        job=ref(row),
        run_id=None if row["run_id"] is None else unraw(row["run_id"]),
        status=JobStatus(row["status"]),
        fingerprint=row["fingerprint"],
        submission=unraw(row["submission"]),
        generation=row["generation"],
        attempt=row["attempt"],
        crashes=row["crashes"],
        fence=row["fence"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        expires_at=row["expires_at"],
        outcome=row["outcome"],
        origin=history.load_origin(row["origin"]),
        worker=past.worker,
        lock=past.lock,
        attempts=history.attempts(past.ended, running(row)),
        attempts_forgotten=past.forgotten,
        waits=past.waits,
        progress=past.progress,
        error_type=past.error_type,
        error=past.error,
    )


def history_of(row: sqlite3.Row | None) -> history.History:
    """The part of a record that is for people; empty if there is no record."""
    if row is None:
        return history.History()
    scope = row["lock_scope"]
    lock = None
    if scope is not None:
        lock = LockRef(unraw(row["tenant"]), tuple(json.loads(unraw(scope))))
    return history.loads(row["history"], row["error_type"] or "", row["error"], lock)


def running(row: sqlite3.Row) -> PastAttempt | None:
    """The attempt that runs, according to the record."""
    if row["status"] != JobStatus.RUNNING.value:
        return None
    return PastAttempt(
        generation=row["generation"],
        number=row["attempt"],
        worker=history.loads(row["history"]).worker,
        fence=row["fence"],
        task_id=history.load_origin(row["origin"]).task_id or unraw(row["submission"]),
        began=row["fence"] / 1_000_000,  # the token follows the clock: see writes.next_token
    )


def over(row: sqlite3.Row, end: AttemptEnd, now: float) -> dict[str, Any]:
    """The columns to set when the attempt that runs, if any, has ended."""
    past = history_of(row).over(running(row), end, now)
    columns: dict[str, Any] = {"history": past.dumps()}
    if (past.error_type, past.error) != (row["error_type"] or "", row["error"]):
        columns |= {"error_type": past.error_type or None, "error": past.error}
    return columns


def lock_record(row: sqlite3.Row, now: float) -> LockRecord:
    return LockRecord(
        lock_id=row["lock_id"],
        tenant=unraw(row["tenant"]),
        scope=tuple(json.loads(unraw(row["scope"]))),
        owner=unraw(row["owner"]),
        fence=row["token"],
        job=ref(row),
        expires_at=row["expires_at"],
        expired=row["expires_at"] <= now,
    )


# --- for the protocol's rules ---------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """As :class:`gwi_celery.stores.protocol.Job`."""

    status: JobStatus
    fingerprint: str
    submission: str
    failed: Collection[str]
    generation: int
    attempt: int
    crashes: int
    fence: int
    lock_id: str | None


def known_job(row: sqlite3.Row | None) -> Job | None:
    if row is None:
        return None
    return Job(
        status=JobStatus(row["status"]),
        fingerprint=row["fingerprint"],
        submission=unraw(row["submission"]),
        failed=row["failed"].split(),
        generation=row["generation"],
        attempt=row["attempt"],
        crashes=row["crashes"],
        fence=row["fence"],
        lock_id=row["lock_id"],
    )


def known_lock(row: sqlite3.Row | None, now: float) -> protocol.Lock | None:
    if row is None:
        return None
    left = row["expires_at"] - now
    return protocol.Lock(unraw(row["owner"]), row["nonce"], row["token"], ref(row), left)
