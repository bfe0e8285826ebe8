"""What is Firestore's own: round trips counted, answers lost at each place, sizes, tenants, upkeep."""

from __future__ import annotations

import itertools
import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from gwi_celery.errors import (
    InvalidCall,
    LeaseLost,
    StepNameReused,
    StoreUnavailable,
    StoreUnusable,
)
from gwi_celery.firestore import documents
from gwi_celery.firestore.client import Client
from gwi_celery.firestore.documents import Micros, Query, Write
from gwi_celery.stores.base import (
    Claimed,
    Completed,
    Held,
    JobRef,
    JobStatus,
    LockRef,
    Origin,
    Progress,
    Replay,
)
from gwi_celery.stores.firestore import FirestoreStore
from gwi_celery.stores.firestore.blobs import INLINE
from tests.contract.stores import cursor, failure, step, success, value
from tests.firestore.claims import TTL, chunk_names, request, take
from tests.firestore_wire import (
    ABORTED,
    COMMIT,
    FAULTS,
    LATE,
    LOST_ANSWER,
    LOST_REQUEST,
    QUERY,
    READ,
    Wire,
    fresh_url,
)

pytestmark = [pytest.mark.emulator, pytest.mark.usefixtures("firestore_emulator")]


# --- round trips ----------------------------------------------------------------------------------


def test_a_fresh_job_costs_two_commits(wire: Wire, store: FirestoreStore) -> None:
    lease = take(store).lease
    store.finish(lease, success())
    assert wire.calls == [COMMIT, COMMIT]


def test_what_a_record_keeps_for_people_costs_no_round_trip_more(
    wire: Wire, store: FirestoreStore
) -> None:
    origin = Origin(task_id="t", labels={"customer": "7"}, envelope=b"e" * 2_000_000)
    lease = take(store, origin=origin).lease
    store.finish(lease, success())
    assert wire.calls == [COMMIT, COMMIT]

    take(store, key="holder")
    wire.calls.clear()
    waiter = {"key": "waiter", "scope": ("holder",), "origin": Origin(task_id="w")}
    assert isinstance(store.claim(request(**waiter)), Held)
    assert wire.calls == [COMMIT, READ, COMMIT]  # the first wait: one write
    wire.calls.clear()
    assert isinstance(store.claim(request(**waiter, redelivered=True)), Held)
    assert wire.calls == [READ]  # and no other

    lease = take(store, key="busy").lease
    wire.calls.clear()
    store.finish(store.progress(lease, Progress(1, 2)), success())
    assert wire.calls == [COMMIT, COMMIT]


@pytest.mark.parametrize("steps", [1, 5])
def test_a_step_costs_one_commit(wire: Wire, store: FirestoreStore, steps: int) -> None:
    lease = take(store).lease
    for number in range(steps):
        lease = store.save(lease, step(f"step {number}"))
    lease = store.save(lease, cursor("scan", b"1", 1))
    lease = store.save(lease, cursor("scan", b"2", 2))
    lease = store.save(lease, value("note", b"x", 1))
    lease = store.renew(lease)
    store.finish(lease, success())
    assert wire.calls == [COMMIT] * (steps + 6)


def test_an_old_lease_of_the_same_claim_costs_no_more(wire: Wire, store: FirestoreStore) -> None:
    """The job's thread and the renewer's each have a lease: they share what is known."""
    lease = take(store).lease
    store.save(lease, step("a"))
    store.renew(lease)
    store.save(lease, step("b"))
    store.finish(lease, success())
    assert wire.calls == [COMMIT] * 5


def test_a_finished_duplicate_costs_two_and_a_redelivered_one_a_single_read(
    wire: Wire, store: FirestoreStore
) -> None:
    store.finish(take(store).lease, success(b"42"))
    with wire.counting() as calls:
        answer = store.claim(request())
    assert isinstance(answer, Completed)
    assert answer.record.outcome == b"42"
    assert calls == [COMMIT, READ]
    with wire.counting() as calls:
        again = store.claim(request(redelivered=True))
    assert again == answer
    assert calls == [READ]


def test_contention_costs_two(wire: Wire, store: FirestoreStore) -> None:
    take(store)
    with wire.counting() as calls:
        assert isinstance(store.claim(request()), Held)
    assert calls == [COMMIT, READ]
    with wire.counting() as calls:
        assert isinstance(store.claim(request(redelivered=True)), Held)
    assert calls == [READ]


