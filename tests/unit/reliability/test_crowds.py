"""Few that wait ask often; many ask as seldom as one may."""

from __future__ import annotations

import pytest

from gwi_celery.reliability import crowds as module
from gwi_celery.reliability.crowds import Crowds


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_all_that_wait_for_one_thing_ask_at_one_rate(now: list[float]) -> None:
    crowds = Crowds()

    def waits(thing: str, job: int) -> float:
        return crowds.longest_wait(thing, str(job), 1.0, 30.0)

    assert [waits("limit", 1) for _ in range(3)] == [2.0] * 3, "one is counted once"
    assert [waits("limit", job) for job in range(2, 7)] == [4.0, 6.0, 8.0, 10.0, 12.0]
    assert [waits("limit", job) for job in range(200)][-1] == 30.0, "as long as one may wait"
    assert waits("other", 1) == 2.0
    now[0] += 61
    assert waits("limit", 7) == 2.0, "the others ask no more"


def test_what_is_remembered_is_bounded(now: list[float]) -> None:
    crowds = Crowds()
    for n in range(3000):
        crowds.longest_wait(f"limit {n}", "1", 1.0, 30.0)
        crowds.longest_wait("one", str(n), 1.0, 1e6)
    assert len(crowds._seen) == 1000
    assert len(crowds._seen["one"]) == 100
    assert list(crowds._seen["one"])[-1] == "2999"
