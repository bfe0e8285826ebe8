"""What every store keeps of queues: records of dead letters, and pauses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gwi_celery.brokers.letters import DeadLetter
from gwi_celery.errors import InvalidCall
from gwi_celery.stores.queues import LetterFilter, QueueRecords
from tests.contract.stores import StoreCase

#: Seconds since the epoch, long ago and in a long time by whatever clock a store has.
DIED, PAST, FUTURE = 500.0, 600.0, 4e9


def letter(n: int, **other: object) -> DeadLetter:
    made = DeadLetter(
        queue="celery" if n < 4 else "slow\ud800",
        id=f"id{n}",
        reason="failed" if n % 2 else "deadline",
        text="no\nmore \ud800",
        error="shop.errors.NoMoney" if n % 2 else "DeadlineExceeded",
        traceback="Traceback ...",
        task="shop.invoice" if n < 3 else "shop.pay",
        task_id=f"task{n}",
        tenant="acme" if n in (0, 3, 5) else "o/ther \ud800",
        run_id="r1",
        attempts=n,
        deliveries=n + 1,
        worker="host:1",
        published_at=DIED - 1,
        died_at=DIED + n,
        expires_at=FUTURE + n,
        priority=3,
        whole=False,
    )
    return replace(made, **other)  # type: ignore[arg-type] # of a letter's fields


def fill(records: QueueRecords) -> list[DeadLetter]:
    """Six letters; the last died last."""
    made = [letter(n) for n in range(6)]
    for each in made:
        records.keep(each)
    return made


WANTED = {
    "all": (LetterFilter(), "543210"),
    "queue": (LetterFilter(queue="slow\ud800"), "54"),
    "reason": (LetterFilter(reason="failed"), "531"),
    "task": (LetterFilter(task="shop.invoice"), "210"),
    "tenant": (LetterFilter(tenant="acme"), "530"),
    "error": (LetterFilter(error="NoMoney"), "531"),
    "call": (LetterFilter(task_id="task2"), "2"),
    "since": (LetterFilter(since=DIED + 4), "54"),
    "before": (LetterFilter(before=DIED + 2), "10"),
    "several": (LetterFilter(tenant="acme", reason="failed", queue="celery"), "3"),
    "all at once": (
        LetterFilter("celery", "failed", "shop.pay", "acme", "NoMoney", "task3", DIED, DIED + 4),
        "3",
    ),
    "none": (LetterFilter(tenant="nobody"), ""),
    "no known reason": (LetterFilter(reason="\ud800"), ""),
}


def test_letters_are_found_by_each_filter_the_latest_first(case: StoreCase) -> None:
    made = {each.id: each for each in fill(case.store.queues)}
    records = case.another().queues
    for name, (wanted, expected) in WANTED.items():
        page = records.find(wanted)
        assert [each.id for each in page.letters] == [f"id{n}" for n in expected], name
        assert page.next_token is None
        assert all(each == made[each.id] for each in page.letters), name
        assert records.count(wanted) == len(expected), name
        found, token = [], None
        while token is not None or not found:
            page = records.find(wanted, limit=2, token=token)
            found += [each.id for each in page.letters] or [""]
            token = page.next_token
        assert [id for id in found if id] == [f"id{n}" for n in expected], name
    token = records.find(LetterFilter(), limit=2).next_token
    with pytest.raises(InvalidCall):
        records.find(LetterFilter(task="shop.pay"), limit=2, token=token)
    with pytest.raises(InvalidCall):
        records.find(LetterFilter(), limit=0)


def test_what_has_ended_is_in_no_list_and_is_known_to_have(case: StoreCase) -> None:
    records = case.store.queues
    fill(records)
    records.end(["id1", "id4", "never"])
    records.end([])
    known = {"id0": True, "id1": False, "never": False}
    assert records.known(["id0", "id1", "never", "unknown"]) == known
    assert [each.id for each in records.find(LetterFilter()).letters] == [
        "id5",
        "id3",
        "id2",
        "id0",
    ]
    assert records.count(LetterFilter(reason="failed")) == 2
    assert (records.get("id1"), records.get("unknown")) == (None, None)
    assert records.get("id2") == letter(2)
    assert [each.id for each in records.expiring(FUTURE + 3.5)] == ["id0", "id2", "id3"]
    assert case.store.cleanup() == 0, "a message that was left over may still be there"
    records.keep(letter(1))
    assert records.known(["id1"]) == {"id1": True}, "it died again"


def test_what_has_expired_is_not_shown_and_is_deleted(case: StoreCase) -> None:
    records = case.store.queues
    fill(records)
    for n in (2, 5):
        records.keep(letter(n, expires_at=PAST))
    assert [each.id for each in records.find(LetterFilter(), limit=4).letters] == [
        *("id4", "id3", "id1", "id0")
    ]
    assert records.get("id2") is None
    assert "id2" not in {each.id for each in records.expiring(FUTURE * 2)}
    assert case.store.cleanup() == 2
    assert records.known(["id2", "id3"]) == {"id3": True}


def test_a_pause_is_seen_by_all(case: StoreCase) -> None:
    one, other = case.store.queues, case.another().queues
    assert one.paused() == frozenset()
    one.set_paused("celery", True)
    other.set_paused("slow/\ud800", True)
    one.set_paused("celery", True)
    assert other.paused() == {"celery", "slow/\ud800"}
    other.set_paused("celery", False)
    other.set_paused("never", False)
    assert one.paused() == {"slow/\ud800"}
