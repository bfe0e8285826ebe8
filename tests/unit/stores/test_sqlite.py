"""What is SQLite's own about its store: exact moments, the file, its errors, its indexes."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import gwi_celery.sqlite
from gwi_celery.errors import LeaseLost, StoreUnavailable, StoreUnusable
from gwi_celery.stores.base import (
    Cancelled,
    Claimed,
    ClaimRequest,
    Completed,
    Held,
    JobFilter,
    JobRef,
    JobStatus,
    LockRef,
    Origin,
)
from gwi_celery.stores.interventions import BARRED_TTL, CANCELLED_TTL
from gwi_celery.stores.protocol import FAILED_KEPT
from gwi_celery.stores.sqlite import (
    SqliteStore,
    forget_memory_store,
    memory_store,
    schema,
)
from tests.clocks import FakeClock
from tests.contract import test_store_queues as letters
from tests.contract.stores import StoreCase, failure, step, success
from tests.contract.test_store_records import WANTED, fill
from tests.machine import examples
from tests.upgrade.older import older_schema

LEASE_TTL = 30.0
RESULT_TTL = 3600.0
#: Less than any two moments that matter here are apart, seconds.
INSTANT = 0.001


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> Iterator[SqliteStore]:
    store = SqliteStore(None, clock=clock)
    yield store
    store.close()


def request(
    key: str = "k", *, nonce: str = "n", submission: str = "s", scope: str = ""
) -> ClaimRequest:
    return ClaimRequest(
        job=JobRef("acme", "review", key),
        lock=LockRef("acme", (scope or key,)),
        run_id="r",
        fingerprint="f",
        submission=submission,
        owner="host:1",
        nonce=nonce,
        lease_ttl=LEASE_TTL,
        result_ttl=RESULT_TTL,
    )


def take(store: SqliteStore, of: ClaimRequest) -> Claimed:
    answer = store.claim(of)
    assert isinstance(answer, Claimed), answer
    return answer


# --- exact moments --------------------------------------------------------------------------------


def test_a_lease_is_held_until_its_last_instant_and_gone_at_its_end(store, clock):
    take(store, request())
    clock.advance(LEASE_TTL - INSTANT)
    answer = store.claim(request(nonce="m"))
    assert isinstance(answer, Held)
    assert answer.retry_after == pytest.approx(INSTANT)
    lock = store.get_lock(request().lock)
    assert lock is not None
    assert not lock.expired

    clock.advance(INSTANT)

    lock = store.get_lock(request().lock)
    assert lock is not None
    assert lock.expired
    assert lock.expires_at == clock.now
    assert isinstance(store.claim(request(nonce="m")), Claimed)


@pytest.mark.parametrize("write", ["renew", "save", "finish"])
@pytest.mark.parametrize("late", [0.0, INSTANT])
def test_at_the_end_of_a_lease_its_holder_writes_until_another_has_claimed(
    store, clock, write, late
):
    def write_with(lease):
        if write == "renew":
            store.renew(lease)
        elif write == "save":
            store.save(lease, step("late"))
        else:
            store.finish(lease, success())

    in_time = take(store, request("one")).lease
    too_late = take(store, request("two")).lease
    clock.advance(LEASE_TTL + late)
    successor = take(store, request("two", nonce="m")).lease

    write_with(in_time)
    with pytest.raises(LeaseLost, match=f"host:1 took over with fence {successor.fence}"):
        write_with(too_late)
    store.renew(successor)


@pytest.mark.parametrize("late", [0.0, INSTANT])
def test_a_release_at_the_end_of_a_lease(store, clock, late):
    in_time = take(store, request("one")).lease
    too_late = take(store, request("two")).lease
    clock.advance(LEASE_TTL + late)
    take(store, request("two", nonce="m"))

    store.release(in_time)
    store.release(too_late)

    assert store.get_lock(in_time.lock) is None
    assert take(store, request("one", nonce="m")).record.crashes == 0
    lock = store.get_lock(too_late.lock)
    assert lock is not None
    assert not lock.expired


def test_an_outcome_is_kept_until_its_last_instant_and_gone_at_its_end(store, clock):
    store.finish(take(store, request()).lease, success())
    clock.advance(RESULT_TTL - INSTANT)
    assert isinstance(store.claim(request(nonce="m")), Completed)
    assert store.cleanup() == 0
    assert len(store.list_jobs("acme").jobs) == 1

    clock.advance(INSTANT)

    assert store.get_job(request().job) is None
    assert store.list_jobs("acme").jobs == []
    assert store.cleanup() == 1


def test_a_cancellation_of_an_unknown_job_is_kept_for_a_day(store, clock):
    job = request().job
    store.cancel(job, "no", in_advance=True)
    clock.advance(CANCELLED_TTL - INSTANT)
    assert store.get_job(job) is not None
    clock.advance(INSTANT)
    assert store.get_job(job) is None


def test_times_are_the_stores(store, clock):
    first = take(store, request())
    assert (first.record.created_at, first.record.updated_at) == (clock.now, clock.now)
    clock.advance(1)
    store.save(first.lease, step("list"))
    clock.advance(1)
    store.finish(first.lease, success())

    record = store.get_job(request().job)
    assert record is not None
    assert (record.created_at, record.updated_at) == (clock.now - 2, clock.now)
    assert record.expires_at == clock.now + RESULT_TTL
    assert [c.saved_at for c in store.get_checkpoints(request().job)] == [clock.now - 1]


# --- tokens ---------------------------------------------------------------------------------------


def test_tokens_grow_though_the_clock_goes_back(store, clock):
    first = take(store, request()).lease
    store.release(first)
    clock.advance(-3600)
    assert take(store, request(nonce="m")).lease.fence == first.fence + 1


def test_tokens_grow_though_the_file_is_made_anew(tmp_path, clock):
    store = SqliteStore(tmp_path / "store", clock=clock)
    first = take(store, request()).lease
    store.close()
    shutil.rmtree(tmp_path / "store")
    clock.advance(INSTANT)

    store = SqliteStore(tmp_path / "store", clock=clock)
    assert take(store, request()).lease.fence > first.fence
    store.close()


# --- what is bounded ------------------------------------------------------------------------------


def test_the_last_failed_submissions_are_remembered_and_no_more(store):
    submissions = [f"s{i}" for i in range(FAILED_KEPT + 1)]
    for submission in submissions:
        store.finish(take(store, request(submission=submission)).lease, failure())

    for submission in submissions[1:]:
        assert isinstance(store.claim(request(submission=submission)), Completed)
    assert isinstance(store.claim(request(submission=submissions[0])), Claimed)


def test_cleanup_deletes_locks_that_nobody_can_write_under(store, clock):
    """Version 0.1 left one behind when a job was claimed under another lock."""
    second = take(store, request(scope="two")).lease
    with store.database.write() as c:
        columns = "tenant, owner, nonce, job_id, task, key, expires_at"
        c.execute(
            f"INSERT INTO locks (lock_id, scope, token, {columns})"
            f" SELECT 'old', CAST('[\"one\"]' AS BLOB), token - 1, {columns} FROM locks"
        )
    assert [lock.scope for lock in store.list_locks("acme")] == [("one",), ("two",)]
    assert store.cleanup() == 0
    clock.advance(LEASE_TTL)

    assert store.cleanup(limit=0) == 0
    assert store.cleanup() == 1

    assert [lock.scope for lock in store.list_locks("acme")] == [("two",)]
    store.finish(second, success())


def test_a_page_costs_the_same_however_many_jobs_there_are(store, clock):
    def steps_of_a_page(**of) -> int:
        """Steps of SQLite's machine to read the second page of ten."""
        token = store.list_jobs("acme", limit=10, **of).next_token
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        with store.database.read() as c:
            connection = c  # memory: the one connection there is
        connection.set_progress_handler(count, 1)
        try:
            page = store.list_jobs("acme", limit=10, token=token, **of)
        finally:
            connection.set_progress_handler(None, 0)
        assert len(page.jobs) == 10
        return steps

    lists = [
        {},
        {"status": JobStatus.PENDING},
        {"run_id": "r7"},
        {"run_id": "r7", "status": JobStatus.PENDING},
    ]
    _insert_jobs(store, 0, 1_000)
    few = [steps_of_a_page(**of) for of in lists]
    _insert_jobs(store, 1_000, examples(100_000))
    many = [steps_of_a_page(**of) for of in lists]

    assert all(m <= f * 1.5 for f, m in zip(few, many, strict=True)), (few, many)


