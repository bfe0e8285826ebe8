"""The cost table of ``docs/scale.md`` is what real workers on the twins are counted to do."""

from __future__ import annotations

import pytest

from benchmarks import costs, scale
from tests.workers import ROOT

JOBS = 1


def stated() -> dict[str, list[float]]:
    """Kind -> its row of the page."""
    text = (ROOT / "docs" / "scale.md").read_text()
    lines = text.partition("| kind | publishes")[2].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: [float(cell) for cell in cells] for name, *cells in rows}


@pytest.mark.slow
@pytest.mark.emulator
def test_each_kind_of_job_calls_and_writes_what_the_table_says() -> None:
    table = stated()
    counted = {row.name: row for row in costs.measure(JOBS)}
    assert counted.keys() == table.keys()
    for name, row in counted.items():
        *counts, pubsub, firestore = table[name]
        assert list(row.counts.values()) == counts, name
        # What is delivered together is billed together.
        assert row.usd["Pub/Sub"] == pytest.approx(pubsub, rel=0.4), name
        assert row.usd["Firestore"] == pytest.approx(firestore, rel=0.1), name


def test_the_model_counts_alike() -> None:
    """``benchmarks scale`` multiplies what ``benchmarks costs`` counts; TTL's deletes come on top."""
    table = {
        name: dict(zip(costs.COUNTED, cells, strict=False)) for name, cells in stated().items()
    }
    same = {
        "plain, with a result": scale.KINDS[0],
        "reliable": scale.KINDS[1],
        "reliable, 3 steps": scale.KINDS[2],
    }
    for name, kind in same.items():
        row = table[name]
        found = (row["publishes"], row["commits"], row["written"])
        assert found == (kind.messages, kind.commits, kind.writes), name
    twice = scale.KINDS[5]
    assert table["a duplicate of a finished one"]["written"] == twice.duplicates
