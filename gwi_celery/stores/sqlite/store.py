"""The store on SQLite: one file for many processes, or the same tables in memory.

Every write is one transaction that starts by taking SQLite's write lock, so what it reads can't
change until it commits. A call may be repeated: a claim is recognised by its nonce, a finish by its
fence, a checkpoint by its bytes.

A lock has a row only while it is held, or has expired. Fencing tokens come from one counter for all
locks, so they keep growing although rows of locks and jobs come and go.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from gwi_celery import forks
from gwi_celery.actions import Action
from gwi_celery.clock import SYSTEM_CLOCK, Clock
from gwi_celery.errors import (
    JobCancelled,
    LeaseLost,
    StoreUnavailable,
    StoreUnusable,
)
from gwi_celery.sqlite import Database
from gwi_celery.stores import history, interventions, protocol
from gwi_celery.stores.base import Store
from gwi_celery.stores.interventions import CANCELLED_TTL
from gwi_celery.stores.limits import LimitSetting
from gwi_celery.stores.paging import check_limit
from gwi_celery.stores.protocol import ANY_PAYLOAD
from gwi_celery.stores.sqlite import claim as claims
from gwi_celery.stores.sqlite import limits, lists, operators, queues, rows, schema, writes
from gwi_celery.stores.sqlite.queues import SqliteQueues
from gwi_celery.stores.values import (
    RELEASED,
    AttemptEnd,
    Checkpoint,
    CheckpointKind,
    ClaimAnswer,
    ClaimRequest,
    JobFilter,
    JobRecord,
    JobRef,
    JobStatus,
    Lease,
    LockRecord,
    LockRef,
    Outcome,
    Page,
    PlaceRecord,
    Progress,
    StoredResult,
    Wait,
)
from gwi_celery.text import raw, unraw


class SqliteStore(Store):
    """Jobs, locks and checkpoints in one SQLite database.

    Over 25 methods, as :class:`Store` has them: each is one transaction.

    Args:
        folder: The folder of the file, created if it is missing. None: memory of this process alone.
        clock: The store's clock, whose ``time()`` decides every expiry. Processes that share a file
            share the machine's clock too.
    """

    def __init__(self, folder: Path | None, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._database = Database(
            None if folder is None else folder / "store.sqlite3",
            kind="store",
            schema=schema.SCHEMA,
            application_id=schema.APPLICATION_ID,
            version=schema.VERSION,
            unavailable=StoreUnavailable,
            unusable=StoreUnusable,
            migrations=schema.MIGRATIONS,
        )

    @property
    def database(self) -> Database:
        """The database, for the result backend, which keeps its tables in the same file."""
        return self._database

    @property
    def queues(self) -> SqliteQueues:
        return SqliteQueues(self._database, self._clock)

    # --- claim --------------------------------------------------------------------------------

    def claim(self, request: ClaimRequest) -> ClaimAnswer:
        protocol.check_tenants(request)
        # A power cut that undoes a claim stops its worker too, and whatever the attempt saves is
        # synced together with its claim. The next token is larger even so: it follows the clock.
        with self._database.write(durable=False) as c:
            answer = claims.claim(c, request, self._clock.time())
        if isinstance(answer, str):
            self.cancel(request.job, answer, in_advance=True)
            return self.claim(request)
        return answer

    # --- the holder's writes ------------------------------------------------------------------

    def renew(self, lease: Lease) -> Lease:
        # A power cut that undoes a renewal stops its worker too.
        with self._database.write(durable=False) as c:
            now = self._clock.time()
            _check_holder(c, lease, now)
            writes.extend(c, lease.lock, lease.fence, now + lease.ttl)
        return lease

    def save(self, lease: Lease, checkpoint: Checkpoint) -> Lease:
        with self._database.write() as c:
            now = self._clock.time()
            job = _check_holder(c, lease, now)
            if writes.write_checkpoint(c, lease.job, checkpoint, now):
                crashes = 0 if protocol.is_progress(checkpoint) else job["crashes"]
                writes.update_job(c, job, updated_at=now, crashes=crashes)
            writes.extend(c, lease.lock, lease.fence, now + lease.ttl)
        return lease

    def load(self, lease: Lease) -> list[Checkpoint]:
        """As :meth:`Store.load`. Raises LeaseLost once a later attempt has begun."""
        with self._database.read() as c:
            _check_last(c, lease)
            return rows.checkpoints(c, lease.job, at_most=protocol.LOADED_AT_ONCE)

    def fetch(self, lease: Lease, name: str) -> Checkpoint | None:
        with self._database.read() as c:
            _check_last(c, lease)
            return rows.checkpoint_named(c, lease.job, name)

    def finish(self, lease: Lease, outcome: Outcome, result: StoredResult | None = None) -> None:
        with self._database.write() as c:
            now = self._clock.time()
            row = rows.job_row(c, lease.job)
            finished = None if row is None else row["finished_fence"]
            same_bytes = row is not None and row["outcome"] == outcome.blob
            job = rows.known_job(row)
            if protocol.is_finished(lease, job, finished, outcome, same_bytes=same_bytes):
                return
            row = _check_holder(c, lease, now)
            writes.update_job(
                c,
                row,
                status=outcome.status.value,
                outcome=outcome.blob,
                finished_fence=lease.fence,
                failed=_failed_after(row, outcome.status),
                updated_at=now,
                expires_at=now + lease.result_ttl,
                **rows.over(row, history.end_of(outcome), now),
            )
            writes.free_lock(c, lease.lock.id, lease.fence)

    def keeps_results_of(self, url: str) -> bool:
        """False: the result backend's own write isn't synced, and so costs next to nothing."""
        return False

    def release(self, lease: Lease, end: AttemptEnd = RELEASED) -> None:
        with self._database.write() as c:
            now = self._clock.time()
            try:
                job = _check_holder(c, lease, now)
            except (LeaseLost, JobCancelled):
                return
            status = JobStatus.PENDING.value
            writes.update_job(c, job, status=status, updated_at=now, **rows.over(job, end, now))
            writes.free_lock(c, lease.lock.id, lease.fence)

    def progress(self, lease: Lease, progress: Progress) -> Lease:
        # After a power cut the job's next attempt reports its progress again.
        with self._database.write(durable=False) as c:
            now = self._clock.time()
            job = _check_holder(c, lease, now)
            reported = rows.history_of(job).progressing(progress, now)
            writes.update_job(c, job, history=reported.dumps())
            writes.extend(c, lease.lock, lease.fence, now + lease.ttl)
        return lease

    def wait(self, request: ClaimRequest, wait: Wait) -> None:
        protocol.check_tenants(request)
        with self._database.write(durable=False) as c:
            stored = rows.job_row(c, request.job)
            claims.record_wait(c, request, stored, wait, self._clock.time())

    # --- operators ----------------------------------------------------------------------------

    def force_release(self, lock: LockRef, *, owner_nonce: str | None = None) -> bool:
        with self._database.write() as c:
            row = rows.lock_row(c, lock)
            if row is None or not interventions.may_free(row["nonce"], owner_nonce):
                return False
            writes.free_lock(c, lock.id, row["token"])
            done = interventions.releasing(lock)
            if owner_nonce is None:
                operators.keep(c, done)
            live = bool(row["expires_at"] > self._clock.time())
        if owner_nonce is None:
            done.log()
        return live

    def cancel(self, job: JobRef, reason: str, *, in_advance: bool = False) -> bool:
        cancelled = {"status": JobStatus.CANCELLED.value, "outcome": raw(reason)}
        done = interventions.cancelling(job, reason)
        with self._database.write() as c:
            now = self._clock.time()
            stored = rows.job_row(c, job)
            known = rows.unless_expired(stored, now)
            if not interventions.may_cancel(rows.known_job(known), in_advance=in_advance):
                return False
            if known is None:
                writes.insert_job(
                    c,
                    job,
                    stored,
                    now,
                    fingerprint=ANY_PAYLOAD,
                    submission=b"",
                    attempt=0,
                    fence=0,
                    result_ttl=CANCELLED_TTL,
                    updated_at=now,
                    expires_at=now + CANCELLED_TTL,
                    **cancelled,
                )
            else:
                kept_until = now + known["result_ttl"]
                cancelled |= rows.over(known, AttemptEnd("cancelled"), now)
                writes.update_job(c, known, updated_at=now, expires_at=kept_until, **cancelled)
                writes.free_lock(c, known["lock_id"], known["fence"])
            operators.keep(c, done)
        done.log()
        return True

    def bar_calls_of(self, tenant: str, task_id: str, reason: str) -> None:
        with self._database.write() as c:
            writes.bar(c, tenant, task_id, reason, self._clock.time())

    def operator_key(self) -> bytes:
        with self._database.write() as c:
            return operators.key(c)

    def record_action(self, action: Action) -> None:
        with self._database.write() as c:
            operators.keep(c, action)
        action.log()

    def list_actions(
        self, *, tenant: str | None = None, limit: int = 100, before: str | None = None
    ) -> list[Action]:
        check_limit(limit)
        with self._database.read() as c:
            return operators.listed(c, tenant, limit, before)

    def put_value(
        self, job: JobRef, name: str, blob: bytes, *, expected_version: int
    ) -> Checkpoint:
        with self._database.write() as c:
            now = self._clock.time()
            known = rows.unless_expired(rows.job_row(c, job), now)
            protocol.check_open(job, rows.known_job(known))
            assert known is not None
            stored = writes.stored_checkpoint(c, job, name, blob)
            if protocol.must_put(job.task, name, stored, expected_version):
                new = Checkpoint(name, CheckpointKind.VALUE, blob, expected_version + 1)
                writes.put_checkpoint(c, job, new, now, known=stored is not None)
                writes.update_job(c, known, updated_at=now)
            written = rows.checkpoint_named(c, job, name)
            assert written is not None
            return written

    # --- reading ------------------------------------------------------------------------------

    def get_job(self, job: JobRef) -> JobRecord | None:
        with self._database.read() as c:
            row = rows.unless_expired(rows.job_row(c, job), self._clock.time())
            return None if row is None else rows.job_record(row)

    def get_envelope(self, job: JobRef) -> bytes | None:
        with self._database.read() as c:
            if rows.unless_expired(rows.job_row(c, job), self._clock.time()) is None:
                return None
            row = c.execute("SELECT blob FROM envelopes WHERE job_id = ?", (job.id,)).fetchone()
            return None if row is None else row["blob"]

    def get_checkpoints(self, job: JobRef, *, outline: bool = False) -> list[Checkpoint]:
        with self._database.read() as c:
            row = rows.unless_expired(rows.job_row(c, job), self._clock.time())
            at_most = -1 if outline else None
            return [] if row is None else rows.checkpoints(c, job, at_most=at_most)

    def get_lock(self, lock: LockRef) -> LockRecord | None:
        with self._database.read() as c:
            row = rows.lock_row(c, lock)
            return None if row is None else rows.lock_record(row, self._clock.time())

    def list_jobs(
        self,
        tenant: str,
        *,
        status: JobStatus | None = None,
        run_id: str | None = None,
        limit: int = 100,
        token: str | None = None,
    ) -> Page:
        with self._database.read() as c:
            now = self._clock.time()
            return lists.list_jobs(c, now, tenant, status, run_id, limit, token)

    def find_jobs(self, wanted: JobFilter, *, limit: int = 100, token: str | None = None) -> Page:
        with self._database.read() as c:
            return lists.find_jobs(c, self._clock.time(), wanted, limit, token)

    def list_locks(self, tenant: str) -> list[LockRecord]:
        with self._database.read() as c:
            now = self._clock.time()
            found = c.execute("SELECT * FROM locks WHERE tenant = ? ORDER BY token", (raw(tenant),))
            return [rows.lock_record(row, now) for row in found]

    # --- limits -------------------------------------------------------------------------------

    def list_places(self, limit_id: str | None = None, *, limit: int = 1000) -> list[PlaceRecord]:
        with self._database.read() as c:
            return limits.listed(c, limit_id, self._clock.time(), limit)

    def limit_settings(self) -> dict[str, LimitSetting]:
        with self._database.read() as c:
            return limits.settings(c)

    def set_limit(self, setting: LimitSetting) -> None:
        """As :meth:`Store.set_limit`, with effect at once."""
        with self._database.write() as c:
            limits.put_setting(c, setting)

    def clear_limit(self, id: str) -> bool:
        with self._database.write() as c:
            return limits.drop_setting(c, id)

    # --- upkeep -------------------------------------------------------------------------------

    def cleanup(self, limit: int = 1000) -> int:
        with self._database.write() as c:
            now = self._clock.time()
            expired = c.execute(
                "SELECT job_id FROM jobs WHERE expires_at <= ? ORDER BY expires_at LIMIT ?",
                (now, max(limit, 0)),
            ).fetchall()
            for row in expired:
                writes.delete_job(c, row["job_id"])
            # An expired lock whose job still runs under it stays: its holder may still renew it.
            abandoned = c.execute(
                "DELETE FROM locks WHERE lock_id IN (SELECT lock_id FROM locks"
                " WHERE expires_at <= ? AND NOT EXISTS (SELECT 1 FROM jobs"
                " WHERE jobs.job_id = locks.job_id AND status = 'running' AND fence = token)"
                " LIMIT ?)",
                (now, max(limit - len(expired), 0)),
            ).rowcount
            done = len(expired) + abandoned
            done += limits.delete_free(c, now, max(limit - done, 0))
            done += operators.delete_old(c, now, max(limit - done, 0))
            done += queues.delete_old(c, now, max(limit - done, 0))
            return done + writes.delete_old_bars(c, now, max(limit - done, 0))

    def close(self) -> None:
        self._database.close()


class SharedMemoryStore(SqliteStore):
    """A memory store that is shared, by its name, within this process."""

    def __init__(self) -> None:
        super().__init__(None)

    def close(self) -> None:
        """Does nothing, since others may use it; :func:`forget_memory_store` drops its contents."""


_shared: dict[str, SharedMemoryStore] = {}
_shared_lock = forks.lock()


def memory_store(name: str) -> SqliteStore:
    """The memory store called ``name``, which is created empty at the first call."""
    with _shared_lock:
        return _shared.setdefault(name, SharedMemoryStore())


def forget_memory_store(name: str) -> None:
    """Drop the memory store called ``name`` with its contents. No error if there is none."""
    with _shared_lock:
        store = _shared.pop(name, None)
    if store is not None:
        store.database.close()


# --- parts of a holder's write --------------------------------------------------------------------


def _check_holder(c: sqlite3.Connection, lease: Lease, now: float) -> sqlite3.Row:
    """The job's row, if the lease may write. Raises LeaseLost, JobCancelled."""
    row = rows.unless_expired(rows.job_row(c, lease.job), now)
    lock = rows.known_lock(rows.lock_row(c, lease.lock), now)

    def reason() -> str:
        assert row is not None
        return unraw(row["outcome"])

    protocol.check_holder(lease, rows.known_job(row), lock, reason)
    assert row is not None
    return row


def _check_last(c: sqlite3.Connection, lease: Lease) -> None:
    """Raises LeaseLost unless the lease's claim is the last of the job."""
    job = rows.job_row(c, lease.job)
    if job is None or job["fence"] != lease.fence:
        raise protocol.lease_lost(lease, rows.known_lock(rows.lock_row(c, lease.lock), 0.0))


def _failed_after(row: sqlite3.Row, status: JobStatus) -> str:
    job = rows.known_job(row)
    assert job is not None
    return " ".join(protocol.failed_after(job, status))