def _insert_jobs(store: SqliteStore, start: int, end: int) -> None:
    with store.database.write() as c:
        c.execute(
            "WITH RECURSIVE n(i) AS (SELECT ? UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?)"
            f" INSERT INTO jobs ({schema._FORMER})"
            " SELECT printf('%064x', i), CAST('acme' AS BLOB), x'', x'',"
            " CAST(printf('r%d', i % 50) AS BLOB), 'pending', 'f', x'', '', 1, 1, 0, i, NULL, '',"
            " 60, i, i, NULL, NULL FROM n",
            (start, end),
        )


def test_no_list_is_sorted_or_scanned(store):
    """Each list has an index that gives its order, whatever the number of jobs."""
    statements: list[str] = []
    with store.database.read() as c:
        connection = c
    take(store, request("a"))
    take(store, request("b"))
    for of in ({}, {"status": JobStatus.RUNNING}, {"run_id": "r"}):
        token = store.list_jobs("acme", limit=1, **of).next_token
        connection.set_trace_callback(statements.append)
        store.list_jobs("acme", limit=1, token=token, **of)
        store.list_locks("acme")
        connection.set_trace_callback(None)

    assert len(_plans(connection, statements)) == 6


def _plans(connection: sqlite3.Connection, statements: list[str]) -> list[str]:
    """How SQLite does each: by an index in the order asked for, or this fails."""
    plans = [
        row["detail"]
        for statement in statements
        if statement.startswith("SELECT") and "sqlite_master" not in statement  # what begins a read
        for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")
        if not row["detail"].startswith("CORRELATED")  # a label's own, of each job
    ]
    for plan in plans:
        in_order = plan.startswith(
            (
                "SEARCH",
                "SCAN jobs USING INDEX jobs_newest",
                "SCAN letters USING INDEX letters_newest",
            )
        )
        assert in_order, plans
        assert "INDEX" in plan or "PRIMARY KEY" in plan, plans
    return plans


