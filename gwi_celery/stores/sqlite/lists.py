"""Lists of jobs: each is served by an index, whatever the filter."""

from __future__ import annotations

import sqlite3
from typing import Final

from gwi_celery.stores import history
from gwi_celery.stores.paging import (
    check_limit,
    filter_id,
    list_id,
    place_of,
    token_after,
)
from gwi_celery.stores.sqlite import rows
from gwi_celery.stores.sqlite.rows import raw_or_none
from gwi_celery.stores.values import JobFilter, JobStatus, Page
from gwi_celery.text import raw

_LIVE: Final = "(jobs.expires_at IS NULL OR jobs.expires_at > ?)"
_TERM: Final = "terms.term"
#: All columns but the outcome, which may be large.
_LISTED: Final = ", ".join(
    f"jobs.{column}"
    for column in (
        *("job_id", "tenant", "task", "key", "run_id", "status", "fingerprint", "submission"),
        *("generation", "attempt", "crashes", "fence", "lock_id", "lock_scope", "created_at"),
        *("updated_at", "expires_at", "error_type", "error", "origin", "history"),
    )
)


def list_jobs(
    c: sqlite3.Connection,
    now: float,
    tenant: str,
    status: JobStatus | None,
    run_id: str | None,
    limit: int,
    token: str | None,
) -> Page:
    """One tenant's jobs, newest change first."""
    listed = list_id(tenant, status, run_id)
    where: list[str] = ["tenant = ?", _LIVE]
    values: list[object] = [raw(tenant), now]
    if status is not None:
        where.append("status = ?")
        values.append(status.value)
    if run_id is not None:
        where.append("run_id = ?")
        values.append(raw(run_id))
    select = "SELECT * FROM jobs"
    return _page(c, select, where, values, "jobs.updated_at", limit, token, listed)


def find_jobs(
    c: sqlite3.Connection, now: float, wanted: JobFilter, limit: int, token: str | None
) -> Page:
    """Jobs of one tenant or of all, newest first."""
    select, order, where, values = query(wanted)
    where.append(_LIVE)
    values.append(now)
    return _page(c, select, where, values, order, limit, token, filter_id(wanted))


def query(wanted: JobFilter) -> tuple[str, str, list[str], list[object]]:
    """The SELECT, the column of the list's order, the conditions and their values.

    Conditions stand in the order of how few jobs usually match. The index of the first one given is in
    the list's order, and is the one to walk. SQLite, without statistics, can't know that: a "+" before
    the other columns keeps it from choosing their indexes.
    """
    call = None if wanted.task_id is None else history.call_term(wanted.task_id)
    label = None if wanted.label is None else history.label_term(*wanted.label)
    error = None if wanted.error_type is None else history.short(wanted.error_type)
    conditions: list[tuple[str, object]] = [
        (_TERM, call),
        ("jobs.parent_id", raw_or_none(wanted.parent_id)),
        ("jobs.run_id", raw_or_none(wanted.run_id)),
        (_TERM, label),
        ("jobs.error_type", error),
        ("jobs.tenant", raw_or_none(wanted.tenant)),
        ("jobs.task", raw_or_none(wanted.task)),
        ("jobs.status", wanted.status and wanted.status.value),
    ]
    given = [(column, value) for column, value in conditions if value is not None]
    by_term = bool(given) and given[0][0] == _TERM
    select, at = f"SELECT {_LISTED}, NULL AS outcome FROM jobs", "jobs.created_at"  # noqa: S608
    if by_term:  # CROSS makes SQLite walk the table of terms first
        select = select.replace("FROM jobs", "FROM terms CROSS JOIN jobs USING (job_id)")
        at = "terms.created_at"
    where, values = [], []
    for n, (column, value) in enumerate(given):
        if n and column == _TERM:
            where.append(
                "EXISTS (SELECT 1 FROM terms AS t WHERE t.job_id = jobs.job_id AND t.term = ?)"
            )
        else:
            where.append(f"{'+' if n else ''}{column} = ?")
        values.append(value)
    for condition, moment in ((">=", wanted.since), ("<", wanted.before)):
        if moment is not None:
            where.append(f"{at} {condition} ?")
            values.append(moment)
    return select, at, where, values


def _page(
    c: sqlite3.Connection,
    select: str,
    where: list[str],
    values: list[object],
    order: str,
    limit: int,
    token: str | None,
    listed: str,
) -> Page:
    check_limit(limit)
    id = order.replace(".created_at", ".job_id").replace(".updated_at", ".job_id")
    if token is not None:
        where.append(f"({order}, {id}) < (?, ?)")
        values.extend(place_of(token, listed))
    # One more than the page holds tells whether there is another.
    values.append(limit + 1)
    sql = f"{select} WHERE {' AND '.join(where)} ORDER BY {order} DESC, {id} DESC LIMIT ?"
    found = c.execute(sql, values).fetchall()
    page = found[:limit]
    next_token = None
    if len(found) > limit:
        moment = page[-1][order.partition(".")[2]]
        next_token = token_after(moment, page[-1]["job_id"], listed)
    return Page([rows.job_record(row) for row in page], next_token)
