"""A limit that operators change while jobs run: those that hold it count, whatever it allowed them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from gwi_celery.errors import LeaseLost
from gwi_celery.stores.base import Claimed, Limited
from gwi_celery.stores.limits import LimitRef, LimitSetting, Rate
from tests.contract.stores import success


def at_once(most, name="openai", **values):
    return LimitRef(name, values, max_running=most)


def change(case, limit, *, max_running=None, rate=None, of=None, coded=0):
    setting = LimitSetting(limit.name, of or {}, max_running, rate, time.time(), "ops", coded)
    case.store.set_limit(setting)


def ask(case, key, limit, **of):
    return replace(case.request(key, **of), limits=(limit,))


def take(case, keys, limit):
    return [taken(case, ask(case, key, limit)).lease for key in keys]


def taken(case, request):
    """Of more than 16 places a claim on Firestore looks at 16: it may miss the last that are free."""
    for _ in range(100):
        answer = case.store.claim(request)
        if isinstance(answer, Claimed):
            break
    assert isinstance(answer, Claimed), answer
    return answer


def finish(case, leases):
    for lease in leases:
        case.store.finish(lease, success())


def refused(case, limit):
    answer = case.store.claim(ask(case, "one too many", limit))
    assert isinstance(answer, Limited), answer
    return answer


OWN = {"tenant_id": "acme"}
#: The one way in which the code itself says 2 in the end, but not at first.
DEPLOYED = "set, deployed, cleared"
#: How a limit of 8 becomes one of 2: what the code says, what is set before, and what is done then.
#: What is set is (number, for which values); 0 is no number: the setting is cleared.
LOWERED = {
    "below the code's": (8, [], [(2, {})]),
    "twice": (2, [(8, {})], [(5, {}), (2, {})]),
    "for some values": (2, [(8, {})], [(2, OWN)]),
    "cleared": (2, [(8, {})], [(0, {})]),
    "cleared for some values": (8, [(2, {}), (8, OWN)], [(0, OWN)]),
    "raised and lowered": (8, [], [(2, {}), (12, {}), (2, {})]),
    DEPLOYED: (8, [], [(2, {}), (0, {})]),
}


def test_however_a_limit_is_lowered_all_that_run_count(case):
    for way, (coded, before, after) in LOWERED.items():
        limit = at_once(coded, f"{way} {{tenant_id}}", **OWN)

        def carry_out(steps, limit=limit, way=way, coded=coded):
            for most, of in steps:
                if most:
                    known = coded if way == DEPLOYED else 0  # as gwi_celery.limits.set has it
                    change(case, limit, max_running=most, of=of, coded=known)
                else:
                    case.store.clear_limit(replace(limit, values=of).id)

        carry_out(before)
        leases = take(case, [f"{way} {n}" for n in range(8)], limit)
        refused(case, limit)
        carry_out(after)
        limit = replace(limit, max_running=2 if way == DEPLOYED else coded)
        assert refused(case, limit).held == 8, way
        finish(case, leases[:6])
        refused(case, limit)
        finish(case, leases[6:7])
        leases += take(case, [f"{way} late"], limit)
        refused(case, limit)
        finish(case, leases[7:])
        take(case, [f"{way} later {n}" for n in range(2)], limit)
        refused(case, limit)


def test_of_a_limit_with_many_places_those_that_are_left_count(case):
    limit = at_once(50)
    leases = take(case, [f"k{n}" for n in range(40)], limit)
    change(case, limit, max_running=20)
    assert refused(case, limit).held == 40
    finish(case, leases[:20])
    refused(case, limit)
    finish(case, leases[20:25])
    leases += take(case, [f"late{n}" for n in range(5)], limit)
    refused(case, limit)
    change(case, limit, max_running=22)
    leases += take(case, ["two", "more"], limit)
    refused(case, limit)
    finish(case, leases[25:])
    take(case, [f"later{n}" for n in range(22)], limit)
    refused(case, limit)


def test_those_that_fell_silent_make_room_as_far_as_it_is_needed(case):
    limit = at_once(24)
    leases = take(case, [f"k{n}" for n in range(24)], limit)
    change(case, limit, max_running=5)
    refused(case, limit)
    case.outlast_lease()
    kept = case.store.renew(leases[23])
    late = take(case, ["late"], limit)
    others = leases[:23]
    writable = []
    for lease in others:
        try:
            writable.append(case.store.renew(lease))
        except LeaseLost:
            continue
    assert len(writable) == 3, "five may run: the one that was renewed, the late one, and three"
    refused(case, limit)
    finish(case, [kept, *late, *writable])
    take(case, [f"later{n}" for n in range(5)], limit)
    refused(case, limit)


def test_one_that_lost_its_worker_goes_on_in_a_limit_lowered_to_one(case):
    limit = at_once(20)
    leases = take(case, [f"k{n}" for n in range(20)], limit)
    change(case, limit, max_running=1)
    refused(case, limit)
    finish(case, leases[:19])
    refused(case, limit)
    case.outlast_lease()
    again = case.take(replace(ask(case, "k19", limit), redelivered=True))
    assert again.record.attempt == 2
    refused(case, limit)
    finish(case, [again.lease])
    take(case, ["next"], limit)
    refused(case, limit)


def test_of_many_that_claim_a_lowered_limit_at_once_no_more_begin_than_may(case):
    limit = at_once(24)
    leases = take(case, [f"k{n}" for n in range(24)], limit)
    change(case, limit, max_running=6)
    finish(case, leases[4:])
    stores = [case.another() for _ in range(4)]
    requests = [ask(case, f"late{n}", limit) for n in range(8)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: stores[n % 4].claim(requests[n]), range(8)))
    assert [isinstance(answer, Claimed) for answer in answers].count(True) == 2, answers


def test_starts_beyond_a_lowered_rate_count_while_its_time_runs(case):
    ttl = case.lease_ttl
    limit = LimitRef("api", {}, rate=Rate(30, ttl))
    take(case, [f"k{n}" for n in range(10)], limit)
    case.advance(ttl / 2)
    take(case, [f"m{n}" for n in range(6)], limit)
    change(case, limit, rate=Rate(8, ttl))
    answer = refused(case, limit)
    assert answer.held == 16
    assert 0.4 * ttl < answer.retry_after < 0.6 * ttl, "nine of the ten have to be over"
    case.advance(ttl * 0.55)
    take(case, ["two", "more"], limit)
    refused(case, limit)
    case.advance(ttl * 0.5)
    take(case, [f"n{n}" for n in range(6)], limit)
    refused(case, limit)


@pytest.mark.parametrize(("first", "then"), [(1.0, 0.2), (0.2, 1.0)], ids=["shorter", "longer"])
def test_the_time_of_a_rate_is_the_one_in_force(case, first, then):
    ttl = case.lease_ttl
    limit = LimitRef("api", {}, rate=Rate(3, ttl * first))
    take(case, [f"k{n}" for n in range(3)], limit)
    change(case, limit, rate=Rate(3, ttl * then))
    case.advance(ttl * then * 0.9)
    left = refused(case, limit).retry_after
    assert 0 < left < ttl * then * 0.11
    case.advance(ttl * then * 0.15)
    take(case, [f"m{n}" for n in range(3)], limit)
    refused(case, limit)