def test_a_takeover_costs_four_in_all(wire: Wire, store: FirestoreStore) -> None:
    take(store)
    wire.advance(TTL + 1)
    with wire.counting() as calls:
        claimed = take(store)
        assert not claimed.has_checkpoints
        store.finish(claimed.lease, success())
    assert calls == [COMMIT, READ, COMMIT, COMMIT]


def test_a_redelivered_takeover_costs_three_and_one_more_for_its_steps(
    wire: Wire, store: FirestoreStore
) -> None:
    store.save(take(store).lease, step("a"))
    wire.advance(TTL + 1)
    with wire.counting() as calls:
        claimed = take(store, redelivered=True)
        assert [c.name for c in store.load(claimed.lease)] == ["a"]
        lease = store.save(claimed.lease, step("b"))
        lease = store.save(lease, step("a"))  # as it was: only renews
        store.finish(lease, success())
    assert calls == [READ, COMMIT, QUERY, COMMIT, COMMIT, COMMIT]


def test_a_retry_that_says_so_costs_a_read_more_than_a_fresh_claim(
    wire: Wire, store: FirestoreStore
) -> None:
    store.release(take(store).lease)
    with wire.counting() as calls:
        assert take(store, redelivered=True).record.attempt == 2
    assert calls == [READ, COMMIT]


def test_a_page_costs_the_same_however_many_there_are(wire: Wire, store: FirestoreStore) -> None:
    def cost() -> tuple[list[str], int]:
        with wire.counting() as calls:
            page = store.list_jobs("acme", status=JobStatus.RUNNING, limit=5)
        return calls, len(page.jobs)

    for number in range(6):
        take(store, key=f"k{number}")
    few = cost()
    for number in range(6, 60):
        take(store, key=f"k{number}")
    assert cost() == few == ([QUERY], 5)
    limits = [r.structured_query.limit.value for r in wire.requests if hasattr(r, "parent")]
    assert set(limits) == {6}


def test_a_page_goes_over_what_has_expired_by_the_hundred(
    wire: Wire, store: FirestoreStore
) -> None:
    for number in range(3):
        take(store, key=f"live {number}")
    for number in range(40):
        store.finish(take(store, key=f"k{number}", result_ttl=1.0).lease, success())
    wire.advance(2)
    with wire.counting() as calls:
        page = store.list_jobs("acme", limit=2)
    assert [record.job.key for record in page.jobs] == ["live 2", "live 1"]
    assert calls == [QUERY, QUERY]
    last = store.list_jobs("acme", limit=2, token=page.next_token)
    assert ([r.job.key for r in last.jobs], last.next_token) == (["live 0"], None)


def test_a_value_costs_three_and_its_holder_two_more_once(
    wire: Wire, store: FirestoreStore
) -> None:
    lease = take(store).lease
    with wire.counting() as calls:
        store.put_value(lease.job, "note", b"1", expected_version=0)
    assert calls == [READ, READ, COMMIT]
    with wire.counting() as calls:
        lease = store.save(lease, step("a"))
        store.save(lease, step("b"))
    assert calls == [COMMIT, READ, COMMIT, COMMIT]


# --- what becomes of a call, at each place ----------------------------------------------------------


def job_of_three_steps(store: FirestoreStore) -> list[Any]:
    answer = store.claim(request("j", scope=("j",), nonce="one"))
    assert isinstance(answer, Claimed)
    lease = answer.lease
    for name in ("a", "b"):
        lease = store.save(lease, step(name))
    lease = store.renew(lease)
    lease = store.save(lease, cursor("c", b"1", 1))
    lease = store.save(lease, cursor("c", b"2", 2))
    assert store.put_value(lease.job, "v", b"1", expected_version=0).version == 1
    assert store.put_value(lease.job, "v", b"2", expected_version=1).version == 2
    store.finish(lease, success(b"end"))
    record = store.get_job(request("j").job)
    assert record is not None
    return [
        (record.status, record.outcome, record.generation, record.attempt, record.crashes),
        record.fence == lease.fence,
        [(c.name, c.blob, c.version) for c in store.get_checkpoints(request("j").job)],
        store.get_lock(LockRef("acme", ("j",))),
    ]