def test_dead_letters_are_found_by_an_index_in_the_order_of_the_list(store):
    letters.fill(store.queues)
    statements: list[str] = []
    with store.database.read() as c:
        connection = c
    connection.set_trace_callback(statements.append)
    for wanted, _ in letters.WANTED.values():
        store.queues.find(wanted, limit=1, token=store.queues.find(wanted, limit=1).next_token)
    store.queues.expiring(1e10)
    connection.set_trace_callback(None)
    plans = _plans(connection, statements)
    assert len(plans) > 2 * len(letters.WANTED)
    assert not any("TEMP B-TREE" in plan for plan in plans)


@pytest.mark.parametrize("wanted", [of for of, _ in WANTED.values()], ids=WANTED)
def test_whatever_is_looked_for_has_an_index_in_the_order_of_the_list(store, wanted):
    """Without ANALYZE: SQLite is told which index to walk."""
    fill(StoreCase(store, lambda: store, lambda seconds: None))
    statements: list[str] = []
    with store.database.read() as c:
        connection = c
    for of in (wanted, replace(wanted, since=0.0, before=1e10)):
        token = store.find_jobs(of, limit=1).next_token
        connection.set_trace_callback(statements.append)
        store.find_jobs(of, limit=1, token=token)
        connection.set_trace_callback(None)
    assert len(_plans(connection, statements)) >= 2


# --- the file -------------------------------------------------------------------------------------


def test_the_result_backend_finds_its_tables_in_the_same_file(tmp_path):
    store = SqliteStore(tmp_path)
    with store.database.write() as c:
        c.execute("INSERT INTO results VALUES ('t', 'SUCCESS', x'00', 1.0, 2.0)")
        c.execute("INSERT INTO groups VALUES ('g', x'00', 2.0)")
        c.execute("INSERT INTO chord_parts VALUES ('g', 'p')")
        c.execute("INSERT INTO chords VALUES ('g', 1.0, 2.0)")
    assert store.database.path == tmp_path / "store.sqlite3"
    store.close()


