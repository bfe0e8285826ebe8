"""Bugs of a worker service of the same design, one test each: none of them may come back.

What needs a real worker is in tests/acceptance: the time limit that ends its process before the lock
is freed, the contended job whose message is kept, and the failing message that ends in the dead letter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol
from uuid import uuid4

import pytest

from gwi_celery.errors import LeaseLost, VersionConflict
from gwi_celery.ids import fingerprint
from gwi_celery.stores.base import (
    Checkpoint,
    CheckpointKind,
    Claimed,
    ClaimRequest,
    Completed,
    Held,
    JobRef,
    JobStatus,
    LockRef,
    Mismatch,
    Outcome,
    Store,
)
from gwi_celery.stores.sqlite import SqliteStore
from tests.clocks import FakeClock
from tests.firestore_wire import Wire

DONE = Outcome(JobStatus.SUCCEEDED, b"done")


class Clock(Protocol):
    def advance(self, seconds: float) -> None: ...


@pytest.fixture(params=["sqlite", pytest.param("firestore", marks=pytest.mark.emulator)])
def opened(request: pytest.FixtureRequest) -> Iterator[tuple[Store, Clock]]:
    """A store, and what moves its clock."""
    if request.param == "sqlite":
        clock = FakeClock()
        yield SqliteStore(None, clock=clock), clock
        return
    request.getfixturevalue("firestore_emulator")
    wire = Wire()
    store = wire.store()
    yield store, wire
    store.close()
    wire.close()


@pytest.fixture
def clock(opened: tuple[Store, Clock]) -> Clock:
    return opened[1]


@pytest.fixture
def store(opened: tuple[Store, Clock]) -> Store:
    return opened[0]


def request(
    key: str = "k", tenant: str = "acme", run: str = "r", payload: Any = 1, **options: Any
) -> ClaimRequest:
    return ClaimRequest(
        job=JobRef(tenant, "task", key),
        lock=LockRef(tenant, ("run", run)),
        run_id=run,
        fingerprint=fingerprint(payload),
        submission=options.get("submission", uuid4().hex),
        owner="w",
        nonce=uuid4().hex,
        lease_ttl=60,
        result_ttl=3600,
    )


def take(store: Store, **options: Any) -> Claimed:
    answer = store.claim(request(**options))
    assert isinstance(answer, Claimed), answer
    return answer


def test_fencing_tokens_restarted_when_a_release_deleted_the_lock(
    store: Store, clock: Clock
) -> None:
    fences = []
    for n in range(5):
        claimed = take(store, key=f"k{n}")
        fences.append(claimed.lease.fence)
        if n % 2:
            store.release(claimed.lease)
        else:
            store.finish(claimed.lease, DONE)
        clock.advance(10_000)
        store.cleanup()
    assert fences == sorted(set(fences))


def test_the_token_was_never_checked(store: Store, clock: Clock) -> None:
    old = take(store).lease
    clock.advance(61)
    new = take(store).lease
    for write in (
        lambda: store.renew(old),
        lambda: store.save(old, Checkpoint("s", CheckpointKind.STEP, b"x")),
        lambda: store.finish(old, DONE),
    ):
        with pytest.raises(LeaseLost):
            write()
    store.release(old)
    assert isinstance(store.claim(request()), Held)
    assert store.load(new) == []


def test_the_lock_did_not_know_its_tenant(store: Store) -> None:
    take(store, tenant="one", run="same")
    take(store, tenant="two", run="same")


@pytest.mark.parametrize(("one", "other"), [("a/b", "a_b"), ("a.b", "a-b"), ("a b", "a/b")])
def test_ids_cleaned_of_odd_characters_collided(store: Store, one: str, other: str) -> None:
    take(store, key=one, run=one)
    take(store, key=other, run=other)


def test_cleanup_deleted_the_successors_live_lock(store: Store, clock: Clock) -> None:
    take(store)
    clock.advance(61)
    successor = take(store)
    store.cleanup()
    assert isinstance(store.claim(request()), Held)
    store.finish(successor.lease, DONE)


def test_a_job_that_finished_while_another_waited_for_its_lock_ran_again(
    store: Store,
) -> None:
    claimed = take(store)
    waiting = request()
    assert isinstance(store.claim(waiting), Held)
    store.finish(claimed.lease, DONE)
    assert isinstance(store.claim(waiting), Completed)


def test_anyone_could_complete_or_fail_a_job(store: Store, clock: Clock) -> None:
    old = take(store).lease
    clock.advance(61)
    new = take(store).lease
    with pytest.raises(LeaseLost):
        store.finish(old, Outcome(JobStatus.FAILED, b"late"))
    store.finish(new, DONE)
    record = store.get_job(JobRef("acme", "task", "k"))
    assert record is not None
    assert record.outcome == b"done"


def test_a_failure_was_cached_so_that_trying_again_did_nothing(store: Store) -> None:
    store.finish(take(store).lease, Outcome(JobStatus.FAILED, b"no"))
    again = take(store)
    assert again.record.generation == 2


def test_the_payloads_hash_dropped_nested_keys(store: Store) -> None:
    store.finish(take(store, payload={"pr": {"id": 1}}).lease, DONE)
    assert isinstance(store.claim(request(payload={"pr": {"id": 2}})), Mismatch)
    assert isinstance(store.claim(request(payload={"pr": {"id": 1}})), Completed)


def test_a_lock_was_never_renewed(store: Store, clock: Clock) -> None:
    lease = take(store).lease
    for _ in range(10):
        clock.advance(50)
        lease = store.renew(lease)
    assert isinstance(store.claim(request()), Held)
    store.finish(lease, DONE)


def test_the_last_writer_of_a_checkpoint_won(store: Store, clock: Clock) -> None:
    old = take(store).lease
    store.save(old, Checkpoint("c", CheckpointKind.CURSOR, b"1", 1))
    clock.advance(61)
    new = take(store).lease
    store.save(new, Checkpoint("c", CheckpointKind.CURSOR, b"9", 9))
    with pytest.raises(LeaseLost):
        store.save(old, Checkpoint("c", CheckpointKind.CURSOR, b"2", 10))
    assert [c.blob for c in store.load(new)] == [b"9"]
    # Likewise without any lease: both have read version 1, and one of them is too late.
    store.put_value(new.job, "v", b"1", expected_version=0)
    store.put_value(new.job, "v", b"one's", expected_version=1)
    with pytest.raises(VersionConflict):
        store.put_value(new.job, "v", b"the other's", expected_version=1)
    assert [c.blob for c in store.load(new)] == [b"9", b"one's"]


def test_a_large_checkpoint_was_cut(store: Store) -> None:
    blob = bytes(range(256)) * 20_000
    lease = take(store).lease
    store.save(lease, Checkpoint("s", CheckpointKind.STEP, blob))
    assert store.get_checkpoints(lease.job)[0].blob == blob