@pytest.mark.parametrize("fault", FAULTS)
def test_any_one_call_may_go_wrong_and_nobody_notices(fault: str) -> None:
    plain = Wire()
    expected = job_of_three_steps(plain.store())
    for place in range(len(plain.calls)):
        wire = Wire()
        wire.faults = iter([None] * place + [fault])
        assert job_of_three_steps(wire.store()) == expected, f"call {place}"
        wire.close()
    plain.close()


def test_a_finish_without_an_answer_is_known_though_the_key_was_claimed_again(
    wire: Wire, store: FirestoreStore
) -> None:
    """The trap: finish applied, answer lost, key claimed again before the reading."""
    lease = take(store, submission="s1").lease
    successor: list[Claimed] = []

    def between() -> Iterator[str | None]:
        yield LOST_ANSWER
        # Before the read that looks for it: another worker, with a fresh submission.
        other = FirestoreStore(wire.url)
        answer = other.claim(request(submission="s2"))
        assert isinstance(answer, Claimed)
        successor.append(answer)
        other.close()
        yield None

    wire.faults = between()
    store.finish(lease, failure())

    assert successor[0].record.generation == 2
    store.finish(successor[0].lease, success())


def test_a_claim_that_nobody_answers_is_a_temporary_error(
    wire: Wire, store: FirestoreStore
) -> None:
    wire.faults = itertools.repeat(LOST_REQUEST)
    with pytest.raises(StoreUnavailable):
        store.claim(request())
    wire.faults = iter(())
    assert isinstance(store.claim(request()), Claimed)


def test_a_commit_that_is_always_aborted_is_a_temporary_error(
    wire: Wire, store: FirestoreStore
) -> None:
    lease = take(store).lease
    wire.faults = itertools.repeat(ABORTED)
    with pytest.raises(StoreUnavailable):
        store.renew(lease)


def test_a_claim_that_arrives_late_takes_nothing(wire: Wire, store: FirestoreStore) -> None:
    """Its sender gave up; another has the job; then it arrives."""
    late = request()
    wire.keeps_late = True
    wire.faults = iter([LATE, *[LOST_REQUEST] * 20])
    with pytest.raises(StoreUnavailable):
        store.claim(late)
    wire.faults = iter(())
    claimed = take(store)
    wire.arrive()
    store.finish(store.renew(claimed.lease), success())
    wire.arrive()
    assert isinstance(store.claim(request()), Completed)


def test_a_finish_that_arrives_late_changes_nothing(wire: Wire, store: FirestoreStore) -> None:
    lease = take(store).lease
    wire.keeps_late = True
    wire.faults = iter([LATE, *[LOST_REQUEST] * 20])
    with pytest.raises(StoreUnavailable):
        store.finish(lease, success(b"late"))
    wire.faults = iter(())
    wire.advance(TTL + 1)
    claimed = take(store)
    wire.arrive()
    store.finish(claimed.lease, success(b"mine"))
    wire.arrive()
    record = store.get_job(claimed.lease.job)
    assert record is not None
    assert record.outcome == b"mine"


def test_a_value_that_arrives_late_changes_nothing(wire: Wire, store: FirestoreStore) -> None:
    lease = take(store).lease
    other = FirestoreStore(wire.url)
    wire.keeps_late = True
    wire.faults = iter([None, None, LATE, *[LOST_REQUEST] * 20])
    with pytest.raises(StoreUnavailable):
        store.put_value(lease.job, "note", b"late", expected_version=0)
    other.put_value(lease.job, "note", b"mine", expected_version=0)
    wire.arrive()
    assert [c.blob for c in other.get_checkpoints(lease.job)] == [b"mine"]
    other.close()


def test_a_value_whose_job_ends_while_it_is_written_is_refused(
    wire: Wire, store: FirestoreStore
) -> None:
    lease = take(store).lease

    def between() -> Iterator[str | None]:
        yield from (None, None)
        # Before the commit: the holder, in another process, finishes.
        other = FirestoreStore(wire.url)
        other.finish(replace(lease, version=None), success())
        other.close()
        yield None

    wire.faults = between()
    with pytest.raises(InvalidCall, match="succeeded"):
        store.put_value(lease.job, "note", b"1", expected_version=0)
    assert store.get_checkpoints(lease.job) == []


