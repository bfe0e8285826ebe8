"""What every store keeps of values that are put by those who hold no lease."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from gwi_celery.errors import (
    CursorWentBack,
    InvalidCall,
    LeaseLost,
    StepNameReused,
    VersionConflict,
)
from gwi_celery.stores.base import (
    CheckpointKind,
    Claimed,
    ClaimRequest,
    JobRef,
    Lease,
    Replay,
)
from tests.contract.stores import StoreCase, cursor, failure, step, success, value


def put(case: StoreCase, request: ClaimRequest, blob: bytes, expected: int, name: str = "note"):
    """As another process would: with a handle of its own."""
    return case.another().put_value(request.job, name, blob, expected_version=expected)


def running(case: StoreCase, request: ClaimRequest) -> Lease:
    return case.take(request).lease


# --- the version is the etag ----------------------------------------------------------------------


def test_a_value_is_put_where_there_is_none_and_then_at_its_version(case):
    request = case.request()
    running(case, request)

    first = put(case, request, b"1", 0)
    second = put(case, request, b"2", 1)

    assert (first.name, first.kind, first.blob) == ("note", CheckpointKind.VALUE, b"1")
    assert (first.version, second.version) == (1, 2)
    assert case.store.get_checkpoints(request.job) == [second]
    assert second.saved_at >= first.saved_at > 0


@pytest.mark.parametrize("expected", [0, 1, 3, 9])
def test_a_value_at_another_version_is_left_alone(case, expected):
    request = case.request()
    lease = running(case, request)
    case.store.save(lease, value("note", b"1", 1))
    case.store.save(lease, value("note", b"2", 2))
    before = case.seen(request)

    with pytest.raises(VersionConflict, match=r"'note' of review is at version 2") as caught:
        put(case, request, b"3", expected)

    assert (caught.value.expected, caught.value.stored) == (expected, 2)
    assert case.seen(request) == before


def test_a_value_that_is_not_there_is_at_no_version(case):
    request = case.request()
    running(case, request)
    before = case.seen(request)

    with pytest.raises(VersionConflict, match=r"is not there, and .* at version 1") as caught:
        put(case, request, b"1", 1)

    assert (caught.value.expected, caught.value.stored) == (1, 0)
    assert case.seen(request) == before


def test_a_value_put_again_with_the_same_bytes_stays(case):
    """Its answer may have been lost: it can be sent again, and nothing else counts as that."""
    request = case.request()
    running(case, request)
    written = put(case, request, b"1", 0)

    assert put(case, request, b"1", 0) == written
    with pytest.raises(VersionConflict):
        put(case, request, b"other", 0)
    assert case.store.get_checkpoints(request.job) == [written]


def test_of_many_writers_at_one_version_one_wins(case):
    request = case.request()
    running(case, request)
    writers = 6
    start = threading.Barrier(writers)

    def write(number: int) -> int | None:
        store = case.another()
        start.wait()
        try:
            return int(
                store.put_value(request.job, "note", b"%d" % number, expected_version=0).blob
            )
        except VersionConflict:
            return None

    with ThreadPoolExecutor(writers) as pool:
        won = [number for number in pool.map(write, range(writers)) if number is not None]

    (stored,) = case.store.get_checkpoints(request.job)
    assert (won, stored.version) == ([int(stored.blob)], 1)


# --- what it leaves alone -------------------------------------------------------------------------


@pytest.mark.parametrize("made", [step("list", b"files"), cursor("list", b"5", 5)])
@pytest.mark.parametrize("expected", [0, 1, 5])
def test_steps_and_cursors_are_never_touched(case, made, expected):
    request = case.request()
    case.store.save(running(case, request), made)
    before = case.seen(request)

    with pytest.raises(StepNameReused, match="'list'"):
        put(case, request, made.blob, expected, name="list")

    assert case.seen(request) == before


def test_a_put_renews_no_lease_and_takes_none(case):
    request = case.request()
    running(case, request)
    before = case.store.get_lock(request.lock)
    case.advance(case.lease_ttl * 0.6)
    put(case, request, b"1", 0)

    assert case.store.get_lock(request.lock) == before
    case.advance(case.lease_ttl * 0.6)
    taken = case.take(case.request())
    assert (taken.record.attempt, taken.record.crashes) == (2, 1)


def test_the_job_stays_as_it_is_but_for_the_time_of_its_last_change(case):
    request = case.request()
    lease = running(case, request)
    before = case.store.get_job(request.job)
    case.tick()
    put(case, request, b"1", 0)
    after = case.store.get_job(request.job)

    assert before is not None
    assert after is not None
    assert after.updated_at > before.updated_at
    assert vars(after) | {"updated_at": 0} == vars(before) | {"updated_at": 0}
    assert after.fence == lease.fence


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
def test_what_has_ended_stays_as_it_was_recorded(case, end):
    request = case.request()
    lease = running(case, request)
    case.store.save(lease, value("note", b"1", 1))
    if end == "cancelled":
        assert case.store.cancel(request.job, "not needed")
    else:
        case.store.finish(lease, success() if end == "succeeded" else failure())
    before = case.seen(request)
    case.tick()

    for name, expected in [("note", 1), ("new", 0)]:
        with pytest.raises(InvalidCall, match=end):
            put(case, request, b"2", expected, name)

    assert case.seen(request) == before


def test_an_unknown_or_forgotten_job_takes_no_value(case):
    request = case.request()
    with pytest.raises(InvalidCall, match="is unknown"):
        put(case, request, b"1", 0)
    case.store.finish(running(case, request), success())
    case.outlast_result()
    with pytest.raises(InvalidCall, match="is unknown"):
        put(case, request, b"1", 0)

    assert case.store.get_job(request.job) is None
    assert case.store.get_checkpoints(request.job) == []


def test_another_tenants_job_of_that_name_is_another_job(case):
    mine = case.request(tenant="acme")
    running(case, mine)
    with pytest.raises(InvalidCall):
        case.store.put_value(
            JobRef("other", mine.job.task, mine.job.key), "note", b"1", expected_version=0
        )
    assert case.store.get_checkpoints(mine.job) == []


# --- beside a holder ------------------------------------------------------------------------------


def test_the_holder_goes_on_with_whatever_it_does_next(case):
    """Its idea of the record is an old one now; its lease is not."""
    request = case.request()
    lease = running(case, request)
    writes = [
        case.store.renew,
        lambda lease: case.store.save(lease, step("list")),
        lambda lease: case.store.save(lease, cursor("scan", b"1", 1)),
    ]
    for number, write in enumerate(writes):
        put(case, request, b"%d" % number, number)
        lease = write(lease)
    put(case, request, b"last", len(writes))
    case.store.finish(lease, success())

    record = case.store.get_job(request.job)
    assert record is not None
    assert record.outcome == b"result"
    assert case.store.get_lock(request.lock) is None
    assert [c.name for c in case.store.get_checkpoints(request.job)] == ["note", "list", "scan"]


def test_the_holder_may_hand_the_job_back_after_a_put(case):
    request = case.request()
    lease = running(case, request)
    put(case, request, b"1", 0)
    case.store.release(lease)

    put(case, request, b"2", 1)
    taken = case.take(case.request())
    assert taken.has_checkpoints
    assert [(c.blob, c.version) for c in case.store.load(taken.lease)] == [(b"2", 2)]
    assert (taken.record.attempt, taken.record.crashes) == (2, 0)


@pytest.mark.parametrize("knows", [False, True])
def test_the_holders_own_save_goes_by_its_growing_version(case, knows):
    request = case.request()
    lease = running(case, request)
    if knows:
        lease = case.store.save(lease, value("note", b"mine", 1))
    else:
        put(case, request, b"theirs", 0)
    put(case, request, b"theirs too", 1)

    with pytest.raises(CursorWentBack, match="'note'"):
        case.store.save(lease, value("note", b"mine", 2))
    case.store.save(lease, value("note", b"mine", 3))

    (stored,) = case.store.get_checkpoints(request.job)
    assert (stored.blob, stored.version) == (b"mine", 3)
    with pytest.raises(VersionConflict):
        put(case, request, b"late", 2)


def test_the_holders_first_save_of_a_value_that_is_there_is_refused(case):
    request = case.request()
    lease = running(case, request)
    put(case, request, b"theirs", 0)

    with pytest.raises(CursorWentBack):
        case.store.save(lease, value("note", b"mine", 1))
    with pytest.raises(StepNameReused):
        case.store.save(lease, step("note"))

    assert [c.blob for c in case.store.load(lease)] == [b"theirs"]


def test_a_stale_holder_is_stale_after_a_put_too(case):
    request = case.request()
    stale = running(case, request)
    case.outlast_lease()
    put(case, request, b"1", 0)
    current = case.take(case.request()).lease
    put(case, request, b"2", 1)

    for write in (case.store.renew, lambda lease: case.store.save(lease, value("note", b"x", 9))):
        with pytest.raises(LeaseLost):
            write(stale)
    case.store.renew(current)
    assert [c.blob for c in case.store.get_checkpoints(request.job)] == [b"2"]


def test_a_claim_sent_again_after_a_put_is_the_same_claim(case):
    request = case.request()
    lease = running(case, request)
    put(case, request, b"1", 0)

    again = case.store.claim(request)

    assert isinstance(again, Claimed)
    assert again.lease.fence == lease.fence
    assert again.has_checkpoints
    case.store.finish(again.lease, success())


def test_tokens_grow_though_values_are_put_between_claims(case):
    request = case.request()
    fences = []
    for number in range(3):
        fences.append(running(case, case.request()).fence)
        put(case, request, b"%d" % number, number)
        case.outlast_lease()
    assert fences == sorted(set(fences))


def test_a_value_takes_its_place_in_the_order_and_a_replay_forgets_it_with_what_follows(case):
    request = case.request()
    lease = running(case, request)
    case.store.save(lease, step("list"))
    put(case, request, b"1", 0)
    case.store.save(lease, step("scan"))
    put(case, request, b"2", 1)
    assert [c.name for c in case.store.load(lease)] == ["list", "note", "scan"]
    case.store.finish(lease, success())

    replayed = case.take(case.request(replay=Replay(2, from_step="note")))

    assert [c.name for c in case.store.load(replayed.lease)] == ["list"]
    put(case, request, b"anew", 0)


def test_a_large_value_is_put_whole_and_replaced(case):
    request = case.request()
    running(case, request)
    first, second = (bytes(range(256)) * (n * 4096) for n in (3, 4))  # 3 and 4 MiB

    put(case, request, first, 0)
    assert [c.blob for c in case.another().get_checkpoints(request.job)] == [first]
    put(case, request, second, 1)
    assert [c.blob for c in case.another().get_checkpoints(request.job)] == [second]