def test_a_closed_store_opens_its_file_again(tmp_path, clock):
    store = SqliteStore(tmp_path, clock=clock)
    lease = take(store, request()).lease
    store.close()
    store.finish(lease, success())
    store.close()


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "store.sqlite3").write_bytes(b"This is a diary, and not a database." * 100)
    store = SqliteStore(tmp_path)
    with pytest.raises(StoreUnusable, match=r"not a SQLite database.*move the file away"):
        store.claim(request())
    store.close()
    assert (tmp_path / "store.sqlite3").read_bytes().startswith(b"This is a diary")


def test_a_database_of_something_else(tmp_path):
    c = sqlite3.connect(tmp_path / "store.sqlite3")
    c.execute("CREATE TABLE songs (title TEXT)")
    c.commit()
    c.close()
    store = SqliteStore(tmp_path)
    with pytest.raises(StoreUnusable, match="not a gwi_celery store"):
        store.claim(request())
    store.close()


def test_a_store_of_another_version(tmp_path):
    store = SqliteStore(tmp_path)
    with store.database.write() as c:
        c.execute("PRAGMA user_version=99")
    store.close()
    store = SqliteStore(tmp_path)
    with pytest.raises(StoreUnusable, match="schema version 99"):
        store.claim(request())
    store.close()


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_of_0_1_is_brought_up_in_place_and_its_jobs_go_on(tmp_path, version):
    """The file is one that 0.1 wrote, with jobs half done; its version 1 had no sizes of chords."""
    old = sqlite3.connect(tmp_path / "store.sqlite3")
    old.execute("PRAGMA auto_vacuum=2")
    old.executescript(older_schema("0.1", "store"))
    old.executescript(Path(__file__).with_name("store_0_1.sql").read_text())
    old.execute("INSERT INTO chord_parts VALUES ('g', 'p')")
    if version == 1:
        old.execute("DROP TABLE chord_sizes")
        old.execute("PRAGMA user_version=1")
    old.commit()
    old.close()
    clock = FakeClock(1_700_000_010.0)
    store = SqliteStore(tmp_path, clock=clock)

    def again(key: str, submission: str | None = None) -> ClaimRequest:
        return ClaimRequest(
            job=JobRef("acme", "review", key),
            lock=LockRef("acme", ("run", key)),
            run_id=key,
            fingerprint="f",
            submission=submission or f"call-{key}",
            owner="new:1 id",
            nonce="new",
            lease_ttl=30.0,
            result_ttl=3600.0,
            origin=Origin(task_id=f"call-{key}"),
        )

    with store.database.read() as c:
        assert c.execute("SELECT count(*) FROM chord_sizes").fetchone()[0] == 0
        assert c.execute("SELECT part FROM chord_parts").fetchone()["part"] == "p"
        assert c.execute("PRAGMA user_version").fetchone()[0] == schema.VERSION
        tables = "SELECT name, sql FROM sqlite_master ORDER BY name"
        migrated = [tuple(row) for row in c.execute(tables)]
    fresh = SqliteStore(tmp_path / "fresh")
    with fresh.database.read() as c:
        assert migrated == [tuple(row) for row in c.execute(tables)]
    fresh.close()

    found = store.find_jobs(JobFilter(tenant="acme")).jobs
    assert [record.status.value for record in found] == [
        *("cancelled", "succeeded", "failed", "pending", "running")
    ]
    assert store.find_jobs(JobFilter(task_id="call-killed")).jobs == found[-1:]
    assert isinstance(store.claim(again("succeeded")), Completed)
    assert isinstance(store.claim(again("cancelled \ud800")), Cancelled)
    assert isinstance(store.claim(again("killed")), Held)
    handed_back = take(store, again("handed back"))
    assert [c.name for c in store.load(handed_back.lease)] == ["list"]
    store.finish(handed_back.lease, success())
    failed = take(store, again("failed", "another"))
    assert failed.record.generation == 2
    assert [c.name for c in store.load(failed.lease)] == ["list"]

    clock.advance(60)
    killed = take(store, again("killed"))
    assert (killed.record.attempt, killed.record.crashes) == (2, 1)
    assert [c.blob for c in store.load(killed.lease)] == [b"[1,2]"]
    record = store.get_job(again("killed").job)
    assert [(past.number, past.end and past.end.how) for past in record.attempts] == [
        (1, "lost"),
        (2, None),
    ]
    store.close()


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    store = SqliteStore(tmp_path / "file")
    with pytest.raises(StoreUnusable, match="can't make the folder"):
        store.claim(request())


