"""What every store keeps: lists, tenants, odd ids, and cleanup."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gwi_celery.errors import InvalidCall, LeaseLost
from gwi_celery.stores.base import Claimed, Completed, Held, JobRecord, JobStatus, Page
from tests.contract.stores import StoreCase, failure, step, success

#: Two lone surrogates and the emoji they would be as a pair are three different texts.
ODD_IDS = [
    "a/b",
    "a",
    "b/c",
    "..",
    ".",
    "__x__",
    " ",
    "a\x00b",
    "a\nb",
    "%2F",
    "'; DROP TABLE jobs; --",
    "é",
    "e\u0301",
    "😀",
    "\ud83d\ude00",
    "\ud83d",
    "\ude00",
    "x" * 2000,
    "x" * 1999 + "y",
]


def keys(page: Page) -> list[str]:
    return [record.job.key for record in page.jobs]


def all_pages(case: StoreCase, tenant: str, limit: int, **of: object) -> list[JobRecord]:
    """Every page of one list; each but the last is full."""
    page = case.store.list_jobs(tenant, limit=limit, **of)
    jobs = list(page.jobs)
    while page.next_token is not None:
        assert len(page.jobs) == limit
        page = case.store.list_jobs(tenant, limit=limit, token=page.next_token, **of)
        jobs += page.jobs
    return jobs


# --- lists of jobs --------------------------------------------------------------------------------


def test_jobs_are_listed_newest_change_first(case):
    leases = {}
    for key in ("a", "b", "c", "d"):
        leases[key] = case.take(case.request(key)).lease
        case.tick()
    case.store.save(leases["c"], step("list"))
    case.tick()
    case.store.finish(leases["a"], success())
    case.tick()
    case.store.release(leases["d"])
    case.tick()
    case.store.cancel(leases["b"].job, "no")

    assert keys(case.store.list_jobs("acme")) == ["b", "d", "a", "c"]


def test_a_listed_job_is_the_whole_record(case):
    request = case.request()
    lease = case.take(request).lease
    case.store.finish(lease, success(b"42"))
    (listed,) = case.store.list_jobs("acme").jobs
    assert listed == case.store.get_job(request.job)
    assert listed.outcome == b"42"


def test_a_tenant_without_jobs_has_one_empty_page(case):
    case.take(case.request(tenant="other"))
    assert case.store.list_jobs("acme") == Page([], None)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
def test_pages_hold_every_job_once(case, limit):
    """Also where many changed at the same moment."""
    for key in range(7):
        case.take(case.request(str(key)))
        if key % 3 == 0:
            case.tick()
    whole = list(case.store.list_jobs("acme").jobs)

    assert len(whole) == 7
    assert all_pages(case, "acme", limit) == whole


def test_a_page_that_is_just_full_is_the_last(case):
    for key in ("a", "b"):
        case.take(case.request(key))
    assert case.store.list_jobs("acme", limit=2).next_token is None
    assert case.store.list_jobs("acme", limit=1).next_token is not None


def test_changes_between_pages_neither_repeat_nor_hide_other_jobs(case):
    leases = {}
    for key in "abcdef":
        leases[key] = case.take(case.request(key)).lease
        case.tick()
    first = case.store.list_jobs("acme", limit=2)
    assert keys(first) == ["f", "e"]

    case.take(case.request("g"))
    case.store.finish(leases["e"], success())
    case.store.finish(leases["f"], success())
    second = case.store.list_jobs("acme", limit=2, token=first.next_token)
    third = case.store.list_jobs("acme", limit=2, token=second.next_token)

    assert (keys(second), keys(third)) == (["d", "c"], ["b", "a"])


def test_a_page_token_is_good_more_than_once(case):
    for key in "abc":
        case.take(case.request(key))
        case.tick()
    token = case.store.list_jobs("acme", limit=1).next_token
    assert case.store.list_jobs("acme", token=token) == case.store.list_jobs("acme", token=token)


def test_jobs_are_listed_by_status_and_by_run(case):
    for key, run_id, end in [
        ("a", "r1", success()),
        ("b", "r1", None),
        ("c", "r2", success()),
        ("d", None, failure()),
        ("e", "r1", success()),
    ]:
        lease = case.take(case.request(key, run_id=run_id)).lease
        if end is not None:
            case.store.finish(lease, end)
        case.tick()
    of = case.store.list_jobs

    assert keys(of("acme", status=JobStatus.SUCCEEDED)) == ["e", "c", "a"]
    assert keys(of("acme", status=JobStatus.RUNNING)) == ["b"]
    assert keys(of("acme", status=JobStatus.FAILED)) == ["d"]
    assert keys(of("acme", status=JobStatus.PENDING)) == []
    assert keys(of("acme", run_id="r1")) == ["e", "b", "a"]
    assert keys(of("acme", run_id="r1", status=JobStatus.SUCCEEDED)) == ["e", "a"]
    assert keys(of("acme", run_id="r3")) == []
    one_by_one = all_pages(case, "acme", 1, run_id="r1", status=JobStatus.SUCCEEDED)
    assert [record.job.key for record in one_by_one] == ["e", "a"]


def test_what_has_expired_is_not_listed(case):
    kept = case.request("kept")
    case.take(kept)
    case.store.finish(case.take(case.request("gone")).lease, success())
    assert len(case.store.list_jobs("acme").jobs) == 2

    case.outlast_result()

    assert keys(case.store.list_jobs("acme")) == ["kept"]
    assert keys(case.store.list_jobs("acme", status=JobStatus.SUCCEEDED)) == []


@pytest.mark.parametrize(
    "token",
    ["", "x", "not a token", "é", "\ud83d", "AAAA", "[]", "e30=", "bmFuOmE6Yg==", "A" * 5000],
)
def test_a_bad_page_token_is_refused(case, token):
    case.take(case.request())
    with pytest.raises(InvalidCall, match="token"):
        case.store.list_jobs("acme", token=token)


def test_a_page_token_of_another_list_is_refused(case):
    for key in "abc":
        case.take(case.request(key))
        case.take(case.request(key, tenant="other"))
    token = case.store.list_jobs("acme", limit=1).next_token
    assert token is not None

    for tenant, of in [
        ("other", {}),
        ("acme", {"status": JobStatus.RUNNING}),
        ("acme", {"run_id": "r1"}),
        ("acme", {"run_id": ""}),
    ]:
        with pytest.raises(InvalidCall, match="another list"):
            case.store.list_jobs(tenant, token=token, **of)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_page_holds_at_least_one_job(case, limit):
    with pytest.raises(InvalidCall):
        case.store.list_jobs("acme", limit=limit)


# --- lists of locks -------------------------------------------------------------------------------


def test_locks_are_listed_held_and_expired_but_not_free(case):
    expired = case.request("expired")
    case.take(expired)
    case.outlast_lease()
    held = case.request("held")
    case.take(held)
    case.store.release(case.take(case.request("free")).lease)
    case.take(case.request("others", tenant="other"))

    locks = case.store.list_locks("acme")

    assert {lock.job.key: lock.expired for lock in locks} == {"expired": True, "held": False}
    assert all(lock == case.store.get_lock(expired.lock) for lock in locks if lock.expired)


# --- tenants and ids ------------------------------------------------------------------------------


def test_ids_that_read_alike_when_joined_are_different(case):
    one = case.request("k", tenant="a/b", task="c", scope=("d", "e"))
    two = case.request("k", tenant="a", task="b/c", scope=("d/e",))
    three = case.request("k", tenant="a", task="b/c", scope=("d", "e"))
    case.store.finish(case.take(one).lease, success(b"one"))

    case.take(two)

    assert case.store.get_lock(three.lock) is None
    answer = case.store.claim(one)
    assert isinstance(answer, Completed)
    assert answer.record.outcome == b"one"
    assert keys(case.store.list_jobs("a/b")) == ["k"]
    assert len(case.store.list_locks("a/b")) == 0
    assert len(case.store.list_locks("a")) == 1


def test_ids_may_hold_anything_and_come_back_as_they_were(case):
    for odd in ODD_IDS:
        request = case.request(odd, tenant=odd, task=odd, scope=(odd, odd), run_id=odd, owner=odd)
        request = replace(request, submission=odd)
        claimed = case.take(request)
        case.store.save(claimed.lease, step(odd, b"x"))

        record = case.store.get_job(request.job)
        lock = case.store.get_lock(request.lock)
        assert record is not None
        assert lock is not None
        assert (record.job, record.run_id, record.submission) == (request.job, odd, odd)
        assert (lock.tenant, lock.scope, lock.owner) == (odd, (odd, odd), odd)
        assert lock.job == request.job
        assert [c.name for c in case.store.load(claimed.lease)] == [odd]

    for odd in ODD_IDS:
        assert keys(case.store.list_jobs(odd)) == [odd]
        assert keys(case.store.list_jobs(odd, run_id=odd)) == [odd]
        assert [lock.tenant for lock in case.store.list_locks(odd)] == [odd]


@pytest.mark.parametrize("part", ["key", "task", "tenant"])
def test_two_different_ids_are_two_jobs(case, part):
    for odd in ODD_IDS:
        key = odd if part == "key" else "k"
        task = odd if part == "task" else "t"
        tenant = odd if part == "tenant" else "t"
        assert isinstance(case.store.claim(case.request(key, task=task, tenant=tenant)), Claimed)


def test_checkpoint_names_that_differ_are_different_steps(case):
    lease = case.take(case.request()).lease
    for number, name in enumerate(ODD_IDS):
        case.store.save(lease, step(name, b"%d" % number))
    assert [(c.name, c.blob) for c in case.store.load(lease)] == [
        (name, b"%d" % number) for number, name in enumerate(ODD_IDS)
    ]


def test_failed_submissions_are_told_apart_whatever_they_hold(case):
    case.store.finish(case.take(case.request(submission="a b")).lease, failure())
    for other in ("a", "b", "\ud83d\ude00"):
        claimed = case.take(case.request(submission=other))
        case.store.finish(claimed.lease, failure())
    assert isinstance(case.store.claim(case.request(submission="😀")), Claimed)


def test_nothing_done_for_one_tenant_is_seen_by_another(case):
    mine = case.request(tenant="acme", scope=("shared",))
    theirs = case.request(tenant="other", scope=("shared",))
    lease = case.take(mine).lease
    case.store.save(lease, step("list"))
    before = case.seen(mine)

    assert case.store.get_job(theirs.job) is None
    assert case.store.get_lock(theirs.lock) is None
    assert keys(case.store.list_jobs("other")) == []
    their_lease = case.take(theirs).lease
    assert case.store.load(their_lease) == []
    case.store.force_release(theirs.lock)
    case.store.cancel(theirs.job, "no")

    assert case.seen(mine) == before
    case.store.finish(lease, success())


# --- cleanup --------------------------------------------------------------------------------------


def test_cleanup_deletes_what_has_expired_up_to_a_limit(case):
    for key in "abc":
        lease = case.take(case.request(key)).lease
        case.store.save(lease, step("list"))
        case.store.finish(lease, success())
    case.outlast_result()

    assert case.store.cleanup(limit=2) == 2
    assert case.store.cleanup(limit=2) == 1
    assert case.store.cleanup(limit=2) == 0


def test_cleanup_never_touches_what_is_live(case):
    requests = {key: case.request(key) for key in ("done", "failed", "waiting", "running", "late")}
    leases = {key: case.take(request).lease for key, request in requests.items()}
    for lease in leases.values():
        case.store.save(lease, step("list"))
    case.outlast_lease()
    case.store.finish(leases["done"], success())
    case.store.finish(leases["failed"], failure())
    case.store.release(leases["waiting"])
    case.store.renew(leases["running"])
    unknown = case.request("cancelled")
    case.store.cancel(unknown.job, "no", in_advance=True)
    before = {key: case.seen(request) for key, request in requests.items()}
    assert [key for key in before if before[key].lock] == ["running", "late"]

    assert case.store.cleanup() == 0

    assert {key: case.seen(request) for key, request in requests.items()} == before
    assert case.store.get_job(unknown.job) is not None
    assert isinstance(case.store.claim(case.request("running")), Held)
    # Late, and yet nobody has taken over: the lock is still its holder's to renew.
    case.store.finish(leases["late"], success())


def test_a_job_runs_anew_after_cleanup_as_after_expiry(case):
    request = case.request()
    lease = case.take(request).lease
    case.store.save(lease, step("list"))
    case.store.finish(lease, success())
    case.outlast_result()
    assert case.store.cleanup() == 1

    claimed = case.take(case.request(payload="another"))

    assert (claimed.record.generation, claimed.has_checkpoints) == (1, False)
    assert claimed.lease.fence > lease.fence
    assert case.store.load(claimed.lease) == []
    with pytest.raises(LeaseLost):
        case.store.save(lease, step("late"))


def test_a_job_claimed_anew_is_not_cleaned_up_by_its_former_expiry(case):
    case.store.finish(case.take(case.request()).lease, success())
    case.outlast_result()
    claimed = case.take(case.request())
    case.store.save(claimed.lease, step("list"))

    assert case.store.cleanup() == 0

    assert [c.name for c in case.store.load(claimed.lease)] == ["list"]
