"""What an attempt reads of the checkpoints before it: all while they are small, else what it needs."""

from __future__ import annotations

import os

import pytest

from gwi_celery.errors import LeaseLost
from gwi_celery.stores.base import Claimed, JobStatus, Lease, Outcome, Replay
from gwi_celery.stores.protocol import LOADED_AT_ONCE
from tests.contract.stores import StoreCase, cursor, step, value


def resumed(case: StoreCase, lease: Lease) -> Lease:
    """The lease of the attempt that takes over, through a handle of its own."""
    case.outlast_lease()
    answer = case.another().claim(case.request())
    assert isinstance(answer, Claimed)
    return answer.lease


def test_what_is_small_comes_at_once(case: StoreCase) -> None:
    lease = case.take(case.request()).lease
    for n in range(20):
        lease = case.store.save(lease, step(f"s{n}", os.urandom(LOADED_AT_ONCE // 25)))

    loaded = case.another().load(resumed(case, lease))

    assert [c.name for c in loaded] == [f"s{n}" for n in range(20)]
    assert all(len(c.blob) == LOADED_AT_ONCE // 25 and not c.deferred for c in loaded)


def test_what_is_large_is_fetched_one_by_one(case: StoreCase) -> None:
    blobs = {f"s{n}": os.urandom(LOADED_AT_ONCE // 8) for n in range(9)}
    lease = case.take(case.request()).lease
    for name, blob in blobs.items():
        lease = case.store.save(lease, step(name, blob))
    lease = case.store.save(lease, cursor("scan", b"7", 3))
    again = resumed(case, lease)
    store = case.another()

    loaded = store.load(again)

    assert [(c.name, c.version) for c in loaded] == [*((n, 1) for n in blobs), ("scan", 3)]
    assert all(c.deferred and not c.blob for c in loaded[:-1])
    for name, blob in blobs.items():
        fetched = store.fetch(again, name)
        assert fetched is not None
        assert (fetched.blob, fetched.deferred) == (blob, False)
    assert store.fetch(again, "unknown") is None
    # What was loaded in outline is known for what it is when it is saved over.
    again = store.save(again, cursor("scan", b"8", 4))
    store.save(again, step("s0", blobs["s0"]))
    assert [c.blob for c in store.get_checkpoints(lease.job)] == [*blobs.values(), b"8"]


@pytest.mark.parametrize("size", [LOADED_AT_ONCE * 2, LOADED_AT_ONCE * 5])
def test_a_single_large_one_holds_the_small_ones_not_up(case: StoreCase, size: int) -> None:
    large = os.urandom(size)
    lease = case.take(case.request()).lease
    lease = case.store.save(lease, step("small", b"1"))
    lease = case.store.save(lease, value("large", large, 1))
    again = resumed(case, lease)

    names = [(c.name, c.deferred) for c in case.store.load(again)]

    assert [name for name, _ in names] == ["small", "large"]
    assert ("large", True) in names
    for name, blob in (("small", b"1"), ("large", large)):
        fetched = case.store.fetch(again, name)
        assert fetched is not None
        assert fetched.blob == blob


def test_what_was_replaced_or_forgotten_counts_no_more(case: StoreCase) -> None:
    """A cursor that is saved a thousand times is as small as its last value."""
    lease = case.take(case.request()).lease
    lease = case.store.save(lease, step("small", b"1"))
    for version in range(1, 6):
        lease = case.store.save(lease, cursor("scan", os.urandom(LOADED_AT_ONCE // 3), version))
    lease = case.store.save(lease, cursor("scan", b"6", 6))
    again = resumed(case, lease)
    assert not any(c.deferred for c in case.store.load(again))
    for n in range(3):
        again = case.store.save(again, step(f"large {n}", os.urandom(LOADED_AT_ONCE // 2)))
    case.store.finish(again, Outcome(JobStatus.FAILED, b"error"))

    replay = Replay(generation=2, from_step="large 0")
    claimed = case.take(case.request(submission="s2", replay=replay))

    assert [(c.name, c.deferred) for c in case.store.load(claimed.lease)] == [
        ("small", False),
        ("scan", False),
    ]


def test_an_outline_has_the_names_and_no_bytes(case: StoreCase) -> None:
    lease = case.take(case.request()).lease
    case.store.save(case.store.save(lease, step("a", b"1")), cursor("c", b"2", 2))

    outline = case.another().get_checkpoints(lease.job, outline=True)

    assert [(c.name, c.version, c.deferred, c.blob) for c in outline] == [
        ("a", 1, True, b""),
        ("c", 2, True, b""),
    ]


def test_a_fetch_tells_of_a_lost_lease_what_a_save_would(case: StoreCase) -> None:
    lease = case.take(case.request()).lease
    resumed(case, lease)
    with pytest.raises(LeaseLost):
        case.store.fetch(lease, "nothing there")


def test_a_value_that_was_put_meanwhile_is_fetched_as_it_is_now(case: StoreCase) -> None:
    lease = case.take(case.request()).lease
    lease = case.store.save(lease, value("note", b"mine", 1))
    case.another().put_value(lease.job, "note", b"theirs", expected_version=1)

    fetched = case.store.fetch(lease, "note")

    assert fetched is not None
    assert (fetched.blob, fetched.version) == (b"theirs", 2)
    case.store.save(lease, value("note", b"mine again", 3))