def test_a_store_that_stays_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(gwi_celery.sqlite, "BUSY_TIMEOUT", 0.05)
    store = SqliteStore(tmp_path)
    lease = take(store, request()).lease
    other = sqlite3.connect(tmp_path / "store.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    for write in (
        lambda: store.claim(request("other")),
        lambda: store.renew(lease),
        lambda: store.save(lease, step("list")),
        lambda: store.finish(lease, success()),
        store.cleanup,
    ):
        with pytest.raises(StoreUnavailable, match="locked by another process"):
            write()
    assert store.get_job(lease.job) is not None

    other.execute("ROLLBACK")
    other.close()
    store.save(lease, step("list"))
    store.finish(lease, success())
    store.close()


def test_a_full_disk_loses_nothing_and_the_same_requests_go_through_afterwards(tmp_path, clock):
    store = SqliteStore(tmp_path, clock=clock)
    lease = take(store, request("first")).lease
    store.save(lease, step("small"))

    (limited,) = store.database._open_connections  # of one thread: the limit is the connection's

    def limit_pages(pages: int) -> None:
        limited.execute(f"PRAGMA max_page_count={pages}")

    with store.database.read() as c:
        pages = c.execute("PRAGMA page_count").fetchone()[0]
    limit_pages(pages + 4)
    waiting = _fill(store)
    before = store.get_job(lease.job)
    assert store.get_job(waiting.job) is None

    for write in (
        lambda: store.claim(waiting),
        lambda: store.save(lease, step("large", b"x" * 100_000)),
        lambda: store.finish(lease, success(b"x" * 100_000)),
    ):
        with pytest.raises(StoreUnavailable, match="no space left"):
            write()
    assert store.get_job(waiting.job) is None
    assert store.get_lock(waiting.lock) is None
    assert store.get_job(lease.job) == before
    assert [c.name for c in store.load(lease)] == ["small"]

    assert store.database._open_connections == [limited]
    limit_pages(1_000_000)
    claimed = take(store, waiting)
    assert take(store, waiting).lease == claimed.lease
    assert (claimed.record.attempt, claimed.record.crashes) == (1, 0)
    store.save(lease, step("large", b"x" * 100_000))
    store.finish(lease, success(b"x" * 100_000))
    assert isinstance(store.claim(request("first", nonce="m")), Completed)
    store.close()


def _fill(store: SqliteStore) -> ClaimRequest:
    """Claim until there is no space; the claim that was refused."""
    for number in range(10_000):
        claim = replace(request(f"{number}"), run_id="r" * 2000, nonce=f"n{number}")
        try:
            take(store, claim)
        except StoreUnavailable:
            return claim
    raise AssertionError("the disk never got full")


# --- memory ---------------------------------------------------------------------------------------


def test_all_who_know_a_memory_stores_name_share_it():
    store = memory_store("shared")
    try:
        lease = take(store, request()).lease
        store.close()  # others may still be using it
        assert memory_store("shared") is store
        memory_store("shared").finish(lease, success())
        assert memory_store("other").get_job(lease.job) is None
    finally:
        forget_memory_store("shared")
        forget_memory_store("other")


def test_a_forgotten_memory_store_begins_empty_and_its_old_users_are_told():
    store = memory_store("shared")
    lease = take(store, request()).lease
    forget_memory_store("shared")
    forget_memory_store("shared")
    try:
        assert memory_store("shared").get_job(lease.job) is None
        with pytest.raises(StoreUnusable, match="was closed"):
            store.renew(lease)
    finally:
        forget_memory_store("shared")


def test_calls_are_barred_from_the_last_time_on_until_cleanup(
    store: SqliteStore, clock: FakeClock
) -> None:
    assert BARRED_TTL > 31 * 86_400, "for as long Pub/Sub may keep a message"
    store.bar_calls_of("acme", "parent", "first")
    clock.advance(BARRED_TTL - 1)
    store.bar_calls_of("acme", "parent", "again")
    clock.advance(BARRED_TTL - 1)
    assert store.cleanup() == 0
    child = replace(request(), origin=Origin("child", parent_id="parent"))
    answer = store.claim(child)
    assert isinstance(answer, Cancelled)
    assert answer.record.outcome == b"its caller was cancelled: again"
    clock.advance(1)
    assert store.cleanup() == 1
