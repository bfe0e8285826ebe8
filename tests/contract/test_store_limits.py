"""Limits across workers: places that claims take, all or none, and that are free again."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from gwi_celery.errors import LeaseLost
from gwi_celery.jobs import JobRef
from gwi_celery.stores.base import Claimed, Completed, Held, JobStatus, Limited, Origin
from gwi_celery.stores.limits import LimitRef, LimitSetting, Rate
from tests.contract.stores import failure, step, success


def at_once(most, name="openai", **values):
    return LimitRef(name, values, max_running=most)


def a_rate(case, amount, name="api"):
    """In a time as long as a lease."""
    return LimitRef(name, {}, rate=Rate(amount, case.lease_ttl))


def ask(case, key, *limits, **of):
    return replace(case.request(key, **of), limits=limits, origin=Origin(task_id=key))


def take(case, key, *limits, **of):
    return case.take(ask(case, key, *limits, **of))


def names(case, limit):
    return sorted(place.job.key for place in case.store.list_places(limit.id))


def test_no_more_run_than_a_limit_allows_and_a_freed_place_is_the_next_ones(case):
    limit = at_once(3)
    running = [take(case, f"k{n}", limit) for n in range(3)]
    answer = case.store.claim(ask(case, "late", limit))
    assert isinstance(answer, Limited), answer
    assert (answer.held, answer.limit.text) == (3, "openai")
    assert 0 < answer.retry_after <= case.lease_ttl
    assert case.store.get_lock(ask(case, "late").lock) is None, "it holds nothing while it waits"
    assert names(case, limit) == ["k0", "k1", "k2"]
    case.store.finish(running[1].lease, success())
    assert isinstance(case.store.claim(ask(case, "late", limit)), Claimed)
    assert names(case, limit) == ["k0", "k2", "late"]
    assert isinstance(case.store.claim(ask(case, "later", limit)), Limited)


def test_what_waits_is_recorded_once_and_costs_no_attempt(case):
    limit = at_once(1, "{tenant_id}", tenant_id="acme")
    first = take(case, "k1", limit)
    waiting = ask(case, "k2", limit)
    for _ in range(2):
        assert isinstance(case.store.claim(waiting), Limited)
        case.tick()
    record = case.store.get_job(waiting.job)
    assert (record.status, record.attempt) == (JobStatus.WAITING, 0)
    waits = record.waits
    assert (waits.kind, waits.what, waits.holder) == ("limit", "acme", "1 of 1 held")
    assert waits.limit_id == limit.id
    case.store.release(first.lease)
    begun = case.take(waiting)
    assert (begun.record.attempt, begun.record.waits) == (1, None)


@pytest.mark.parametrize("end", ["finish", "release", "force", "cancel"])
def test_however_a_job_ends_its_place_is_free(case, end):
    limit = at_once(1)
    running = take(case, "k1", limit)
    match end:
        case "finish":
            case.store.finish(running.lease, failure())
        case "release":
            case.store.release(running.lease)
        case "force":
            case.store.force_release(running.lease.lock)
        case "cancel":
            case.store.cancel(running.lease.job, "enough")
    assert names(case, limit) == []
    take(case, "k2", limit)


def test_a_renewal_keeps_the_place_and_a_silent_holder_has_lost_both(case):
    limit = at_once(1)
    silent = take(case, "k1", limit)
    for write in (case.store.renew, lambda lease: case.store.save(lease, step("s"))):
        case.advance(case.lease_ttl * 0.7)
        write(silent.lease)
    assert isinstance(case.store.claim(ask(case, "k2", limit)), Limited), "it was renewed"
    case.outlast_lease()
    second = take(case, "k2", limit)
    for write in (
        case.store.renew,
        lambda lease: case.store.save(lease, step("s2")),
        lambda lease: case.store.finish(lease, success()),
    ):
        with pytest.raises(LeaseLost):
            write(silent.lease)
    case.store.release(silent.lease)
    assert names(case, limit) == ["k2"], "it frees no other's place"
    again = replace(ask(case, "k1", limit), redelivered=True)
    assert isinstance(case.store.claim(again), Limited), "its redelivery waits as any other"
    case.store.renew(second.lease)


def test_one_that_is_late_keeps_its_place_while_nobody_needs_it(case):
    limit = at_once(2)
    late = take(case, "k1", limit)
    case.outlast_lease()
    take(case, "k2", limit)
    case.store.renew(late.lease)
    assert names(case, limit) == ["k1", "k2"]
    assert isinstance(case.store.claim(ask(case, "k3", limit)), Limited)


def test_a_job_that_lost_its_worker_gets_its_own_place_back(case):
    limit = at_once(1)
    asked = ask(case, "k1", limit)
    lost = case.take(asked)
    same = case.store.claim(replace(asked, redelivered=True))
    assert isinstance(same, Claimed)
    assert same.lease.fence == lost.lease.fence, "its answer was lost: it is the same claim"
    assert isinstance(case.store.claim(replace(asked, nonce="another", redelivered=True)), Held), (
        "its lease runs yet"
    )
    case.outlast_lease()
    again = case.take(replace(asked, nonce="third", redelivered=True))
    assert (again.record.attempt, again.record.crashes) == (2, 1)
    assert names(case, limit) == ["k1"]
    case.store.finish(again.lease, success())
    take(case, "k2", limit)


def test_a_job_that_moves_to_another_lock_takes_its_place_along(case):
    limit = at_once(1)
    take(case, "k1", limit, scope=("first",))
    case.outlast_lease()
    take(case, "k1", limit, scope=("second",))
    assert names(case, limit) == ["k1"]
    assert isinstance(case.store.claim(ask(case, "k2", limit)), Limited)


def test_it_takes_all_its_places_or_none(case):
    narrow, wide, rate = at_once(1, "narrow"), at_once(5, "wide"), a_rate(case, 5)
    take(case, "k1", narrow)
    for limits in ((wide, rate, narrow), (narrow, rate, wide)):
        answer = case.store.claim(ask(case, "k2", *limits))
        assert isinstance(answer, Limited)
        assert answer.limit.text == "narrow"
    assert names(case, wide) == names(case, rate) == []


def test_limits_of_one_text_are_not_one_limit(case):
    take(case, "k1", at_once(1, "{tenant_id}", tenant_id="openai"))
    take(case, "k2", at_once(1, "{run_id}", run_id="openai"))
    take(case, "k3", at_once(1, "{tenant_id}", tenant_id="acme"), tenant="other")
    take(case, "k4", at_once(1, "openai"))
    assert isinstance(case.store.claim(ask(case, "k5", at_once(1, "openai"))), Limited)


def test_a_limit_holds_across_tenants_and_tasks(case):
    take(case, "k1", at_once(1), tenant="acme")
    other = ask(case, "k1", at_once(1), tenant="globex", task="other")
    assert isinstance(case.store.claim(other), Limited)


def test_a_rate_counts_starts_however_they_end(case):
    rate = a_rate(case, 3)
    began = time.monotonic()
    for n in range(3):
        case.store.finish(take(case, f"k{n}", rate).lease, success())
    asked = ask(case, "late", rate)
    answer = case.store.claim(asked)
    assert isinstance(answer, Limited)
    spent = time.monotonic() - began
    assert case.lease_ttl - spent - 1 <= answer.retry_after <= case.lease_ttl
    assert len(case.store.list_places(rate.id)) == 3
    assert case.store.get_job(asked.job).waits.holder.endswith("are used up")
    case.advance(case.lease_ttl * 1.01)
    assert case.store.list_places(rate.id) == []
    for n in range(3):
        take(case, f"m{n}", rate)
    assert isinstance(case.store.claim(ask(case, "late", rate)), Limited)


def test_a_duplicate_of_a_finished_job_needs_no_place(case):
    limit, rate = at_once(1), a_rate(case, 1)
    done = ask(case, "k1", limit, rate)
    case.store.finish(case.take(done).lease, success())
    take(case, "k2", limit)
    assert isinstance(case.store.claim(replace(done, nonce="again")), Completed)


def test_of_many_places_a_claim_finds_a_free_one(case):
    limit = at_once(40)
    for n in range(40):
        if n == 30:  # with half of them taken any look finds one
            break
        answer = case.store.claim(ask(case, f"k{n}", limit))
        assert isinstance(answer, Claimed), n
    assert len(case.store.list_places(limit.id)) == 30
    assert len(case.store.list_places(limit=7)) == 7


def test_what_an_operator_sets_holds_instead_of_what_the_code_says(case):
    limit = at_once(3, "{tenant_id}", tenant_id="acme")
    setting = LimitSetting("{tenant_id}", {}, 1, None, time.time(), "ops")
    alone = replace(setting, values={"tenant_id": "acme"}, max_running=2)
    for n in range(2):
        take(case, f"k{n}", limit)
    case.store.set_limit(setting)
    assert isinstance(case.store.claim(ask(case, "k2", limit)), Limited), "two run yet"
    case.store.set_limit(alone)
    assert case.store.limit_settings() == {setting.id: setting, alone.id: alone}
    assert isinstance(case.store.claim(ask(case, "k2", limit)), Limited)
    case.store.set_limit(replace(alone, max_running=1))
    answer = case.store.claim(ask(case, "k2", limit))
    assert isinstance(answer, Limited)
    assert answer.held == 2, "all that run, though one may"
    case.store.set_limit(replace(alone, max_running=4))
    take(case, "k2", limit)
    take(case, "k3", limit)
    assert isinstance(case.store.claim(ask(case, "k4", limit)), Limited)
    take(case, "other", at_once(3, "{tenant_id}", tenant_id="globex"))
    assert case.store.clear_limit(alone.id)
    assert not case.store.clear_limit(alone.id)
    assert list(case.store.limit_settings()) == [setting.id]


def test_while_a_deployment_lowers_a_number_no_more_run_than_the_former_one_allows(case):
    """Workers of both run beside each other; the store knows only what operators set."""
    former, lowered = at_once(6), at_once(2)
    new = case.another()
    begun = {6: [], 2: []}
    for n in range(16):
        limit = lowered if n % 2 else former
        store = new if n % 2 else case.store
        answer = store.claim(ask(case, f"k{n}", limit))
        if isinstance(answer, Claimed):
            begun[limit.places].append(answer.lease)
    assert len(begun[2]) <= 2
    assert len(begun[6]) + len(begun[2]) == 6
    for lease in begun[6]:
        case.store.finish(lease, success())
    answers = [new.claim(ask(case, f"late{n}", lowered)) for n in range(4)]
    more = sum(isinstance(answer, Claimed) for answer in answers)
    assert len(begun[2]) + more == 2, "once the last of the former workers' jobs has ended"


def test_rates_that_are_kept_elsewhere_are_asked_only_by_what_would_run(case):
    asked = []

    def rates(limits):
        asked.append([limit.text for limit in limits])
        return Limited(limits[0], 5, 3.0) if len(asked) == 1 else None

    limit, rate = at_once(1), a_rate(case, 5)
    take(case, "k1", limit)
    both = replace(ask(case, "k2", limit, rate), rates=rates)
    assert isinstance(case.store.claim(both), Limited)
    assert asked == []
    only = replace(ask(case, "k3", rate), rates=rates)
    answer = case.store.claim(only)
    assert isinstance(answer, Limited)
    assert answer.retry_after == 3.0
    assert isinstance(case.store.claim(only), Claimed)
    assert asked == [["api"], ["api"]]
    assert case.store.list_places(rate.id) == []


def test_cleanup_leaves_the_places_of_those_that_run(case):
    limit, rate = at_once(2), a_rate(case, 5)
    silent = take(case, "k1", limit, rate)
    case.store.force_release(silent.lease.lock)
    take(case, "k2", limit)
    case.store.cleanup()
    assert names(case, limit) == ["k2"]
    assert case.store.list_places(limit.id)[0].job == JobRef("acme", "review", "k2")


def test_of_many_threads_no_more_get_a_place_than_there_are(case):
    """Each on a handle of its own, as processes have them."""
    limit, rate = at_once(3), a_rate(case, 3)
    stores = [case.another() for _ in range(4)]
    requests = [ask(case, f"k{n}", *((limit,) if n % 2 else (rate,))) for n in range(12)]

    def claim(n):
        return stores[n % 4].claim(requests[n])

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(claim, range(12)))
    claimed = [isinstance(answer, Claimed) for answer in answers]
    assert (sum(claimed[1::2]), sum(claimed[::2])) == (3, 3)
    assert all(isinstance(answer, Claimed | Limited) for answer in answers)
