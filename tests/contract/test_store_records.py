"""What every store's records say for people, and how jobs are found by it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gwi_celery.errors import InvalidCall, LeaseLost
from gwi_celery.stores.base import (
    AttemptEnd,
    Cancelled,
    ClaimRequest,
    Held,
    JobFilter,
    JobStatus,
    Origin,
    Outcome,
    Progress,
    Replay,
    Wait,
)
from gwi_celery.stores.history import KEPT
from tests.contract.stores import StoreCase, failure, step, success


def call(case: StoreCase, key: str = "k", **options) -> ClaimRequest:
    origin = {
        "task_id": f"id-{key}",
        "queue": "celery",
        "parent_id": None,
        "root_id": f"id-{key}",
        "labels": {},
        "code_version": "v7",
        "envelope": b'{"kwargs": {}}',
    }
    origin |= {name: options.pop(name) for name in list(options) if name in origin}
    made = case.request(key, **{"owner": "host:1 id", "submission": f"id-{key}", **options})
    return replace(made, origin=Origin(**origin))


# --- what a record keeps --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 30_000, 1_000_000])
def test_a_record_keeps_where_its_call_comes_from(case, size):
    asked = call(case, labels={"customer": "7"}, parent_id="p", envelope=b"e" * size)
    claimed = case.take(asked)
    case.store.finish(claimed.lease, success())
    record = case.store.get_job(asked.job)
    assert replace(record.origin, envelope=None) == replace(asked.origin, envelope=None)
    assert (record.worker, record.lock) == ("host:1", asked.lock)
    assert case.another().get_envelope(asked.job) == b"e" * size


def test_another_submission_takes_the_place_of_the_call(case):
    first = call(case, labels={"customer": "7"}, envelope=b"e" * 30_000)
    case.store.finish(case.take(first).lease, failure())
    again = call(case, submission="s2", task_id="id2", labels={"customer": "8"}, envelope=b"new")
    case.take(again)
    assert case.store.get_envelope(first.job) == b"new"
    assert case.store.find_jobs(JobFilter(label=("customer", "7"))).jobs == []
    assert len(case.store.find_jobs(JobFilter(label=("customer", "8"))).jobs) == 1
    for task_id in ("id-k", "id2"):  # both calls were for this job
        found = case.store.find_jobs(JobFilter(task_id=task_id)).jobs
        assert [record.job for record in found] == [first.job]


def test_a_claim_without_an_origin_leaves_what_is_known(case):
    asked = call(case)
    case.store.release(case.take(asked).lease)
    case.take(case.request(submission="another"))
    assert case.store.get_job(asked.job).origin.task_id == "id-k"
    assert case.store.get_envelope(asked.job) == asked.origin.envelope


def test_the_log_of_attempts_says_how_each_ended(case):
    lost = case.take(call(case))
    case.outlast_lease()
    retried = case.take(call(case, owner="host:2 id"))
    end = AttemptEnd("retried", "OSError", "no route\nto host", retry_at=5.0)
    case.store.release(retried.lease, end)
    waiting = case.store.get_job(retried.record.job)
    assert (waiting.status, waiting.error_type, waiting.error) == (
        *(JobStatus.PENDING, "OSError", "no route"),
    )
    assert (waiting.waits.kind, waiting.waits.what, waiting.waits.until) == (
        *("retry", "OSError: no route", 5.0),
    )
    running = case.take(call(case, owner="host:3 id"))
    assert [past.ended is None for past in running.record.attempts] == [False, False, True]
    failed = Outcome(JobStatus.FAILED, b"x", AttemptEnd("failed", "ValueError", "bad"))
    case.store.finish(running.lease, failed)

    record = case.store.get_job(running.record.job)
    assert [
        (past.number, past.worker, past.end.how, past.end.error_type) for past in record.attempts
    ] == [
        (1, "host:1", "lost", ""),
        (2, "host:2", "retried", "OSError"),
        (3, "host:3", "failed", "ValueError"),
    ]
    assert [past.fence for past in record.attempts] == [
        each.lease.fence for each in (lost, retried, running)
    ]
    assert all(past.began <= past.ended for past in record.attempts)
    assert (record.error_type, record.error, record.waits) == ("ValueError", "bad", None)

    case.store.finish(case.take(call(case, submission="s2")).lease, success())
    record = case.store.get_job(running.record.job)
    assert (record.error_type, record.error) == ("", "")
    assert record.attempts[-1].generation == 2


def test_only_the_last_attempts_are_kept_in_full(case):
    for _ in range(KEPT + 3):
        case.store.release(case.take(call(case)).lease)
    record = case.store.get_job(call(case).job)
    assert [past.number for past in record.attempts] == list(range(4, KEPT + 4))
    assert record.attempts_forgotten == 3


def test_progress_is_fenced_and_renews(case):
    claimed = case.take(call(case))
    lease = case.store.progress(claimed.lease, Progress(3, 10, "parsing"))
    record = case.store.get_job(claimed.record.job)
    assert (record.progress.done, record.progress.total, record.progress.text) == (3, 10, "parsing")
    case.advance(case.lease_ttl * 0.7)
    lease = case.store.progress(lease, Progress(4))
    case.advance(case.lease_ttl * 0.7)
    assert isinstance(case.store.claim(call(case)), Held)
    case.store.save(lease, step("a"))
    case.outlast_lease()
    case.take(call(case))
    with pytest.raises(LeaseLost):
        case.store.progress(lease, Progress(5))


# --- what waits -----------------------------------------------------------------------------------


def test_a_job_that_waits_for_a_lock_has_a_record(case):
    holder = case.take(call(case, "holder", scope=("run", "r1")))
    waiter = call(case, "waiter", scope=("run", "r1"), labels={"customer": "7"})
    assert isinstance(case.store.claim(waiter), Held)

    record = case.store.get_job(waiter.job)
    assert (record.status, record.attempt, record.lock) == (JobStatus.WAITING, 0, waiter.lock)
    assert (record.waits.kind, record.waits.what) == ("lock", "run:r1")
    assert (record.waits.holder, record.waits.holder_job) == ("host:1 id", holder.record.job)
    assert record.waits.since < record.waits.until
    found = case.store.find_jobs(JobFilter(status=JobStatus.WAITING)).jobs
    assert [each.job.key for each in found] == ["waiter"]
    assert case.store.get_envelope(waiter.job) == waiter.origin.envelope

    case.store.finish(holder.lease, success())
    claimed = case.take(replace(waiter, redelivered=True, nonce="later"))
    assert (claimed.record.attempt, claimed.record.crashes) == (1, 0)
    assert (claimed.record.generation, claimed.record.waits) == (1, None)
    assert claimed.record.created_at == record.created_at
    assert claimed.record.fingerprint == waiter.fingerprint


def test_a_job_that_only_waited_is_bound_to_no_payload_and_is_forgotten(case):
    case.take(call(case, "holder", scope=("run", "r1")))
    asked = call(case, scope=("run", "r1"), payload={"n": 1})
    assert isinstance(case.store.claim(asked), Held)
    other = call(case, scope=("other",), payload={"n": 2}, submission="s2", task_id="t2")
    with pytest.raises(InvalidCall, match="unknown"):
        case.store.put_value(asked.job, "v", b"x", expected_version=0)
    claimed = case.take(other)
    assert claimed.record.origin.task_id == "t2"
    case.store.finish(claimed.lease, success())

    case.take(call(case, "holder2", scope=("run", "r2")))
    waiter = call(case, "w", scope=("run", "r2"))
    assert isinstance(case.store.claim(waiter), Held)
    case.advance(case.result_ttl * 1.1)
    assert case.store.get_job(waiter.job) is None
    case.store.cleanup()
    assert case.take(waiter).record.attempt == 1


def test_a_job_that_was_handed_back_waits_on(case):
    handed_back = case.take(call(case, scope=("run", "r1")))
    lease = case.store.save(handed_back.lease, step("a"))
    case.store.release(lease)
    case.take(call(case, "holder", scope=("run", "r1")))
    assert isinstance(case.store.claim(call(case, scope=("run", "r1"))), Held)
    record = case.store.get_job(lease.job)
    assert (record.status, record.attempt) == (JobStatus.WAITING, 1)
    case.outlast_lease()
    claimed = case.take(call(case, scope=("run", "r1")))
    assert (claimed.record.attempt, claimed.record.crashes) == (2, 0)
    assert [c.name for c in case.store.load(claimed.lease)] == ["a"]


def test_no_wait_is_written_over_what_runs_or_has_ended(case):
    running = case.take(call(case))
    assert isinstance(case.store.claim(call(case)), Held)
    case.store.wait(call(case), Wait("limit", "openai"))
    assert case.store.get_job(running.record.job).status is JobStatus.RUNNING
    case.store.finish(running.lease, success())
    case.store.wait(call(case), Wait("limit", "openai"))
    assert case.store.get_job(running.record.job).status is JobStatus.SUCCEEDED


def test_a_wait_for_a_limit_is_recorded_and_can_be_cancelled(case):
    asked = call(case)
    case.store.wait(asked, Wait("limit", "openai", until=1e9))
    record = case.store.get_job(asked.job)
    assert (record.status, record.waits.kind, record.waits.what) == (
        *(JobStatus.WAITING, "limit", "openai"),
    )
    case.store.wait(asked, Wait("limit", "tenant"))
    assert case.store.get_job(asked.job).waits.what == "tenant"
    assert case.store.cancel(asked.job, "enough")
    assert case.store.get_job(asked.job).waits is None
    assert isinstance(case.store.claim(asked), Cancelled)


def test_what_a_cancelled_task_has_called_never_begins(case):
    case.store.bar_calls_of("acme", "parent", "not yet known \ud800")
    case.store.bar_calls_of("acme", "parent", "wrong customer")
    child = call(case, "child", parent_id="parent")
    answer = case.store.claim(child)
    assert isinstance(answer, Cancelled)
    assert answer.record.outcome == b"its caller was cancelled: wrong customer"
    assert answer.record.origin.parent_id == "parent"
    assert isinstance(case.store.claim(replace(child, redelivered=True)), Cancelled)
    assert case.store.get_lock(child.lock) is None

    case.take(call(case, "child", tenant="other", parent_id="parent"))
    case.take(call(case, "another", parent_id="else"))
    replayed = replace(child, replay=Replay(2), redelivered=True)
    assert case.take(replayed).record.generation == 2


def test_what_has_begun_is_not_barred(case):
    child = call(case, "child", parent_id="parent")
    case.store.release(case.take(child).lease)
    case.store.bar_calls_of("acme", "parent", "enough")
    assert case.take(child).record.attempt == 2


# --- finding --------------------------------------------------------------------------------------


def fill(case: StoreCase) -> None:
    """Six jobs of two tenants; the last is the newest."""
    for n in range(6):
        asked = call(
            case,
            f"k{n}",
            tenant="acme" if n < 4 else "other",
            task="review" if n % 2 else "scan",
            run_id=f"r{n // 3}",
            labels={"customer": str(n % 3), "plan": "free"},
            parent_id="id-k0" if n in (1, 5) else None,
        )
        lease = case.take(asked).lease
        case.tick()
        if n in (1, 4):
            end = AttemptEnd("failed", "ValueError", f"bad {n}")
            case.store.finish(lease, Outcome(JobStatus.FAILED, b"large" * 1000, end))
        elif n == 3:
            case.store.finish(lease, success())


WANTED = {
    "all": (JobFilter(), "543210"),
    "tenant": (JobFilter(tenant="acme"), "3210"),
    "task": (JobFilter(task="scan"), "420"),
    "task of a tenant": (JobFilter(tenant="acme", task="scan"), "20"),
    "status": (JobFilter(status=JobStatus.FAILED), "41"),
    "status of a tenant": (JobFilter(tenant="other", status=JobStatus.FAILED), "4"),
    "run": (JobFilter(run_id="r0"), "210"),
    "label": (JobFilter(label=("customer", "1")), "41"),
    "label of a tenant": (JobFilter(tenant="acme", label=("plan", "free")), "3210"),
    "error": (JobFilter(error_type="ValueError"), "41"),
    "error of a tenant": (JobFilter(tenant="acme", error_type="ValueError"), "1"),
    "call": (JobFilter(task_id="id-k2"), "2"),
    "call and label": (JobFilter(task_id="id-k2", label=("customer", "2")), "2"),
    "call of another label": (JobFilter(task_id="id-k2", label=("customer", "1")), ""),
    "children": (JobFilter(parent_id="id-k0"), "51"),
    "all at once": (
        JobFilter(
            tenant="acme",
            task="review",
            status=JobStatus.FAILED,
            run_id="r0",
            label=("customer", "1"),
            error_type="ValueError",
        ),
        "1",
    ),
    "none": (JobFilter(tenant="nobody"), ""),
}


def test_jobs_are_found_by_each_filter_in_pages_newest_first(case):
    fill(case)
    for what, (wanted, expected) in WANTED.items():
        found, token = "", None
        while True:
            page = case.store.find_jobs(wanted, limit=2, token=token)
            found += "".join(record.job.key[1:] for record in page.jobs)
            assert all(record.outcome is None for record in page.jobs)
            token = page.next_token
            if token is None:
                break
            assert len(page.jobs) == 2
        assert found == expected, what
    newest = case.store.find_jobs(JobFilter(), limit=3)
    moment = newest.jobs[-1].created_at
    assert len(case.store.find_jobs(JobFilter(since=moment)).jobs) == 3
    assert len(case.store.find_jobs(JobFilter(before=moment)).jobs) == 3
    with pytest.raises(InvalidCall, match="another list"):
        case.store.find_jobs(JobFilter(tenant="acme"), token=newest.next_token)
    for wrong in (0, 2**31, 2**63):
        with pytest.raises(InvalidCall, match="ask for 1 to"):
            case.store.find_jobs(JobFilter(), limit=wrong)
    assert case.store.find_jobs(JobFilter(since=1e30)).jobs == []
    assert len(case.store.find_jobs(JobFilter(before=1e30)).jobs) == 6
    case.take(call(case, "k6", run_id=""))
    (found,) = case.store.find_jobs(JobFilter(run_id="")).jobs
    assert found.job.key == "k6", "an empty text is a value like any other"


def test_a_job_keeps_its_place_whatever_becomes_of_it(case):
    fill(case)
    page = case.store.find_jobs(JobFilter(), limit=3)
    for record in case.store.find_jobs(JobFilter(status=JobStatus.RUNNING)).jobs:
        case.store.cancel(record.job, "enough")
    rest = case.store.find_jobs(JobFilter(), limit=3, token=page.next_token)
    assert [record.job.key for record in rest.jobs] == ["k2", "k1", "k0"]
