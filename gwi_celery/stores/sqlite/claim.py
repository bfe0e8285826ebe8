"""A claim within one transaction: see :meth:`gwi_celery.stores.base.Store.claim`."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from gwi_celery.stores import interventions, protocol
from gwi_celery.stores.sqlite import limits, rows, writes
from gwi_celery.stores.sqlite.rows import raw_or_none
from gwi_celery.stores.values import (
    ClaimAnswer,
    Claimed,
    ClaimRequest,
    Held,
    JobRef,
    JobStatus,
    Lease,
    Limited,
    Wait,
)
from gwi_celery.text import raw


def claim(c: sqlite3.Connection, request: ClaimRequest, now: float) -> ClaimAnswer | str:
    """The answer; or, for a job whose caller was cancelled, the reason to cancel it with."""
    stored = rows.job_row(c, request.job)
    row = rows.unless_expired(stored, now)
    job = rows.known_job(row)
    answer = protocol.settled(request, job)
    if answer is not None:
        assert row is not None
        return answer(rows.job_record(row))
    barred = writes.barred(c, request.job.tenant, interventions.may_be_barred(request, job))
    if barred is not None:
        wait, reason = interventions.barred(barred)
        record_wait(c, request, stored, wait, now)  # so that the record says which call it is of
        return reason
    forgotten = protocol.forgotten(request, job, lambda: _checkpoint_names(c, request.job))
    lock = rows.known_lock(rows.lock_row(c, request.lock), now)
    other = _other_lock(c, request, job)
    match protocol.decide(request, job, lock, rows.known_lock(other, now)):
        case Held() as held:
            record_wait(c, request, stored, protocol.wait_to_record(request, held, now), now)
            return held
        case protocol.SameClaim():
            assert row is not None
            writes.extend(c, request.lock, row["fence"], now + request.lease_ttl)
            return _claimed(c, request, row)
        case protocol.Granted() as granted:
            pass
        case _:
            raise AssertionError
    taking = limits.choose(c, request, now)
    if isinstance(taking, Limited):
        record_wait(c, request, stored, protocol.wait_to_record(request, taking, now), now)
        return taking
    token = _write(c, request, stored, granted, forgotten, now)
    if other is not None:
        writes.free_lock(c, other["lock_id"], other["token"])
    limits.take(c, request, taking, token, now)
    taken = rows.job_row(c, request.job)
    assert taken is not None
    return _claimed(c, request, taken)


def _write(
    c: sqlite3.Connection,
    request: ClaimRequest,
    stored: sqlite3.Row | None,
    granted: protocol.Granted,
    forgotten: Sequence[str],
    now: float,
) -> int:
    """Write the record and the lock of a claim that is granted; returns its fencing token."""
    row = rows.unless_expired(stored, now)
    token = writes.next_token(c, now)
    history = rows.history_of(row).claimed(
        request.owner,
        request.lock,
        None if row is None else rows.running(row),
        first=granted.attempt == 1,
        now=now,
    )
    running: dict[str, Any] = {
        "status": JobStatus.RUNNING.value,
        "fingerprint": request.fingerprint,
        "run_id": raw_or_none(request.run_id),
        "submission": raw(request.submission),
        "attempt": granted.attempt,
        "fence": token,
        "lock_id": request.lock.id,
        "lock_scope": rows.raw_scope(request.lock),
        "result_ttl": request.result_ttl,
        "updated_at": now,
        "expires_at": None,
        "outcome": None,
        "history": history.dumps(),
        **writes.origin_columns(request, row),
    }
    if row is None:
        writes.insert_job(c, request.job, stored, now, **running)
    else:
        writes.delete_checkpoints(c, request.job, None if granted.anew else forgotten)
        running |= {"generation": granted.generation, "crashes": granted.crashes}
        writes.update_job(c, row, **running)
    writes.keep_origin(c, request, row, now)
    writes.take_lock(c, request, token, now + request.lease_ttl)
    return token


def _checkpoint_names(c: sqlite3.Connection, job: JobRef) -> list[str]:
    """In the order they were first saved."""
    return [each.name for each in rows.checkpoints(c, job, at_most=-1)]


def _other_lock(
    c: sqlite3.Connection, request: ClaimRequest, job: rows.Job | None
) -> sqlite3.Row | None:
    """The other lock that the job's last attempt holds, or has let expire."""
    lock_id = protocol.other_lock(request, job)
    if job is None or lock_id is None:
        return None
    other: sqlite3.Row | None = c.execute(
        "SELECT * FROM locks WHERE lock_id = ? AND token = ?", (lock_id, job.fence)
    ).fetchone()
    return other


def record_wait(
    c: sqlite3.Connection,
    request: ClaimRequest,
    stored: sqlite3.Row | None,
    wait: Wait | None,
    now: float,
) -> None:
    """Record the wait, if any, unless the job runs, has ended, or waits for the same already."""
    row = rows.unless_expired(stored, now)
    job = rows.known_job(row)
    past = rows.history_of(row)
    if wait is None or not protocol.may_wait(job) or past.waits_for(wait, request.lock):
        return
    waiting: dict[str, Any] = {
        "status": JobStatus.WAITING.value,
        "lock_id": request.lock.id,
        "lock_scope": rows.raw_scope(request.lock),
        "updated_at": now,
        "history": past.waiting(wait, request.lock, now).dumps(),
    }
    if job is None or protocol.never_begun(job):
        # It has never begun: it matches any payload, and expires.
        waiting |= {
            **writes.origin_columns(request, row),
            "fingerprint": protocol.ANY_PAYLOAD,
            "submission": raw(request.submission),
            "run_id": raw_or_none(request.run_id),
            "result_ttl": request.result_ttl,
            "expires_at": now + request.result_ttl,
        }
    if row is None:
        writes.insert_job(c, request.job, stored, now, attempt=0, fence=0, **waiting)
    else:
        writes.update_job(c, row, **waiting)
    if "origin" in waiting:
        writes.keep_origin(c, request, row, now)


def _claimed(c: sqlite3.Connection, request: ClaimRequest, job: sqlite3.Row) -> Claimed:
    some = c.execute("SELECT 1 FROM checkpoints WHERE job_id = ? LIMIT 1", (job["job_id"],))
    lease = Lease(
        job=request.job,
        lock=request.lock,
        fence=job["fence"],
        nonce=request.nonce,
        ttl=request.lease_ttl,
        result_ttl=request.result_ttl,
        generation=job["generation"],
    )
    return Claimed(lease, rows.job_record(job), has_checkpoints=some.fetchone() is not None)
