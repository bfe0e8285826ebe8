"""What limits cost on Firestore, in round trips and in documents, and commits whose answer was lost."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from gwi_celery.stores.base import Claimed, Limited, Origin
from gwi_celery.stores.firestore import FirestoreStore, limit_settings
from gwi_celery.stores.limits import LimitRef, LimitSetting, Rate
from tests.contract.stores import success
from tests.firestore.claims import TTL, request, take
from tests.firestore_wire import (
    COMMIT,
    COUNT,
    LATE,
    LOST_ANSWER,
    LOST_REQUEST,
    QUERY,
    READ,
    Wire,
)

pytestmark = [pytest.mark.emulator, pytest.mark.usefixtures("firestore_emulator")]

THREE = LimitRef("{tenant_id}", {"tenant_id": "acme"}, max_running=3)
RATE = LimitRef("openai", {}, rate=Rate(5, TTL))


def test_a_free_place_costs_no_round_trip(wire: Wire, store: FirestoreStore) -> None:
    limits = [THREE, replace(THREE, name="all", values={})]
    store.finish(take(store, limits=limits).lease, success())
    assert wire.calls == [READ, COMMIT, COMMIT], "what operators set is read once in ten seconds"
    wire.calls.clear()
    for n in range(3):
        store.finish(take(store, key=f"one after another {n}", limits=limits).lease, success())
    running = [take(store, key=f"at once {n}", limits=limits).lease for n in range(3)]
    for lease in running:
        store.finish(store.renew(lease), success())
    assert wire.calls == [COMMIT] * 15


def test_what_another_process_took_costs_one_look(wire: Wire, store: FirestoreStore) -> None:
    other = wire.store()
    for n in range(2):
        take(other, key=f"other {n}", limits=[THREE])
    store.limit_settings()
    take(store, limits=[THREE])
    wire.calls.clear()
    with wire.counting() as calls:
        assert isinstance(store.claim(request("late", limits=[THREE])), Limited)
    assert calls[-1] == READ, "what it guessed without looking is refused at most once"
    assert len(calls) <= 2
    asked = request("late", limits=[THREE], origin=Origin(task_id="t"))
    with wire.counting() as calls:
        assert isinstance(store.claim(asked), Limited)
    assert calls == [READ, COMMIT], "the first wait: one write"
    with wire.counting() as calls:
        assert isinstance(store.claim(replace(asked, redelivered=True)), Limited)
    assert calls == [READ]
    other.close()


def test_a_holder_that_runs_for_long_is_looked_up(wire: Wire, store: FirestoreStore) -> None:
    lease = take(store, limits=[replace(THREE, max_running=1)]).lease
    for _ in range(3):
        wire.advance(TTL / 2)
        lease = store.renew(lease)
    with wire.counting() as calls:
        answer = store.claim(request("late", limits=[replace(THREE, max_running=1)]))
    assert isinstance(answer, Limited)
    assert TTL * 0.9 < answer.retry_after <= TTL
    assert calls[-2:] == [READ, READ], "the place and the lock"


def test_of_a_thousand_places_a_few_are_read(wire: Wire, store: FirestoreStore) -> None:
    limit = replace(THREE, max_running=1000)
    take(store, limits=[limit])
    wire.requests.clear()
    take(store, key="k2", limits=[limit], redelivered=True)
    (read,) = (sent for sent in wire.requests if hasattr(sent, "documents"))
    assert len(read.documents) < 20


def test_a_rate_costs_a_look_at_times(wire: Wire, store: FirestoreStore) -> None:
    store.limit_settings()
    with wire.counting() as calls:
        for n in range(5):
            take(store, key=f"k{n}", limits=[RATE])
        assert isinstance(store.claim(request("late", limits=[RATE])), Limited)
    assert calls.count(COMMIT) == 5, "each is one commit"
    assert calls.count(READ) <= 3


@pytest.mark.parametrize("fault", [LOST_REQUEST, LOST_ANSWER, LATE])
def test_a_claim_without_an_answer_takes_one_place(
    wire: Wire, store: FirestoreStore, fault: str
) -> None:
    store.limit_settings()
    take(store, key="warm", limits=[THREE])
    wire.faults = iter([fault])
    lease = take(store, limits=[THREE]).lease
    wire.arrive()
    assert sorted(place.job.key for place in store.list_places(THREE.id)) == ["k", "warm"]
    wire.faults = iter([fault])
    store.finish(lease, success())
    wire.arrive()
    assert [place.job.key for place in store.list_places(THREE.id)] == ["warm"]


def test_a_guess_that_was_taken_meanwhile_is_made_again(wire: Wire, store: FirestoreStore) -> None:
    """Two processes that both know of one free place."""
    other, one = wire.store(), replace(THREE, max_running=1)
    for each, key in ((store, "a"), (other, "b")):
        each.finish(take(each, key=key, limits=[one]).lease, success())
    assert isinstance(store.claim(request("c", limits=[one])), Claimed)
    assert isinstance(other.claim(request("d", limits=[one])), Limited)
    other.close()


def test_a_change_of_an_operators_is_read_within_ten_seconds(
    wire: Wire, store: FirestoreStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = wire.store()
    take(store, limits=[THREE])
    operator.set_limit(LimitSetting("{tenant_id}", {}, 1, None, time.time(), "ops"))
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + 11)
    assert isinstance(store.claim(request("late", limits=[THREE])), Limited)
    operator.close()


def test_a_change_whose_answer_was_lost_holds_at_once_where_it_was_made(
    wire: Wire, store: FirestoreStore
) -> None:
    take(store, limits=[THREE])
    wire.faults = iter([None, LOST_ANSWER])
    store.set_limit(LimitSetting("{tenant_id}", {}, 1, None, time.time(), "ops"))
    assert isinstance(store.claim(request("late", limits=[THREE])), Limited)


def test_a_lowered_limit_is_listed_once_and_then_as_any_other(
    wire: Wire, store: FirestoreStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limit_settings, "KEPT", 3600.0)  # read again only when they are set
    limit = replace(THREE, max_running=60)
    leases = [take(store, key=f"k{n}", limits=[limit]).lease for n in range(50)]
    store.set_limit(LimitSetting("{tenant_id}", {}, 40, None, time.time(), "ops"))
    wire.advance(60)  # every process knows it
    with wire.counting() as calls:
        assert isinstance(store.claim(request("late", limits=[limit])), Limited)
    assert calls == [READ, READ, QUERY], "the settings; the job; the places"
    with wire.counting() as calls:
        assert isinstance(store.claim(request("late", limits=[limit])), Limited)
    assert calls == [READ, COUNT]
    for lease in leases[:20]:
        store.finish(lease, success())
    with wire.counting() as calls:
        for n in range(9):
            take(store, key=f"more{n}", limits=[limit])
    assert calls == [READ, COUNT, QUERY, *[COMMIT] * 9]
    for lease in leases[20:]:
        store.finish(lease, success())
    for n in range(31):
        take(store, key=f"later{n}", limits=[limit])
    with wire.counting() as calls:
        assert isinstance(store.claim(request("late", limits=[limit])), Limited)
    assert calls == [READ], "no place beyond the limit is taken: it is as any other"
