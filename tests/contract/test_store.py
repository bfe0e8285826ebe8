"""What every store keeps: claims, the holder's writes, and how both end."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest

from gwi_celery.errors import (
    CursorWentBack,
    InvalidCall,
    JobCancelled,
    LeaseLost,
    StepNameReused,
)
from gwi_celery.stores.base import (
    NEXT,
    Cancelled,
    Checkpoint,
    CheckpointKind,
    Claimed,
    ClaimRequest,
    Completed,
    Held,
    JobStatus,
    Lease,
    Mismatch,
    Outcome,
    Replay,
)
from tests.contract.stores import StoreCase, cursor, failure, step, success, value

# --- ways to bring a job into a state -------------------------------------------------------------


def running(case: StoreCase, request: ClaimRequest) -> Lease:
    return case.take(request).lease


def pending(case: StoreCase, request: ClaimRequest) -> Lease:
    lease = running(case, request)
    case.store.release(lease)
    return lease


def succeeded(case: StoreCase, request: ClaimRequest) -> Lease:
    lease = running(case, request)
    case.store.finish(lease, success())
    return lease


def failed(case: StoreCase, request: ClaimRequest) -> Lease:
    lease = running(case, request)
    case.store.finish(lease, failure())
    return lease


def cancelled(case: StoreCase, request: ClaimRequest) -> Lease:
    lease = running(case, request)
    assert case.store.cancel(request.job, "not needed")
    return lease


ENDS = [succeeded, failed, cancelled]
STATES = [running, pending, *ENDS]


# --- claim: a fresh job ---------------------------------------------------------------------------


def test_a_fresh_job_is_claimed_in_its_first_generation(case):
    request = case.request(submission="s1", run_id="run 7")

    claimed = case.take(request)

    record = claimed.record
    assert (record.generation, record.attempt, record.crashes) == (1, 1, 0)
    assert record.status is JobStatus.RUNNING
    assert (record.job, record.run_id, record.submission) == (request.job, "run 7", "s1")
    assert record.fingerprint == request.fingerprint
    assert (record.expires_at, record.outcome) == (None, None)
    assert record.fence == claimed.lease.fence > 0
    assert not claimed.has_checkpoints
    assert case.store.load(claimed.lease) == []


def test_the_lease_says_what_was_claimed(case):
    request = case.request(nonce="n1")

    lease = case.take(request).lease

    assert (lease.job, lease.lock, lease.nonce) == (request.job, request.lock, "n1")
    assert (lease.ttl, lease.result_ttl) == (request.lease_ttl, request.result_ttl)
    assert lease.generation == 1


def test_a_claim_is_seen_through_every_handle(case):
    request = case.request(owner="host:42")
    claimed = case.take(request)
    other = case.another()

    assert other.get_job(request.job) == claimed.record
    lock = other.get_lock(request.lock)
    assert lock is not None
    assert (lock.owner, lock.fence, lock.job) == ("host:42", claimed.lease.fence, request.job)
    assert (lock.lock_id, lock.tenant, lock.scope) == (
        request.lock.id,
        request.lock.tenant,
        request.lock.scope,
    )
    assert not lock.expired


def test_a_job_without_a_run_is_claimed_too(case):
    request = case.request(run_id=None)
    assert case.take(request).record.run_id is None


def test_a_job_and_a_lock_of_different_tenants_are_refused(case):
    request = case.request(tenant="acme")
    other = case.request(tenant="evil")

    with pytest.raises(InvalidCall, match=r"acme.*evil"):
        case.store.claim(replace(request, lock=other.lock))

    assert case.store.get_job(request.job) is None
    assert case.store.get_lock(other.lock) is None


# --- claim: another payload -----------------------------------------------------------------------


@pytest.mark.parametrize("state", [running, pending, succeeded, cancelled])
def test_another_payload_never_runs_and_overwrites_nothing(case, state):
    first = case.request(payload={"n": 1})
    state(case, first)
    before = case.seen(first)

    answer = case.store.claim(case.request(payload={"n": 2}, submission="s2"))

    assert answer == Mismatch(before.job)
    assert case.seen(first) == before


def test_a_replay_with_another_payload_is_a_mismatch(case):
    first = case.request(payload=1)
    succeeded(case, first)
    answer = case.store.claim(case.request(payload=2, replay=Replay(generation=2)))
    assert isinstance(answer, Mismatch)


def test_a_mismatch_is_told_even_if_the_lock_is_anothers(case):
    first = case.request(payload=1)
    pending(case, first)
    running(case, case.request("other", scope=first.lock.scope))
    assert isinstance(case.store.claim(case.request(payload=2)), Mismatch)


def test_another_payload_after_a_failure_runs_as_a_new_generation_without_the_old_steps(case):
    request = case.request(payload=1, submission="s1")
    lease = running(case, request)
    case.store.save(lease, step("list", b"of payload 1"))
    case.store.save(lease, cursor("scan", b"9", 9))
    case.store.save(lease, value("note", b"n", 1))
    case.store.finish(lease, failure())

    claimed = case.take(case.request(payload=2, submission="s2"))

    record = claimed.record
    assert (record.generation, record.attempt, record.status) == (2, 1, JobStatus.RUNNING)
    assert record.fingerprint != request.fingerprint
    assert not claimed.has_checkpoints
    assert case.store.load(claimed.lease) == []
    again = case.store.save(claimed.lease, step("list", b"of payload 2"))
    case.store.save(again, cursor("scan", b"1", 1))
    assert [c.blob for c in case.store.load(again)] == [b"of payload 2", b"1"]
    with pytest.raises(LeaseLost):
        case.store.save(lease, step("late"))


def test_the_payload_that_failed_is_another_one_once_it_was_corrected(case):
    failed(case, case.request(payload=1, submission="s1"))
    succeeded(case, case.request(payload=2, submission="s2"))
    for submission in ("s1", "s3"):
        answer = case.store.claim(case.request(payload=1, submission=submission))
        assert isinstance(answer, Mismatch)


def test_a_redelivery_of_the_payload_that_failed_does_not_undo_its_correction(case):
    failed(case, case.request(payload=1, submission="s1"))
    failed(case, case.request(payload=2, submission="s2"))
    before = case.seen(case.request())

    assert isinstance(case.store.claim(case.request(payload=1, submission="s1")), Mismatch)

    assert case.seen(case.request()) == before


def test_a_correction_waits_for_its_lock_and_changes_nothing_until_then(case):
    request = case.request(scope=("shared",), payload=1)
    lease = running(case, request)
    case.store.save(lease, step("list"))
    case.store.finish(lease, failure())
    running(case, case.request("other", scope=("shared",)))
    before = case.seen(request)

    answer = case.store.claim(case.request(scope=("shared",), payload=2, submission="s2"))

    assert isinstance(answer, Held)
    assert case.seen(request) == before


def test_a_replay_from_a_step_can_not_be_of_another_payload(case):
    lease = running(case, case.request(payload=1))
    case.store.save(lease, step("list"))
    case.store.finish(lease, failure())
    replay = Replay(generation=2, from_step="list")
    request = case.request(payload=2, submission="s2", replay=replay)
    assert isinstance(case.store.claim(request), Mismatch)


def test_payloads_are_the_same_if_they_have_a_form_in_common(case):
    succeeded(case, replace(case.request(), fingerprint="by-name by-place"))
    for same in ("by-place", "by-name", "older by-place", "by-name by-place"):
        answer = case.store.claim(replace(case.request(), fingerprint=same))
        assert isinstance(answer, Completed), same
    answer = case.store.claim(replace(case.request(), fingerprint="by-other-name by-other-place"))
    assert isinstance(answer, Mismatch)


@pytest.mark.parametrize("end", ENDS)
def test_once_the_outcome_is_forgotten_another_payload_may_run(case, end):
    end(case, case.request(payload=1))
    case.outlast_result()

    claimed = case.take(case.request(payload=2))

    assert (claimed.record.generation, claimed.record.attempt) == (1, 1)


# --- claim: a job that ended ----------------------------------------------------------------------


@pytest.mark.parametrize("submission", ["s1", "s2"])
def test_a_duplicate_of_a_finished_job_gets_its_result(case, submission):
    request = case.request(submission="s1")
    case.store.finish(running(case, request), success(b"42"))
    before = case.seen(request)

    answer = case.store.claim(case.request(submission=submission))

    assert answer == Completed(before.job)
    assert answer.record.outcome == b"42"
    assert answer.record.status is JobStatus.SUCCEEDED
    assert case.seen(request) == before


def test_a_finished_job_is_answered_though_its_lock_is_anothers(case):
    request = case.request(scope=("shared",))
    succeeded(case, request)
    running(case, case.request("other", scope=("shared",)))
    assert isinstance(case.store.claim(case.request(scope=("shared",))), Completed)


def test_a_redelivery_of_a_failed_submission_gets_that_failure(case):
    request = case.request(submission="s1")
    failed(case, request)
    before = case.seen(request)

    answer = case.store.claim(case.request(submission="s1"))

    assert answer == Completed(before.job)
    assert answer.record.outcome == b"error"
    assert case.seen(request) == before


def test_a_fresh_submission_of_a_failed_job_opens_a_new_generation(case):
    request = case.request(submission="s1")
    lease = running(case, request)
    case.store.save(lease, step("list", b"files"))
    case.store.finish(lease, failure())

    claimed = case.take(case.request(submission="s2"))

    record = claimed.record
    assert (record.generation, record.attempt, record.crashes) == (2, 1, 0)
    assert (record.status, record.outcome, record.expires_at) == (JobStatus.RUNNING, None, None)
    assert record.submission == "s2"
    assert claimed.lease.generation == 2
    assert claimed.lease.fence > lease.fence
    assert claimed.has_checkpoints
    assert [c.name for c in case.store.load(claimed.lease)] == ["list"]


def test_a_late_redelivery_of_an_earlier_failed_submission_does_not_run(case):
    for submission in ("s1", "s2", "s3"):
        failed(case, case.request(submission=submission))

    for submission in ("s1", "s2", "s3"):
        answer = case.store.claim(case.request(submission=submission))
        assert isinstance(answer, Completed)
        assert answer.record.generation == 3
    assert case.take(case.request(submission="s4")).record.generation == 4


def test_a_submission_that_took_over_is_the_one_that_failed(case):
    """Whose attempt ended counts, not whose began the job."""
    running(case, case.request(submission="s1"))
    case.outlast_lease()
    failed(case, case.request(submission="s2"))

    assert isinstance(case.store.claim(case.request(submission="s2")), Completed)
    assert isinstance(case.store.claim(case.request(submission="s1")), Claimed)


def test_a_failed_job_waits_for_its_lock_like_any_other(case):
    request = case.request(scope=("shared",), submission="s1")
    failed(case, request)
    running(case, case.request("other", scope=("shared",)))
    before = case.seen(request)

    answer = case.store.claim(case.request(scope=("shared",), submission="s2"))

    assert isinstance(answer, Held)
    assert case.seen(request) == before


def test_a_cancelled_job_is_answered_as_cancelled(case):
    request = case.request()
    cancelled(case, request)
    before = case.seen(request)

    answer = case.store.claim(case.request(submission="s2"))

    assert answer == Cancelled(before.job)
    assert case.seen(request) == before


@pytest.mark.parametrize("end", ENDS)
def test_an_outcome_past_its_ttl_counts_as_gone(case, end):
    request = case.request()
    lease = running(case, request)
    case.store.save(lease, step("list"))
    end_lease = {
        succeeded: lambda: case.store.finish(lease, success()),
        failed: lambda: case.store.finish(lease, failure()),
        cancelled: lambda: case.store.cancel(request.job, "no"),
    }
    end_lease[end]()
    case.advance(case.result_ttl * 0.9)
    assert case.store.get_job(request.job) is not None
    assert case.store.get_checkpoints(request.job) != []

    case.advance(case.result_ttl * 0.2)

    assert case.store.get_job(request.job) is None
    assert case.store.get_checkpoints(request.job) == []
    claimed = case.take(case.request())
    assert (claimed.record.generation, claimed.record.attempt) == (1, 1)
    assert not claimed.has_checkpoints
    assert case.store.load(claimed.lease) == []
    assert claimed.lease.fence > lease.fence


# --- claim: replays -------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ENDS)
def test_a_replay_opens_the_next_generation_whatever_the_outcome(case, end):
    end(case, case.request(submission="s1"))

    claimed = case.take(case.request(submission="s1", replay=Replay(generation=2)))

    record = claimed.record
    assert (record.generation, record.attempt, record.outcome) == (2, 1, None)
    assert record.status is JobStatus.RUNNING


def test_a_replay_from_the_start_forgets_every_checkpoint(case):
    lease = running(case, case.request())
    case.store.save(lease, step("a"))
    case.store.finish(lease, success())

    claimed = case.take(case.request(replay=Replay(generation=2)))

    assert not claimed.has_checkpoints
    assert case.store.load(claimed.lease) == []


def test_a_replay_from_a_step_forgets_it_and_what_was_first_saved_after_it(case):
    lease = running(case, case.request())
    case.store.save(lease, cursor("scan", b"1", 1))
    case.store.save(lease, step("a"))
    case.store.save(lease, step("b"))
    case.store.save(lease, value("note", b"n", 1))
    case.store.save(lease, cursor("scan", b"2", 2))  # changed last, but saved first
    case.store.finish(lease, failure())

    claimed = case.take(case.request(replay=Replay(generation=2, from_step="b")))

    assert claimed.has_checkpoints
    assert [(c.name, c.blob) for c in case.store.load(claimed.lease)] == [
        ("scan", b"2"),
        ("a", b"done"),
    ]


@pytest.mark.parametrize(("from_step", "kept"), [(None, ""), ("b", "a"), ("", "ab")])
def test_a_submission_replays_once_what_failed_whatever_generation_that_had(case, from_step, kept):
    lease = running(case, case.request())
    for name in "ab":
        case.store.save(lease, step(name))
    case.store.finish(lease, failure())
    again = partial(case.request, submission="s2", replay=Replay(NEXT, from_step))

    claimed = case.take(again())
    assert claimed.record.generation == 2
    assert "".join(c.name for c in case.store.load(claimed.lease)) == kept
    lease = case.store.save(claimed.lease, step("c"))
    case.store.release(lease)
    claimed = case.take(again())
    assert "".join(c.name for c in case.store.load(claimed.lease)) == f"{kept}c", "it goes on"
    case.store.finish(claimed.lease, failure())
    assert isinstance(case.store.claim(again()), Completed), "it failed by this one too"
    case.store.finish(case.take(case.request(submission="s3")).lease, success())
    answer = case.store.claim(again(submission="s4"))
    assert isinstance(answer, Completed)
    assert answer.record.status is JobStatus.SUCCEEDED, "what has succeeded stays as it is"


def test_a_replay_from_the_first_step_leaves_none(case):
    lease = running(case, case.request())
    case.store.save(lease, step("a"))
    case.store.save(lease, step("b"))
    case.store.finish(lease, success())

    claimed = case.take(case.request(replay=Replay(generation=2, from_step="a")))

    assert not claimed.has_checkpoints
    case.store.save(claimed.lease, step("a", b"anew"))
    assert [(c.name, c.blob) for c in case.store.load(claimed.lease)] == [("a", b"anew")]


def test_a_replay_from_an_unknown_step_names_the_known_and_changes_nothing(case):
    request = case.request()
    lease = running(case, request)
    case.store.save(lease, step("list"))
    case.store.save(lease, step("post"))
    case.store.finish(lease, success())
    before = case.seen(request)

    with pytest.raises(InvalidCall, match=r"'lits'.*'list', 'post'"):
        case.store.claim(case.request(replay=Replay(generation=2, from_step="lits")))

    assert case.seen(request) == before


@pytest.mark.parametrize("generation", [0, 1, 3])
def test_a_replay_of_any_other_generation_is_a_plain_duplicate(case, generation):
    request = case.request()
    lease = running(case, request)
    case.store.save(lease, step("list"))
    case.store.finish(lease, success())
    before = case.seen(request)

    replay = Replay(generation=generation, from_step="unknown")
    assert case.store.claim(case.request(replay=replay)) == Completed(before.job)
    assert case.seen(request) == before


def test_a_redelivered_replay_does_not_replay_again(case):
    succeeded(case, case.request())
    again = case.request(submission="s2", replay=Replay(generation=2))
    lease = running(case, again)
    case.store.save(lease, step("list"))

    assert isinstance(case.store.claim(replace(again, nonce="other")), Held)
    case.store.release(lease)
    claimed = case.take(replace(again, nonce="third"))
    assert (claimed.record.generation, claimed.record.attempt) == (2, 2)
    assert claimed.has_checkpoints
    case.store.finish(claimed.lease, success(b"second"))
    answer = case.store.claim(replace(again, nonce="fourth"))
    assert isinstance(answer, Completed)
    assert answer.record.outcome == b"second"


def test_a_replay_that_failed_is_not_replayed_by_its_redelivery(case):
    succeeded(case, case.request(submission="s1"))
    again = case.request(submission="s2", replay=Replay(generation=2))
    case.store.finish(running(case, again), failure())
    assert isinstance(case.store.claim(replace(again, nonce="other")), Completed)


def test_a_replay_waits_for_the_lock_and_forgets_nothing_meanwhile(case):
    request = case.request(scope=("shared",))
    lease = running(case, request)
    case.store.save(lease, step("list"))
    case.store.finish(lease, success())
    running(case, case.request("other", scope=("shared",)))
    before = case.seen(request)

    answer = case.store.claim(case.request(scope=("shared",), replay=Replay(generation=2)))

    assert isinstance(answer, Held)
    assert case.seen(request) == before


def test_a_replay_of_a_job_under_way_is_one_more_claim_of_it(case):
    lease = running(case, case.request())
    case.store.save(lease, step("list"))
    replay = case.request(replay=Replay(generation=2))
    assert isinstance(case.store.claim(replay), Held)

    case.store.release(lease)

    claimed = case.take(replay)
    assert (claimed.record.generation, claimed.record.attempt) == (1, 2)
    assert claimed.has_checkpoints


def test_a_replay_of_an_unknown_job_starts_it(case):
    claimed = case.take(case.request(replay=Replay(generation=5, from_step="list")))
    assert claimed.record.generation == 1


# --- claim: held ----------------------------------------------------------------------------------


def test_a_duplicate_of_a_running_job_learns_who_holds_it(case):
    request = case.request(owner="host:1")
    running(case, request)
    before = case.seen(request)

    answer = case.store.claim(case.request(owner="host:2"))

    assert isinstance(answer, Held)
    assert (answer.by, answer.job) == ("host:1", request.job)
    assert 0 <= answer.retry_after <= case.lease_ttl
    assert case.seen(request) == before


def test_another_job_under_the_same_lock_learns_who_holds_it(case):
    first = case.request("one", scope=("shared",), owner="host:1")
    second = case.request("two", scope=("shared",))
    running(case, first)

    answer = case.store.claim(second)

    assert isinstance(answer, Held)
    assert (answer.by, answer.job) == ("host:1", first.job)
    assert case.store.get_job(second.job) is None


def test_retry_after_shrinks_with_time_and_grows_with_a_renewal(case):
    lease = running(case, case.request())
    first = case.store.claim(case.request())
    case.advance(case.lease_ttl * 0.6)
    second = case.store.claim(case.request())
    case.store.renew(lease)
    third = case.store.claim(case.request())
    assert isinstance(first, Held)
    assert isinstance(second, Held)
    assert isinstance(third, Held)

    assert 0 <= second.retry_after < first.retry_after
    assert third.retry_after > second.retry_after


def test_a_claim_sent_again_is_the_same_claim(case):
    request = case.request()
    first = case.take(request)

    second = case.take(request)

    assert second.lease == first.lease
    assert second.record == first.record
    assert case.store.get_job(request.job) == first.record


def test_a_claim_sent_again_finds_the_checkpoints_it_found_at_first(case):
    lease = running(case, case.request())
    case.store.save(lease, step("list"))
    case.store.release(lease)
    request = case.request()
    assert case.take(request).has_checkpoints
    assert case.take(request).has_checkpoints


def test_a_claim_that_opens_a_generation_opens_one_though_sent_twice(case):
    failed(case, case.request(submission="s1"))
    request = case.request(submission="s2")
    first = case.take(request)
    second = case.take(request)
    assert (second.lease, second.record) == (first.lease, first.record)


def test_a_lease_counts_from_the_last_sending_of_its_claim(case):
    request = case.request()
    case.take(request)
    case.advance(case.lease_ttl * 0.6)
    case.take(request)
    case.advance(case.lease_ttl * 0.6)
    assert isinstance(case.store.claim(case.request()), Held)


def test_a_nonce_counts_for_its_own_job_only(case):
    running(case, case.request("one", scope=("shared",), nonce="n"))
    answer = case.store.claim(case.request("two", scope=("shared",), nonce="n"))
    assert isinstance(answer, Held)


# --- claim: taking over ---------------------------------------------------------------------------


def test_a_holder_that_lets_its_lease_run_out_is_taken_over_and_counts_as_a_crash(case):
    request = case.request()
    first = case.take(request)
    case.store.save(first.lease, step("list", b"files"))
    case.outlast_lease()
    lock = case.store.get_lock(request.lock)
    assert lock is not None
    assert lock.expired

    second = case.take(case.request(owner="host:2"))

    record = second.record
    assert (record.generation, record.attempt, record.crashes) == (1, 2, 1)
    assert second.lease.fence > first.lease.fence
    assert second.has_checkpoints
    assert [c.blob for c in case.store.load(second.lease)] == [b"files"]


def test_a_lease_is_not_taken_over_before_it_has_run_out(case):
    running(case, case.request())
    case.advance(case.lease_ttl * 0.8)
    assert isinstance(case.store.claim(case.request()), Held)


def test_every_crash_counts_until_a_new_generation_begins(case):
    for crashes in range(3):
        assert case.take(case.request(submission="s1")).record.crashes == crashes
        case.outlast_lease()
    claimed = case.take(case.request(submission="s1"))
    assert (claimed.record.attempt, claimed.record.crashes) == (4, 3)
    case.store.finish(claimed.lease, failure())

    record = case.take(case.request(submission="s2")).record
    assert (record.attempt, record.crashes) == (1, 0)


@pytest.mark.parametrize("saved", [step("list"), cursor("scan", b"1", 1)])
def test_progress_forgives_the_crashes_before_it(case, saved):
    for _ in range(3):
        running(case, case.request())
        case.outlast_lease()
    lease = running(case, case.request())
    case.store.save(lease, saved)
    case.outlast_lease()

    assert case.take(case.request()).record.crashes == 1


def test_what_is_no_progress_forgives_no_crash(case):
    """A value may be noted at each attempt; and what is recorded already is not made again."""
    lease = running(case, case.request())
    lease = case.store.save(lease, step("list"))
    for crashes in (1, 2, 3):
        case.outlast_lease()
        claimed = case.take(case.request())
        assert claimed.record.crashes == crashes
        lease = case.store.save(claimed.lease, value("tries", b"%d" % crashes, crashes))
        lease = case.store.save(lease, step("list"))
        case.store.renew(lease)
    record = case.store.get_job(lease.job)
    assert record is not None
    case.store.put_value(lease.job, "outside", b"v", expected_version=0)
    case.outlast_lease()
    assert case.take(case.request()).record.crashes == 4


@pytest.mark.parametrize("renewed", [False, True])
def test_a_job_that_runs_under_another_lock_is_held(case, renewed):
    """It came with another run in its headers, say, or after a deploy that changed its lock."""
    first = case.request(scope=("run", "r1"), owner="host:1")
    lease = running(case, first)
    if renewed:
        case.advance(case.lease_ttl * 0.8)
        lease = case.store.renew(lease)
        case.advance(case.lease_ttl * 0.8)
    before = case.seen(first)
    second = case.request(scope=("run", "r2"), owner="host:2", submission="s2")

    answer = case.store.claim(second)

    assert isinstance(answer, Held)
    assert (answer.by, answer.job) == ("host:1", first.job)
    assert 0 < answer.retry_after <= case.lease_ttl
    assert case.seen(first) == before
    assert case.store.get_lock(second.lock) is None
    case.store.finish(lease, success())
    assert isinstance(case.store.claim(second), Completed)


def test_a_job_is_taken_over_from_another_lock_once_that_has_run_out(case):
    first = case.request(scope=("run", "r1"))
    lease = running(case, first)
    case.outlast_lease()

    claimed = case.take(case.request(scope=("run", "r2")))

    assert (claimed.record.attempt, claimed.record.crashes) == (2, 1)
    for write in (case.store.renew, lambda old: case.store.finish(old, success())):
        with pytest.raises(LeaseLost):
            write(lease)
    # The lock that it left is free for others at once, and its token goes on growing.
    other = case.take(case.request("other", scope=("run", "r1")))
    assert other.lease.fence > lease.fence
    case.store.finish(claimed.lease, success())


@pytest.mark.parametrize("leave", [pending, succeeded, failed])
def test_a_lock_that_a_job_has_left_is_no_obstacle_under_another(case, leave):
    first = case.request(scope=("run", "r1"), submission="s1")
    leave(case, first)
    running(case, case.request("other", scope=("run", "r1")))
    answer = case.store.claim(case.request(scope=("run", "r2"), submission="s2"))
    assert isinstance(answer, Completed if leave is succeeded else Claimed)


def test_of_many_claims_of_one_job_under_many_locks_one_is_granted(case):
    store = case.store
    with ThreadPoolExecutor(8) as pool:
        requests = [case.request(scope=("run", f"r{n}")) for n in range(8)]
        answers = list(pool.map(store.claim, requests))
    assert sum(isinstance(answer, Claimed) for answer in answers) == 1
    assert sum(isinstance(answer, Held) for answer in answers) == 7


def test_a_release_is_no_crash(case):
    pending(case, case.request())
    record = case.take(case.request()).record
    assert (record.generation, record.attempt, record.crashes) == (1, 2, 0)


def test_taking_an_expired_lock_from_another_job_counts_as_that_jobs_crash(case):
    first = case.request("one", scope=("shared",))
    second = case.request("two", scope=("shared",))
    running(case, first)
    before = case.store.get_job(first.job)
    case.outlast_lease()

    taken = case.take(second)

    assert taken.record.crashes == 0
    assert case.store.get_job(first.job) == before
    case.store.finish(taken.lease, success())
    again = case.take(case.request("one", scope=("shared",)))
    assert (again.record.attempt, again.record.crashes) == (2, 1)


def test_a_lock_freed_by_force_leaves_a_crash_to_count(case):
    """Whoever frees the lock of a process that died wants the death counted."""
    request = case.request()
    running(case, request)
    assert case.store.force_release(request.lock)
    assert case.take(case.request()).record.crashes == 1


def test_tokens_of_a_lock_grow_whatever_happens_to_it(case):
    scope = ("shared",)
    request = case.request(scope=scope, submission="s1")
    fences: list[int] = []

    def claim(key: str = "k", submission: str = "s1") -> Lease:
        lease = running(case, case.request(key, scope=scope, submission=submission))
        fences.append(lease.fence)
        return lease

    case.store.release(claim())
    claim()
    case.outlast_lease()
    claim()
    case.store.force_release(request.lock)
    case.store.finish(claim(), failure())
    claim(submission="s2")
    case.store.cancel(request.job, "no")
    case.store.finish(claim("other"), success())
    case.outlast_result()
    case.store.cleanup()
    assert case.store.get_job(request.job) is None
    assert case.store.get_lock(request.lock) is None
    case.store.finish(claim(), success())

    assert all(earlier < later for earlier, later in itertools.pairwise(fences)), fences


def test_two_handles_never_give_one_lock_twice(case):
    one, two = case.store, case.another()
    for key in ("a", "b", "c"):
        answers = [one.claim(case.request(key)), two.claim(case.request(key))]
        assert [type(answer) for answer in answers] == [Claimed, Held]


@pytest.mark.parametrize("round_", range(3))
def test_of_many_threads_one_wins(case, round_):
    threads = 8
    requests = [case.request(owner=f"thread {i}") for i in range(threads)]
    ready = threading.Barrier(threads)

    def claim(request: ClaimRequest) -> object:
        ready.wait()
        return case.store.claim(request)

    with ThreadPoolExecutor(threads) as pool:
        answers = list(pool.map(claim, requests))

    winners = [answer for answer in answers if isinstance(answer, Claimed)]
    assert len(winners) == 1
    assert sum(isinstance(answer, Held) for answer in answers) == threads - 1
    lock = case.store.get_lock(requests[0].lock)
    assert lock is not None
    assert lock.fence == winners[0].lease.fence


# --- the holder's writes --------------------------------------------------------------------------

Write = Callable[[StoreCase, Lease], object]

WRITES: dict[str, Write] = {
    "renew": lambda case, lease: case.store.renew(lease),
    "save a new step": lambda case, lease: case.store.save(lease, step("late")),
    "save a recorded step": lambda case, lease: case.store.save(lease, step("early")),
    "save a cursor": lambda case, lease: case.store.save(lease, cursor("scan", b"9", 9)),
    "succeed": lambda case, lease: case.store.finish(lease, success(b"stale")),
    "fail": lambda case, lease: case.store.finish(lease, failure(b"stale")),
}


def lost_to_a_takeover(case: StoreCase, request: ClaimRequest) -> None:
    case.outlast_lease()
    case.take(replace(request, nonce="successor", owner="host:2"))


def lost_to_a_takeover_that_finished(case: StoreCase, request: ClaimRequest) -> None:
    case.outlast_lease()
    case.store.finish(case.take(replace(request, nonce="successor")).lease, success(b"first"))


def lost_to_a_takeover_that_released(case: StoreCase, request: ClaimRequest) -> None:
    case.outlast_lease()
    case.store.release(case.take(replace(request, nonce="successor")).lease)


def lost_to_another_job(case: StoreCase, request: ClaimRequest) -> None:
    case.outlast_lease()
    case.take(case.request("another job", scope=request.lock.scope))


def lost_to_another_job_that_finished(case: StoreCase, request: ClaimRequest) -> None:
    case.outlast_lease()
    other = case.take(case.request("another job", scope=request.lock.scope))
    case.store.finish(other.lease, success())


def lost_to_a_claim_under_another_lock(case: StoreCase, request: ClaimRequest) -> None:
    case.outlast_lease()
    case.take(case.request(scope=("another lock",)))


def lost_to_force(case: StoreCase, request: ClaimRequest) -> None:
    assert case.store.force_release(request.lock)


def lost_by_releasing(case: StoreCase, request: ClaimRequest) -> None:
    case.store.release(case.take(request).lease)


LOSSES = [
    lost_to_a_takeover,
    lost_to_a_takeover_that_finished,
    lost_to_a_takeover_that_released,
    lost_to_another_job,
    lost_to_another_job_that_finished,
    lost_to_a_claim_under_another_lock,
    lost_to_force,
    lost_by_releasing,
]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_stale_holder_changes_nothing(case, loss, write):
    request = case.request()
    lease = running(case, request)
    lease = case.store.save(lease, step("early"))
    lease = case.store.save(lease, cursor("scan", b"1", 1))
    loss(case, request)
    before = case.seen(request)

    with pytest.raises(LeaseLost):
        WRITES[write](case, lease)

    assert case.seen(request) == before


@pytest.mark.parametrize("loss", LOSSES)
def test_a_stale_release_is_no_error_and_changes_nothing(case, loss):
    request = case.request()
    lease = running(case, request)
    loss(case, request)
    before = case.seen(request)

    case.store.release(lease)

    assert case.seen(request) == before


@pytest.mark.parametrize("write", WRITES)
def test_the_holder_of_a_cancelled_job_is_told_so(case, write):
    request = case.request()
    lease = running(case, request)
    case.store.save(lease, step("early"))
    case.store.cancel(request.job, "not needed")
    before = case.seen(request)

    with pytest.raises(JobCancelled):
        WRITES[write](case, lease)

    assert case.seen(request) == before
    case.store.release(lease)
    assert case.seen(request) == before


@pytest.mark.parametrize("write", WRITES)
def test_a_holder_that_is_late_but_was_not_taken_over_may_go_on(case, write):
    request = case.request()
    lease = running(case, request)
    lease = case.store.save(lease, step("early"))
    case.outlast_lease()

    WRITES[write](case, lease)

    lock = case.store.get_lock(request.lock)
    assert lock is None or not lock.expired


def test_a_late_release_by_the_last_holder_is_no_crash(case):
    lease = running(case, case.request())
    case.outlast_lease()
    case.store.release(lease)
    assert case.take(case.request()).record.crashes == 0


@pytest.mark.parametrize("write", ["renew", "save a new step", "save a recorded step"])
def test_renewals_and_saves_move_the_leases_end(case, write):
    request = case.request()
    lease = running(case, request)
    lease = case.store.save(lease, step("early"))
    for _ in range(3):
        case.advance(case.lease_ttl * 0.6)
        lease = case.store.renew(lease) if write == "renew" else WRITES[write](case, lease)

        answer = case.store.claim(case.request())
        assert isinstance(answer, Held)
        assert answer.retry_after > case.lease_ttl * 0.5
    case.store.finish(lease, success())


def test_a_write_answers_with_the_same_claims_lease(case):
    lease = running(case, case.request())
    assert case.store.renew(lease) == lease
    assert case.store.save(lease, step("a")) == lease


def test_a_renewal_changes_nothing_of_the_job(case):
    request = case.request()
    lease = running(case, request)
    before = case.store.get_job(request.job)
    case.advance(case.lease_ttl / 2)
    case.store.renew(lease)
    assert case.store.get_job(request.job) == before


# --- checkpoints ----------------------------------------------------------------------------------


def test_a_saved_checkpoint_is_read_by_the_attempt_and_by_people(case):
    request = case.request()
    lease = running(case, request)

    case.store.save(lease, step("list files/ü", b"\x00bytes\xff"))

    (saved,) = case.store.load(lease)
    assert (saved.name, saved.kind) == ("list files/ü", CheckpointKind.STEP)
    assert (saved.blob, saved.version) == (b"\x00bytes\xff", 1)
    record = case.store.get_job(request.job)
    assert record is not None
    assert saved.saved_at >= record.created_at > 0
    assert case.another().get_checkpoints(request.job) == [saved]


def test_a_step_saved_again_with_the_same_bytes_stays_as_it_is(case):
    request = case.request()
    lease = running(case, request)
    case.store.save(lease, step("list", b"files"))
    before = case.seen(request)
    case.advance(case.lease_ttl / 2)

    case.store.save(lease, step("list", b"files"))

    after = case.seen(request)
    assert (after.job, after.checkpoints) == (before.job, before.checkpoints)
    assert after.lock != before.lock


@pytest.mark.parametrize("version", [1, 2])
def test_a_step_never_changes(case, version):
    request = case.request()
    lease = running(case, request)
    case.store.save(lease, step("list", b"files"))
    before = case.seen(request)

    with pytest.raises(StepNameReused, match="'list'"):
        case.store.save(lease, Checkpoint("list", CheckpointKind.STEP, b"others", version))

    assert case.seen(request) == before
    case.store.save(lease, step("next"))


def test_a_step_is_not_changed_by_a_later_attempt_either(case):
    request = case.request()
    case.store.save(running(case, request), step("list", b"files"))
    case.outlast_lease()
    lease = case.take(case.request()).lease

    with pytest.raises(StepNameReused):
        case.store.save(lease, step("list", b"others"))

    assert [c.blob for c in case.store.load(lease)] == [b"files"]


@pytest.mark.parametrize("make", [cursor, value])
def test_a_cursor_or_value_moves_on_with_its_version(case, make):
    request = case.request()
    lease = running(case, request)
    case.store.save(lease, make("scan", b"10", 1))
    case.store.save(lease, make("scan", b"20", 2))
    case.store.save(lease, make("scan", b"20", 3))
    case.store.save(lease, make("scan", b"50", 7))

    (saved,) = case.store.get_checkpoints(request.job)
    assert (saved.blob, saved.version) == (b"50", 7)


@pytest.mark.parametrize("make", [cursor, value])
@pytest.mark.parametrize("version", [1, 4, 5])
def test_a_cursor_or_value_is_not_replaced_under_a_version_it_had(case, make, version):
    request = case.request()
    lease = running(case, request)
    case.store.save(lease, make("scan", b"50", 5))
    before = case.seen(request)

    with pytest.raises(CursorWentBack, match="'scan'"):
        case.store.save(lease, make("scan", b"40", version))

    assert case.seen(request) == before


@pytest.mark.parametrize("make", [cursor, value])
@pytest.mark.parametrize("version", [4, 5])
def test_a_cursor_or_value_saved_again_with_the_same_bytes_stays(case, make, version):
    request = case.request()
    lease = running(case, request)
    case.store.save(lease, make("scan", b"50", 5))
    before = case.store.get_checkpoints(request.job)

    case.store.save(lease, make("scan", b"50", version))

    assert case.store.get_checkpoints(request.job) == before


def test_a_cursor_goes_on_in_the_next_attempt_and_generation(case):
    request = case.request(submission="s1")
    case.store.save(running(case, request), cursor("scan", b"5", 5))
    case.outlast_lease()
    second = case.take(case.request(submission="s1")).lease
    with pytest.raises(CursorWentBack):
        case.store.save(second, cursor("scan", b"4", 4))
    case.store.save(second, cursor("scan", b"6", 6))
    case.store.finish(second, failure())

    third = case.take(case.request(submission="s2")).lease
    with pytest.raises(CursorWentBack):
        case.store.save(third, cursor("scan", b"5", 5))
    assert [(c.blob, c.version) for c in case.store.load(third)] == [(b"6", 6)]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (step("x", b"1"), cursor("x", b"1", 2)),
        (step("x", b"1"), value("x", b"1", 2)),
        (cursor("x", b"1", 1), step("x", b"1")),
        (cursor("x", b"1", 1), value("x", b"2", 2)),
        (value("x", b"1", 1), cursor("x", b"2", 2)),
    ],
)
def test_a_name_belongs_to_one_kind_of_checkpoint(case, first, second):
    request = case.request()
    lease = running(case, request)
    case.store.save(lease, first)
    before = case.seen(request)

    with pytest.raises(StepNameReused, match="'x'"):
        case.store.save(lease, second)

    assert case.seen(request) == before


def test_a_refused_checkpoint_does_not_renew_the_lease(case):
    lease = running(case, case.request())
    case.store.save(lease, step("list", b"files"))
    case.advance(case.lease_ttl * 0.6)
    with pytest.raises(StepNameReused):
        case.store.save(lease, step("list", b"others"))
    case.advance(case.lease_ttl * 0.6)
    assert isinstance(case.store.claim(case.request()), Claimed)


def test_checkpoints_come_in_the_order_they_were_first_saved(case):
    request = case.request()
    lease = running(case, request)
    names = ["z", "a", "m", "b"]
    for name in names:
        case.store.save(lease, cursor(name, b"1", 1))
    case.store.save(lease, cursor("a", b"2", 2))
    case.store.release(lease)
    lease = case.take(case.request()).lease
    case.store.save(lease, step("c"))

    loaded = case.store.load(lease)

    assert [c.name for c in loaded] == [*names, "c"]
    ordinals = [c.ordinal for c in loaded]
    assert ordinals == sorted(set(ordinals))
    assert case.store.get_checkpoints(request.job) == loaded


def test_checkpoints_of_two_jobs_under_one_lock_stay_apart(case):
    first = running(case, case.request("one", scope=("shared",)))
    case.store.save(first, step("list", b"1"))
    case.store.release(first)
    taken = case.take(case.request("two", scope=("shared",)))
    assert not taken.has_checkpoints
    case.store.save(taken.lease, step("list", b"2"))

    assert [c.blob for c in case.store.load(taken.lease)] == [b"2"]
    assert [c.blob for c in case.store.get_checkpoints(first.job)] == [b"1"]


def test_a_large_checkpoint_and_a_large_result_come_back_whole(case):
    request = case.request()
    lease = running(case, request)
    blob = bytes(range(256)) * (3 * 4096)  # 3 MiB
    case.store.save(lease, step("large", blob))
    case.store.finish(lease, success(blob))

    assert [c.blob for c in case.store.get_checkpoints(request.job)] == [blob]
    answer = case.store.claim(case.request())
    assert isinstance(answer, Completed)
    assert answer.record.outcome == blob


def test_empty_bytes_are_bytes(case):
    request = case.request()
    lease = running(case, request)
    case.store.save(lease, step("nothing", b""))
    case.store.finish(lease, success(b""))
    record = case.store.get_job(request.job)
    assert record is not None
    assert record.outcome == b""
    assert [c.blob for c in case.store.get_checkpoints(request.job)] == [b""]


# --- finish and release ---------------------------------------------------------------------------


@pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED])
def test_a_finish_writes_the_outcome_and_frees_the_lock(case, status):
    request = case.request(scope=("shared",))
    lease = running(case, request)
    case.store.save(lease, step("list"))

    case.store.finish(lease, Outcome(status, b"end"))

    record = case.store.get_job(request.job)
    assert record is not None
    assert (record.status, record.outcome, record.fence) == (status, b"end", lease.fence)
    assert record.expires_at is not None
    assert record.expires_at - record.updated_at == pytest.approx(case.result_ttl, rel=0.01)
    assert case.store.get_lock(request.lock) is None
    assert [c.name for c in case.store.get_checkpoints(request.job)] == ["list"]
    assert isinstance(case.store.claim(case.request("other", scope=("shared",))), Claimed)


@pytest.mark.parametrize("status", [JobStatus.PENDING, JobStatus.RUNNING])
def test_a_finish_takes_terminal_states_only(case, status):
    request = case.request()
    lease = running(case, request)
    before = case.seen(request)
    with pytest.raises(ValueError, match=status.value):
        case.store.finish(lease, Outcome(status, b""))
    assert case.seen(request) == before


def test_finishing_twice_alike_is_no_error_and_changes_nothing(case):
    request = case.request()
    lease = running(case, request)
    case.store.finish(lease, success(b"1"))
    before = case.seen(request)
    case.advance(case.lease_ttl / 2)

    case.store.finish(lease, success(b"1"))

    assert case.seen(request) == before


@pytest.mark.parametrize("second", [success(b"2"), failure(b"1"), failure(b"3")])
def test_a_second_outcome_of_a_generation_is_refused(case, second):
    request = case.request()
    lease = running(case, request)
    case.store.finish(lease, success(b"1"))
    before = case.seen(request)

    with pytest.raises(LeaseLost, match="has ended as succeeded"):
        case.store.finish(lease, second)

    assert case.seen(request) == before


@pytest.mark.parametrize("end", [None, success(b"second"), failure(b"second")])
def test_a_finish_sent_again_after_the_next_claim_is_still_known_as_done(case, end):
    """Its answer was lost, and a fresh submission went on before it could be sent again."""
    lease = failed(case, case.request(submission="s1"))
    request = case.request(submission="s2")
    second = running(case, request)
    if end is None:
        case.store.finish(lease, failure())
        before = case.seen(request)
        assert before.job is not None
        assert before.job.status is JobStatus.RUNNING
        case.store.finish(second, success())
        return
    case.store.finish(lease, failure())
    case.store.finish(second, end)
    record = case.store.get_job(request.job)
    assert record is not None
    assert (record.generation, record.outcome) == (2, b"second")


def test_a_finish_sent_again_leaves_anothers_lock_alone(case):
    request = case.request("one", scope=("shared",))
    lease = succeeded(case, request)
    other = case.request("two", scope=("shared",))
    running(case, other)
    before = case.seen(other)

    case.store.finish(lease, success())

    assert case.seen(other) == before


def test_a_release_hands_the_job_back_with_its_checkpoints(case):
    request = case.request()
    lease = running(case, request)
    case.store.save(lease, step("list"))

    case.store.release(lease)

    record = case.store.get_job(request.job)
    assert record is not None
    assert (record.status, record.expires_at) == (JobStatus.PENDING, None)
    assert case.store.get_lock(request.lock) is None
    claimed = case.take(case.request())
    assert claimed.has_checkpoints
    assert claimed.lease.fence > lease.fence


@pytest.mark.parametrize("end", [pending, *ENDS])
def test_a_release_sent_again_changes_nothing(case, end):
    request = case.request()
    lease = end(case, request)
    before = case.seen(request)
    case.store.release(lease)
    assert case.seen(request) == before


def test_an_unfinished_job_is_never_forgotten(case):
    waiting, at_work = case.request("waiting"), case.request("at work")
    pending(case, waiting)
    running(case, at_work)
    case.advance(case.result_ttl * 3)
    case.store.cleanup()
    assert case.take(case.request("waiting")).record.attempt == 2
    assert case.take(case.request("at work")).record.attempt == 2


# --- operators ------------------------------------------------------------------------------------


def test_forcing_a_free_lock_frees_nothing(case):
    request = case.request()
    assert not case.store.force_release(request.lock)
    pending(case, request)
    assert not case.store.force_release(request.lock)


def test_forcing_an_expired_lock_ends_its_holders_writes_too(case):
    request = case.request()
    lease = running(case, request)
    case.outlast_lease()

    assert not case.store.force_release(request.lock)

    assert case.store.get_lock(request.lock) is None
    with pytest.raises(LeaseLost):
        case.store.renew(lease)


def test_force_may_be_aimed_at_one_attempt(case):
    request = case.request(nonce="n1")
    lease = running(case, request)
    before = case.seen(request)

    assert not case.store.force_release(request.lock, owner_nonce="n0")
    assert case.seen(request) == before
    case.store.renew(lease)

    assert case.store.force_release(request.lock, owner_nonce="n1")
    assert case.store.get_lock(request.lock) is None


@pytest.mark.parametrize("state", [running, pending])
def test_an_unfinished_job_can_be_cancelled(case, state):
    request = case.request()
    state(case, request)

    assert case.store.cancel(request.job, "wrong repo: ü")

    record = case.store.get_job(request.job)
    assert record is not None
    assert record.status is JobStatus.CANCELLED
    assert record.outcome == "wrong repo: ü".encode()
    assert record.expires_at is not None
    assert record.expires_at - record.updated_at == pytest.approx(case.result_ttl, rel=0.01)
    assert case.store.get_lock(request.lock) is None
    assert isinstance(case.store.claim(case.request()), Cancelled)


@pytest.mark.parametrize("end", ENDS)
def test_a_job_that_ended_can_not_be_cancelled(case, end):
    request = case.request()
    end(case, request)
    before = case.seen(request)
    assert not case.store.cancel(request.job, "too late")
    assert case.seen(request) == before


def test_a_job_cancelled_before_it_is_known_never_starts(case):
    request = case.request(payload={"any": "payload"})

    assert case.store.cancel(request.job, "never mind", in_advance=True)
    assert not case.store.cancel(request.job, "once more", in_advance=True)

    record = case.store.get_job(request.job)
    assert record is not None
    assert (record.status, record.outcome) == (JobStatus.CANCELLED, b"never mind")
    assert record.job == request.job
    assert isinstance(case.store.claim(request), Cancelled)
    assert case.store.get_lock(request.lock) is None


def test_an_unknown_job_is_cancelled_only_when_told_to_be_in_advance(case):
    request = case.request()
    mistaken = replace(request.job, task="taks")

    assert not case.store.cancel(mistaken, "a wrong name")
    assert not case.store.cancel(request.job, "not begun")

    assert case.store.get_job(mistaken) is None
    assert isinstance(case.store.claim(request), Claimed)


def test_a_holder_is_told_the_reason_of_its_cancellation(case):
    lease = running(case, case.request())
    case.store.cancel(lease.job, "wrong repo: ü \ud83d")
    with pytest.raises(JobCancelled) as caught:
        case.store.renew(lease)
    assert caught.value.reason == "wrong repo: ü \ud83d"


def test_a_job_cancelled_before_it_is_known_can_be_replayed(case):
    request = case.request(payload=1, run_id="run 7")
    case.store.cancel(request.job, "never mind", in_advance=True)
    record = case.store.get_job(request.job)
    assert record is not None

    claimed = case.take(replace(request, replay=Replay(generation=record.generation + 1)))

    assert (claimed.record.attempt, claimed.record.run_id) == (1, "run 7")
    assert not claimed.has_checkpoints
    assert isinstance(case.store.claim(case.request(payload=2)), Mismatch)


def test_a_job_whose_outcome_is_forgotten_is_cancelled_as_an_unknown_one(case):
    request = case.request()
    lease = running(case, request)
    case.store.save(lease, step("list"))
    case.store.finish(lease, success())
    case.outlast_result()

    assert case.store.cancel(request.job, "not again", in_advance=True)

    assert isinstance(case.store.claim(case.request(payload="any")), Cancelled)
    assert case.store.get_checkpoints(request.job) == []


def test_cancelling_frees_the_jobs_own_lock_only(case):
    waiting = case.request("waiting", scope=("shared",))
    pending(case, waiting)
    holder = case.request("holder", scope=("shared",))
    lease = running(case, holder)
    before = case.seen(holder)

    assert case.store.cancel(waiting.job, "no")

    assert case.seen(holder) == before
    case.store.finish(lease, success())


def test_cancelling_a_job_that_lost_its_lock_leaves_the_successors(case):
    crashed = case.request("crashed", scope=("shared",))
    running(case, crashed)
    case.outlast_lease()
    successor = case.request("successor", scope=("shared",))
    lease = running(case, successor)

    assert case.store.cancel(crashed.job, "no")

    case.store.renew(lease)
    case.store.finish(lease, success())


def test_an_unknown_job_and_a_free_lock_are_none(case):
    request = case.request()
    assert case.store.get_job(request.job) is None
    assert case.store.get_checkpoints(request.job) == []
    assert case.store.get_lock(request.lock) is None


def test_closing_twice_is_safe(case):
    other = case.another()
    other.close()
    other.close()
