"""Writes to the store's tables."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from gwi_celery.stores import history, interventions, protocol
from gwi_celery.stores.sqlite import rows
from gwi_celery.stores.sqlite.rows import raw_or_none
from gwi_celery.stores.values import Checkpoint, CheckpointKind, ClaimRequest, JobRef, LockRef
from gwi_celery.text import raw, unraw

# --- locks ----------------------------------------------------------------------------------------


def next_token(c: sqlite3.Connection, now: float) -> int:
    """A token above all earlier ones, and not behind the clock: so also above those of a deleted file."""
    last: int = c.execute("SELECT last FROM fence").fetchone()["last"]
    token = max(last + 1, int(now * 1_000_000))
    c.execute("UPDATE fence SET last = ?", (token,))
    return token


def take_lock(c: sqlite3.Connection, request: ClaimRequest, token: int, expires_at: float) -> None:
    c.execute(
        "INSERT OR REPLACE INTO locks (lock_id, tenant, scope, owner, nonce, token, job_id, task,"
        " key, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            request.lock.id,
            raw(request.lock.tenant),
            rows.raw_scope(request.lock),
            raw(request.owner),
            request.nonce,
            token,
            request.job.id,
            raw(request.job.task),
            raw(request.job.key),
            expires_at,
        ),
    )


def extend(c: sqlite3.Connection, lock: LockRef, token: int, expires_at: float) -> None:
    c.execute(
        "UPDATE locks SET expires_at = ? WHERE lock_id = ? AND token = ?",
        (expires_at, lock.id, token),
    )


def free_lock(c: sqlite3.Connection, lock_id: str | None, token: int) -> None:
    c.execute("DELETE FROM locks WHERE lock_id = ? AND token = ?", (lock_id, token))


# --- jobs -----------------------------------------------------------------------------------------


def insert_job(
    c: sqlite3.Connection, job: JobRef, expired: sqlite3.Row | None, now: float, **columns: Any
) -> None:
    """Start the job in generation 1, in place of an ``expired`` record of it if there is one."""
    delete_job(c, job.id)
    columns |= {
        "job_id": job.id,
        "tenant": raw(job.tenant),
        "task": raw(job.task),
        "key": raw(job.key),
        "generation": 1,
        "crashes": 0,
        "failed": "",
        "created_at": now,
        # A finish of the expired record may still be repeated.
        "finished_fence": None if expired is None else expired["finished_fence"],
    }
    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
    c.execute(
        f"INSERT INTO jobs ({names}) VALUES ({marks})",  # noqa: S608 - names are this module's
        tuple(columns.values()),
    )


def update_job(c: sqlite3.Connection, job: sqlite3.Row, **columns: Any) -> None:
    names = ", ".join(f"{name} = ?" for name in columns)
    c.execute(
        f"UPDATE jobs SET {names} WHERE job_id = ?",  # noqa: S608 - names are this module's
        (*columns.values(), job["job_id"]),
    )


def delete_job(c: sqlite3.Connection, job_id: str) -> None:
    for table in ("checkpoints", "terms", "envelopes", "jobs"):
        c.execute(f"DELETE FROM {table} WHERE job_id = ?", (job_id,))  # noqa: S608 - constants


def origin_columns(request: ClaimRequest, row: sqlite3.Row | None) -> dict[str, Any]:
    """The columns that describe the request's call, if that replaces the one in ``row``."""
    origin = request.origin
    if origin is None or not _is_another_call(request, row):
        return {}
    return {
        "parent_id": raw_or_none(origin.parent_id),
        "origin": history.dump_origin(origin),
    }


def keep_origin(
    c: sqlite3.Connection, request: ClaimRequest, before: sqlite3.Row | None, now: float
) -> None:
    """Keep the call's envelope and its terms, if the call replaces that of the record ``before``."""
    origin, job_id = request.origin, request.job.id
    if origin is None or not _is_another_call(request, before):
        return
    created_at = now
    if before is not None:
        created_at = before["created_at"]
        c.execute("DELETE FROM terms WHERE job_id = ?", (job_id,))
        c.execute("DELETE FROM envelopes WHERE job_id = ?", (job_id,))
    ended = rows.history_of(before).ended
    past = [] if before is None else [*ended, *filter(None, [rows.running(before)])]
    c.executemany(
        "INSERT INTO terms (term, created_at, job_id) VALUES (?, ?, ?)",
        [(term, created_at, job_id) for term in history.terms(origin, past)],
    )
    if origin.envelope is not None:
        c.execute("INSERT INTO envelopes VALUES (?, ?)", (job_id, origin.envelope))


