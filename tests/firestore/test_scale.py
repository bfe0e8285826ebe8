"""The model of ``benchmarks/scale.py`` counts what the store really writes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from benchmarks.scale import Kind, limits, main, minutes_to_warm, noisy, workers
from gwi_celery.stores.base import StoredResult
from tests.contract.stores import step, success
from tests.firestore.claims import take
from tests.firestore_wire import Wire
from tests.workers import ROOT


def billed(requests: list[Any]) -> Counter[str]:
    found: Counter[str] = Counter()
    for sent in requests:
        for write in getattr(sent, "writes", ()):
            found["deletes" if write.delete else "writes"] += 1
    return found


@pytest.mark.emulator
@pytest.mark.parametrize("steps", [0, 3])
def test_a_job_writes_what_the_model_says(wire: Wire, steps: int) -> None:
    store = wire.store()
    kind = Kind("", steps=steps)
    lease = take(store).lease
    for n in range(steps):
        lease = store.save(lease, step(f"s{n}"))
    store.finish(lease, success(), StoredResult("t1", "key", "SUCCESS", b"meta", 10.0))
    commits = [sent for sent in wire.requests if hasattr(sent, "writes")]
    assert len(commits) == kind.commits
    assert billed(commits) == {"writes": kind.writes, "deletes": 1}
    renewed = len(wire.requests)
    lease = take(store, key="another").lease
    claimed = len(wire.requests)
    store.renew(lease)
    assert billed(wire.requests[claimed:]) == {"writes": 2}, "of a renewal"
    assert renewed < claimed
    store.close()


def test_what_is_used_of_a_limit_grows_with_the_rate() -> None:
    kind = Kind("", steps=3, seconds=1.0)
    small, large = ({limit.what: limit.used for limit in limits(kind, r, 10)} for r in (10, 1000))
    assert all(large[what] == pytest.approx(100 * used) for what, used in small.items())
    assert workers(kind, 70) == 100
    assert minutes_to_warm(400) == 0
    assert minutes_to_warm(1000) == 10
    assert Kind("", seconds=3600).renewals == 360
    assert Kind("", seconds=3600, lock_ttl=300).renewals == 36


def test_a_noisy_tenant_holds_up_another_only_without_a_limit() -> None:
    alone = noisy(10, burst=0, at_a_time=None).p95("quiet")
    free = noisy(10, burst=1000, at_a_time=None)
    limited = noisy(10, burst=1000, at_a_time=7)
    assert alone == limited.p95("quiet") == 0
    assert free.p95("quiet") > 50
    assert len(limited.of["noisy"]) == 1000, "each of its jobs has run, too"


def test_the_page_has_what_the_model_says(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    assert f"```text\n{capsys.readouterr().out}```" in (ROOT / "docs" / "scale.md").read_text()