def test_a_value_put_while_the_checkpoints_are_loaded_is_no_loss(
    wire: Wire, store: FirestoreStore
) -> None:
    lease = store.save(take(store).lease, step("a"))
    other = FirestoreStore(wire.url)

    def between() -> Iterator[str | None]:
        for number in range(2):  # before the first query, and before the look that follows it
            other.put_value(lease.job, f"note {number}", b"1", expected_version=0)
            yield None
        other.put_value(lease.job, "note 2", b"1", expected_version=0)
        yield None

    wire.faults = between()
    assert [c.name for c in store.load(lease)] == ["a", "note 0", "note 1", "note 2"]
    store.finish(lease, success())
    other.close()


def test_a_finish_is_known_again_in_the_records_next_life(
    wire: Wire, store: FirestoreStore
) -> None:
    lease = take(store).lease
    store.finish(lease, success())
    wire.advance(TTL * 101)
    take(store)
    store.finish(lease, success())
    store.cancel(lease.job, "no")
    wire.advance(TTL * 101)
    assert store.cancel(lease.job, "no", in_advance=True)
    store.finish(lease, success())


@pytest.mark.parametrize("fault", [LOST_ANSWER, LOST_REQUEST, LATE])
def test_operators_answers_are_true_whatever_becomes_of_the_call(
    wire: Wire, store: FirestoreStore, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gwi_celery.audit")
    claimed = take(store)
    wire.faults = iter([None, fault])
    assert store.force_release(claimed.lease.lock)
    assert not store.force_release(claimed.lease.lock)
    wire.faults = iter([None, None, fault])
    assert store.cancel(claimed.lease.job, "no")
    assert not store.cancel(claimed.lease.job, "no")
    wire.faults = iter([None, fault])
    unknown = JobRef("acme", "task", "unknown")
    assert store.cancel(unknown, "no", in_advance=True)
    assert not store.cancel(unknown, "no", in_advance=True)
    logged = [record.getMessage().partition("action ")[2] for record in caplog.records]
    done = ["force release", "cancel", "cancel"]
    assert [json.loads(line)["what"] for line in logged] == done
    assert [action.what for action in store.list_actions()] == done[::-1]


# --- two holders of one lease, many threads ---------------------------------------------------------


def test_renewals_and_saves_of_many_threads_do_not_get_in_each_others_way(
    wire: Wire, store: FirestoreStore
) -> None:
    lease = take(store).lease
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for n in range(5):
                store.save(lease, step(f"{number}-{n}"))
                store.renew(lease)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert len(store.load(lease)) == 20
    assert wire.calls.count(READ) == 0, "nobody was refused"


def test_of_many_that_take_over_one_wins(wire: Wire, store: FirestoreStore) -> None:
    take(store)
    wire.advance(TTL + 1)
    ready = threading.Barrier(6)

    def claim(number: int) -> object:
        ready.wait()
        return store.claim(request(owner=f"thread {number}", redelivered=number % 2 == 0))

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(claim, range(6)))

    winners = [answer for answer in answers if isinstance(answer, Claimed)]
    assert len(winners) == 1
    assert sum(isinstance(answer, Held) for answer in answers) == 5
    assert (winners[0].record.attempt, winners[0].record.crashes) == (2, 1)


def test_a_lease_of_another_handle_is_looked_at_once(wire: Wire, store: FirestoreStore) -> None:
    lease = take(store).lease
    store.save(lease, cursor("c", b"1", 1))
    other = wire.store()
    bare = replace(lease, version=None)
    with wire.counting() as calls:
        bare = other.save(bare, cursor("c", b"2", 2))
    assert calls[-1] == COMMIT
    with wire.counting() as calls:
        other.save(bare, step("x"))
    assert calls == [COMMIT]
    # And the first handle finds its versions outdated, but the lease its own still.
    with wire.counting() as calls:
        store.renew(lease)
    assert calls == [COMMIT, READ, COMMIT]
    assert [(c.name, c.version) for c in store.load(lease)] == [("c", 2), ("x", 1)]


def test_the_holder_of_another_handle_is_told_what_was_recorded_there(
    wire: Wire, store: FirestoreStore
) -> None:
    lease = take(store).lease
    other = wire.store()
    other.save(replace(lease, version=None), step("a", b"one"))
    with pytest.raises(StepNameReused):
        store.save(lease, step("a", b"two"))
    store.save(lease, step("a", b"one"))
    assert [(c.name, c.ordinal) for c in store.load(store.save(lease, step("b")))] == [
        ("a", 1),
        ("b", 2),
    ]