def _is_another_call(request: ClaimRequest, row: sqlite3.Row | None) -> bool:
    kept = None if row is None or row["origin"] is None else unraw(row["submission"])
    return protocol.is_another_call(request, kept)


# --- calls of cancelled tasks ---------------------------------------------------------------------


def bar(c: sqlite3.Connection, tenant: str, task_id: str, reason: str, now: float) -> None:
    """Keep the calls of that task from beginning."""
    c.execute(
        "INSERT OR REPLACE INTO barred VALUES (?, ?, ?, ?)",
        (
            raw(tenant),
            raw(task_id),
            raw(interventions.kept_reason(reason)),
            now + interventions.BARRED_TTL,
        ),
    )


def delete_old_bars(c: sqlite3.Connection, now: float, limit: int) -> int:
    """Delete up to ``limit`` that have expired; how many."""
    return c.execute(
        "DELETE FROM barred WHERE (tenant, task_id) IN"
        " (SELECT tenant, task_id FROM barred WHERE expires_at <= ? LIMIT ?)",
        (now, limit),
    ).rowcount


def barred(c: sqlite3.Connection, tenant: str, task_id: str | None) -> str | None:
    """Why no call of that task may begin; None: they may."""
    if task_id is None:
        return None
    row = c.execute(
        "SELECT reason FROM barred WHERE tenant = ? AND task_id = ?", (raw(tenant), raw(task_id))
    ).fetchone()
    return None if row is None else unraw(row["reason"])


# --- checkpoints ----------------------------------------------------------------------------------


def delete_checkpoints(c: sqlite3.Connection, job: JobRef, names: Sequence[str] | None) -> None:
    """Delete a job's checkpoints of these names; None: all of them."""
    if names is None:
        c.execute("DELETE FROM checkpoints WHERE job_id = ?", (job.id,))
    else:
        c.executemany(
            "DELETE FROM checkpoints WHERE job_id = ? AND name = ?",
            [(job.id, raw(name)) for name in names],
        )


def write_checkpoint(
    c: sqlite3.Connection, job: JobRef, checkpoint: Checkpoint, now: float
) -> bool:
    """Save a checkpoint; False if the very same one is stored already.

    Raises StepNameReused, CursorWentBack.
    """
    stored = stored_checkpoint(c, job, checkpoint.name, checkpoint.blob)
    if not protocol.must_write(job.task, stored, checkpoint):
        return False
    put_checkpoint(c, job, checkpoint, now, known=stored is not None)
    return True


def stored_checkpoint(
    c: sqlite3.Connection, job: JobRef, name: str, blob: bytes
) -> protocol.Stored | None:
    """What is stored under the name, compared with the bytes to write."""
    row = c.execute(
        "SELECT kind, blob, version FROM checkpoints WHERE job_id = ? AND name = ?",
        (job.id, raw(name)),
    ).fetchone()
    if row is None:
        return None
    return protocol.Stored(CheckpointKind(row["kind"]), row["version"], row["blob"] == blob)


def put_checkpoint(
    c: sqlite3.Connection, job: JobRef, checkpoint: Checkpoint, now: float, *, known: bool
) -> None:
    """Write a checkpoint: in place of the stored one if ``known``, else after all others."""
    name, kind = raw(checkpoint.name), checkpoint.kind
    version = 1 if kind is CheckpointKind.STEP else checkpoint.version
    if known:
        c.execute(
            "UPDATE checkpoints SET blob = ?, version = ?, saved_at = ?"
            " WHERE job_id = ? AND name = ?",
            (checkpoint.blob, version, now, job.id, name),
        )
        return
    c.execute(
        "INSERT INTO checkpoints (job_id, name, kind, blob, version, saved_at, ordinal)"
        " VALUES (?, ?, ?, ?, ?, ?,"
        " (SELECT coalesce(max(ordinal), 0) + 1 FROM checkpoints WHERE job_id = ?))",
        (job.id, name, kind.value, checkpoint.blob, version, now, job.id),
    )