# --- sizes ------------------------------------------------------------------------------------------


def blob_of(size: int) -> bytes:
    return bytes(range(256)) * (size // 256) + b"x" * (size % 256)


@pytest.mark.parametrize("size", [INLINE, INLINE + 1, 3 * INLINE, 3 * INLINE + 1, 10_000_000])
def test_blobs_of_any_size_come_back_whole(wire: Wire, store: FirestoreStore, size: int) -> None:
    lease = take(store).lease
    with wire.counting() as calls:
        lease = store.save(lease, step("large", blob_of(size)))
        store.finish(lease, success(blob_of(size)))
    if size <= 3 * INLINE:
        assert calls == [COMMIT, COMMIT], "chunks go with the commit that makes them visible"
    for sent in wire.requests:
        assert sent.ByteSize() < 3_500_000
    (saved,) = store.get_checkpoints(lease.job)
    assert saved.blob == blob_of(size)
    answer = store.claim(request())
    assert isinstance(answer, Completed)
    assert answer.record.outcome == blob_of(size)
    (listed,) = store.list_jobs("acme").jobs
    assert listed == answer.record


def test_long_names_leave_a_large_blob_less_room(store: FirestoreStore) -> None:
    """A document of 1 MiB has a key of 200 KB, and 890 KB of outcome are beside it."""
    key, size = "k" * 200_000, 890_000
    lease = take(store, key=key, scope=("k",)).lease
    lease = store.save(lease, step("s" * 200_000, blob_of(size)))
    store.finish(lease, success(blob_of(size)))
    answer = store.claim(request(key=key, scope=("k",)))
    assert isinstance(answer, Completed)
    assert answer.record.outcome == blob_of(size)
    (saved,) = store.get_checkpoints(lease.job)
    assert saved.blob == blob_of(size)


def test_chunks_of_what_was_replaced_are_deleted(wire: Wire, store: FirestoreStore) -> None:
    lease = take(store, submission="s1").lease
    lease = store.save(lease, cursor("c", blob_of(2 * INLINE), 1))
    lease = store.save(lease, cursor("c", blob_of(3 * INLINE), 2))
    assert len(chunk_names(wire)) == 3
    lease = store.save(lease, cursor("c", b"small", 3))
    assert chunk_names(wire) == []
    store.finish(lease, failure(blob_of(2 * INLINE)))
    assert len(chunk_names(wire)) == 2
    take(store, submission="s2")
    assert chunk_names(wire) == []


def test_a_stale_holders_large_step_stays_invisible(wire: Wire, store: FirestoreStore) -> None:
    lease = take(store).lease
    wire.advance(TTL + 1)
    claimed = take(store)
    with pytest.raises(LeaseLost):
        store.save(lease, step("large", blob_of(10_000_000)))
    assert store.load(claimed.lease) == []
    assert not store.get_checkpoints(lease.job)


def test_a_chunk_that_is_missing_or_changed_is_an_error_and_no_cut_value(
    wire: Wire, store: FirestoreStore
) -> None:
    lease = store.save(take(store).lease, step("large", blob_of(2 * INLINE)))
    client = Client(wire.url)
    name = chunk_names(wire)[0]
    client.commit([Write(name, {"data": {"blob": b"other"}})])
    (outline,) = store.load(lease)
    assert outline.deferred
    with pytest.raises(StoreUnusable, match="checksum"):
        store.fetch(lease, "large")
    client.commit([documents.delete(name)])
    with pytest.raises(StoreUnusable, match="gone"):
        store.fetch(lease, "large")
    client.close()


def test_a_checkpoint_that_is_gone_is_an_error_and_not_run_again(
    wire: Wire, store: FirestoreStore
) -> None:
    lease = take(store).lease
    for name in ("a", "b"):
        lease = store.save(lease, step(name))
    client = Client(wire.url)
    found = client.query(Query("", "gwi_steps", descendants=True, mask=[]))
    client.commit([documents.delete(next(iter(found.documents)))])
    client.close()
    with pytest.raises(StoreUnusable, match=r"1 of 2 checkpoints .* are gone.*Replay"):
        store.load(lease)
    # What the error advises helps: a replay from the start doesn't look at what is left.
    store.finish(lease, failure())
    claimed = take(store, submission="s2", replay=Replay(generation=2))
    assert not claimed.has_checkpoints
    assert store.load(store.save(claimed.lease, step("a"))) != []


def test_what_a_resumed_attempt_reads(wire: Wire, store: FirestoreStore) -> None:
    lease = take(store).lease
    for n in range(5):
        lease = store.save(lease, step(f"s{n}", blob_of(1000)))
    wire.advance(TTL + 1)
    claimed = take(store, redelivered=True)
    with wire.counting() as calls:
        assert not any(c.deferred for c in store.load(claimed.lease))
    assert calls == [QUERY], "few that are small come with one query"
    lease = claimed.lease
    for n in range(5, 10):
        lease = store.save(lease, step(f"s{n}", blob_of(INLINE)))
    wire.advance(TTL + 1)
    lease = take(store, redelivered=True).lease
    with wire.counting() as calls:
        assert all(c.deferred for c in store.load(lease))
    assert calls == [QUERY]
    with wire.counting() as calls:
        fetched = store.fetch(lease, "s7")
        assert fetched is not None
        assert fetched.blob == blob_of(INLINE)
        store.save(lease, step("new"))
    assert calls == [READ, COMMIT]


@pytest.mark.parametrize("steps", [3, 6])
def test_a_record_of_version_0_1_which_did_not_count_bytes_is_resumed(
    wire: Wire, store: FirestoreStore, steps: int
) -> None:
    lease = take(store).lease
    for n in range(steps):
        lease = store.save(lease, step(f"s{n}", b"%d" % n))
    client = Client(wire.url)
    (job,) = client.query(Query("", "gwi_jobs", descendants=True, mask=[])).documents
    saved = list(client.query(Query("", "gwi_steps", descendants=True, mask=[])).documents)
    client.commit(
        [Write(job, {"data": {}}, mask=["data.bytes"])]
        + [Write(name, {"data": {}}, mask=["data.size"]) for name in saved]
    )
    client.close()
    wire.advance(TTL + 1)
    other = wire.store()
    lease = take(other, redelivered=True).lease
    assert [c.name for c in other.load(lease)] == [f"s{n}" for n in range(steps)]
    for n in range(steps):
        fetched = other.fetch(lease, f"s{n}")
        assert fetched is not None
        assert fetched.blob == b"%d" % n
    lease = other.save(other.save(lease, step("more")), step("s0", b"0"))
    assert len(other.get_checkpoints(lease.job)) == steps + 1
    other.finish(lease, success())
    other.close()


@pytest.mark.parametrize(
    "write",
    [
        lambda store, lease: store.renew(lease),
        lambda store, lease: store.finish(lease, success()),
        lambda store, lease: store.save(lease, step("s")),
    ],
    ids=["renew", "finish", "save"],
)
def test_the_record_alone_refuses_a_lease_whose_lock_is_still_its_own(
    wire: Wire, store: FirestoreStore, write: Any
) -> None:
    """Claims free the lock that a job leaves; a write must not depend on that."""
    lease = take(store).lease
    client = Client(wire.url)
    (job,) = client.query(Query("", "gwi_jobs", descendants=True, mask=[])).documents
    client.commit([Write(job, {"data": {"fence": lease.fence + 1}}, mask=["data.fence"])])
    client.close()
    with pytest.raises(LeaseLost):
        write(store, lease)


def test_a_job_under_another_lock_costs_one_read_more(wire: Wire, store: FirestoreStore) -> None:
    take(store, scope=("one",))
    with wire.counting() as calls:
        assert isinstance(store.claim(request(scope=("two",))), Held)
    assert calls == [COMMIT, READ, READ]
    wire.advance(TTL + 1)
    with wire.counting() as calls:
        take(store, scope=("two",))
    assert calls == [COMMIT, READ, READ, COMMIT]


@pytest.mark.parametrize("fault", [LOST_ANSWER, LOST_REQUEST, LATE])
def test_a_takeover_from_another_lock_converges(
    wire: Wire, store: FirestoreStore, fault: str
) -> None:
    lost = take(store, scope=("one",)).lease
    wire.advance(TTL + 1)
    wire.faults = iter([None, None, None, fault])
    claimed = take(store, scope=("two",))
    assert (claimed.record.attempt, claimed.record.crashes) == (2, 1)
    assert store.get_lock(lost.lock) is None
    store.finish(claimed.lease, success())


def test_a_holder_that_renews_while_another_takes_over_from_its_lock_keeps_the_job(
    wire: Wire, store: FirestoreStore
) -> None:
    lease = take(store, scope=("one",)).lease
    wire.advance(TTL + 1)
    other = wire.store()
    leases = [lease]

    def between() -> Iterator[str | None]:
        for _ in range(3):
            yield None  # the refused commit, the record, its own lock
        wire.faults = iter(())
        leases.append(store.renew(lease))
        yield None

    wire.faults = between()
    assert isinstance(other.claim(request(scope=("two",))), Held)
    store.finish(leases[-1], success())
    other.close()


def test_old_checkpoints_are_kept_from_the_ttl_policy_by_their_use(
    wire: Wire, store: FirestoreStore
) -> None:
    lease = store.save(take(store).lease, step("a", blob_of(2 * INLINE)))
    lease = store.save(lease, cursor("c", b"1", 1))
    client = Client(wire.url)
    early = client.query(Query("", "gwi_steps", descendants=True, mask=["gc_at"])).documents
    wire.advance(60 * 86_400)
    claimed = take(store, redelivered=True)
    loaded = store.load(claimed.lease)
    assert [c.name for c in loaded] == ["a", "c"]
    late = client.query(Query("", "gwi_steps", descendants=True, mask=["gc_at"])).documents
    chunks = client.query(Query("", "gwi_chunks", descendants=True, mask=["gc_at"])).documents
    for name, document in late.items():
        assert document.fields["gc_at"] > early[name].fields["gc_at"] + 59 * 86_400 * 1_000_000
    assert {d.fields["gc_at"] for d in chunks.values()} == {
        d.fields["gc_at"] for d in late.values()
    }
    with wire.counting() as calls:
        store.save(store.save(claimed.lease, cursor("c", b"2", 2)), step("d"))
    assert calls == [COMMIT, COMMIT]
    with wire.counting() as calls:
        again = store.load(claimed.lease)
    assert again[0].saved_at == loaded[0].saved_at
    assert COMMIT not in calls
    client.close()


# --- tenants ----------------------------------------------------------------------------------------


def test_a_database_for_each_tenant() -> None:
    wire = Wire(fresh_url(database="tenant-{tenant}"))
    store = wire.store()
    for tenant in ("acme", "other"):
        lease = take(store, tenant=tenant).lease
        store.finish(store.save(lease, step("a")), success(tenant.encode()))
    assert {r.database.rpartition("/")[2] for r in wire.requests} == {
        "tenant-acme",
        "tenant-other",
    }
    (listed,) = store.list_jobs("acme").jobs
    assert listed.outcome == b"acme"
    with pytest.raises(InvalidCall, match="tenant_hash"):
        take(store, tenant="Not/Legal")
    assert store.cleanup() == 0
    wire.close()
    store.close()


def test_two_prefixes_of_one_database_are_two_stores(wire: Wire) -> None:
    one, two = wire.store(), FirestoreStore(replace(wire.url, prefix="other"), intercept=wire)
    lease = take(one).lease
    one.finish(lease, success())
    take(two)
    wire.advance(TTL * 200)
    assert two.list_jobs("acme").jobs[0].status is JobStatus.RUNNING
    assert two.cleanup() == 0
    assert one.cleanup() == 1
    one.close()
    two.close()


# --- upkeep -----------------------------------------------------------------------------------------


def all_names(wire: Wire) -> list[str]:
    client = Client(wire.url)
    names: list[str] = []
    for collection in ("gwi_jobs", "gwi_locks", "gwi_steps", "gwi_chunks"):
        names += client.query(Query("", collection, descendants=True, mask=[])).documents
    client.close()
    return names


def test_cleanup_leaves_nothing_of_what_has_expired(wire: Wire, store: FirestoreStore) -> None:
    lease = store.save(take(store).lease, step("a", blob_of(2 * INLINE)))
    store.finish(lease, success(blob_of(2 * INLINE)))
    wire.advance(TTL * 101)
    wire.requests.clear()
    assert store.cleanup() == 1
    assert all_names(wire) == []
    queries = [sent.structured_query for sent in wire.requests if hasattr(sent, "structured_query")]
    masks = [
        {field.field_path for field in query.select.fields}
        for query in queries
        if query.from_[0].collection_id == "gwi_jobs"
    ]
    assert masks
    for mask in masks:
        assert "data.outcome.sha" in mask
        assert not {"data", "data.outcome", "data.outcome.blob"} & mask, "outcomes may be large"


def test_a_job_that_begins_anew_leaves_nothing_of_its_former_life(
    wire: Wire, store: FirestoreStore
) -> None:
    lease = store.save(take(store).lease, step("a", blob_of(2 * INLINE)))
    store.finish(lease, success(blob_of(2 * INLINE)))
    wire.advance(TTL * 101)
    take(store)
    assert len(all_names(wire)) == 2


@pytest.mark.parametrize("from_step", [None, "a"])
def test_a_replay_from_the_start_leaves_nothing_either(
    wire: Wire, store: FirestoreStore, from_step: str | None
) -> None:
    lease = store.save(take(store).lease, step("a", blob_of(2 * INLINE)))
    store.finish(store.save(lease, step("b")), success(blob_of(2 * INLINE)))
    claimed = take(store, replay=Replay(2, from_step))
    assert not claimed.has_checkpoints
    assert len(all_names(wire)) == 2


def test_what_a_wrong_clock_says_is_collectable_is_kept(wire: Wire, store: FirestoreStore) -> None:
    """``gc_at`` comes from workers: it finds what may have expired, and decides nothing."""
    store.finish(take(store).lease, success())
    client = Client(wire.url)
    (name,) = client.query(Query("", "gwi_jobs", descendants=True, mask=[])).documents
    version = client.read([name]).documents[name].update_time
    client.commit([documents.change(name, {"gc_at": Micros(1)}, version, mask=["gc_at"])])
    client.close()
    assert store.cleanup() == 0
    assert isinstance(store.claim(request()), Completed)


def test_an_expired_lock_that_nobody_can_use_is_cleaned_up(
    wire: Wire, store: FirestoreStore
) -> None:
    """Version 0.1 left one behind when a job was claimed under another lock."""
    lost = take(store, scope=("one",)).lease
    client = Client(wire.url)
    (name,) = client.query(Query("", "gwi_locks", descendants=True, mask=[])).documents
    fields = client.read([name]).documents[name].fields
    wire.advance(TTL + 1)
    take(store, scope=("two",))
    client.commit([documents.create(name, fields)])
    client.close()
    wire.advance(TTL + 1)
    assert store.cleanup() == 1
    assert store.get_lock(lost.lock) is None
    assert store.get_lock(LockRef("acme", ("two",))) is not None


def test_a_lock_that_changed_since_it_was_looked_at_is_not_cleaned_up(
    wire: Wire, store: FirestoreStore
) -> None:
    """The holder renews between the cleanup's reading and its deletion."""
    store.finish(take(store, key="done").lease, success())
    wire.advance(TTL * 101)
    other = wire.store()

    def between() -> Iterator[str | None]:
        yield None  # the time
        yield None  # the candidates
        wire.faults = iter(())
        assert isinstance(other.claim(request("done")), Claimed)
        yield None

    wire.faults = between()
    assert store.cleanup() == 0
    assert store.get_job(request("done").job) is not None
    other.close()


# --- answers ----------------------------------------------------------------------------------------


def test_a_lost_lease_says_who_has_the_lock(wire: Wire, store: FirestoreStore) -> None:
    lease = take(store).lease
    wire.advance(TTL + 1)
    claimed = take(store, owner="host:2")
    with pytest.raises(LeaseLost, match=f"host:2 took over with fence {claimed.lease.fence}"):
        store.renew(lease)


def test_the_token_is_the_claims_commit_time(wire: Wire, store: FirestoreStore) -> None:
    claimed = take(store)
    client = Client(wire.url)
    (document,) = client.query(Query("", "gwi_locks", descendants=True)).documents.values()
    assert claimed.lease.fence == document.update_time == claimed.record.fence
    store.save(claimed.lease, step("a"))
    (record,) = client.query(Query("", "gwi_jobs", descendants=True)).documents.values()
    (lock,) = client.query(Query("", "gwi_locks", descendants=True)).documents.values()
    assert record.fields["data"]["fence"] == lock.fields["data"]["fence"] == claimed.lease.fence
    client.close()
