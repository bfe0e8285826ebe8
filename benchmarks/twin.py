"""``python -m benchmarks twin``: our Pub/Sub transport beside Kombu's ``gcpubsub``, 20 ms away.

On the strict twin, with 20 ms added to each call, as a near region has: the emulator answers at once, and
holds, closes and strands nothing. One solo worker; plain tasks; Celery's default settings, so a prefetch
of 4. What the calls of a side would have been billed is the twin's count.

Then our workers alone, three at a time, which start and are stopped, or killed, all the time
(:mod:`.turnover`): how many messages were late by a lease.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import turnover
from benchmarks.transport import Side, _measure, _text
from gwi_celery.testing.twin import Twin, start_twin

#: Seconds added to each call.
LATENCY = 0.02
ROWS = [
    "delay ms",
    "drain default/s",
    "drain late/s",
    "idle p50 ms",
    "idle p99 ms",
    "idle CPU %",
    "stop s",
    "RPCs per 1,000 jobs",
    "cents per 1,000 jobs",
    "late by a lease",
]


def main(quick: bool) -> int:
    sizes: dict[str, Any] = {"calls": 60, "backlog": 1000, "pings": 30, "idle": 5.0}
    if quick:
        sizes = {"calls": 20, "backlog": 300, "pings": 15, "idle": 2.0}
    console = Console(width=100)
    sides = [
        Side("pubsub", "pubsub://{unique}"),
        Side("gcpubsub", "gcpubsub://projects/{unique}"),
    ]
    with tempfile.TemporaryDirectory(prefix="gwi-bench-") as name:
        for side in sides:
            # A twin for each, so that nobody's pulls take another's messages. gcpubsub, and the raw
            # client, would fail of topics that aren't usable at once.
            off = {"faults": 0, "early_expiry": 0, "settle": 0, "name_rest": 0}
            with start_twin(latency=LATENCY, **off) as twin:
                side.environment = twin.environ
                console.print(side.name)
                figures = _measure(side, 0, Path(name), sizes)
                figures["delay ms"] = 1000 / figures["delay/s"]
                figures.update(_bill(twin, sizes))
                side.runs.append(figures)
        console.print("workers that start and stop")
        runs = _turnovers(Path(name), quick)
    console.print(_table(sides))
    for how, run in runs.items():
        console.print(
            f"{run.messages:,} messages, {run.ended} workers {how}: {run.late} late by a lease, "
            f"{run.twice} run twice; the slowest took {run.slowest:.1f} s, "
            f"the slowest stop {run.slowest_stop:.1f} s",
            highlight=False,
        )
    ours, theirs = sides[0].runs[0], sides[1].runs[0]
    floor = 1.5 * LATENCY * 1e3  # a publish, and the way of the message
    marks = [
        (
            "drain at least 5 times gcpubsub's",
            ours["drain default/s"] >= 5 * theirs["drain default/s"],
        ),
        (
            "idle p50 within 2 round trips of the floor",
            ours["idle p50 ms"] <= floor + 2e3 * LATENCY,
        ),
        ("no message late by a lease", not ours["late by a lease"]),
        ("nor while workers start and stop", not runs["stopped"].late),
    ]
    for text, met in marks:
        console.print(f"{'met    ' if met else 'NOT met'}  {text}")
    return 0


def _turnovers(folder: Path, quick: bool) -> dict[str, turnover.Turnover]:
    """How the workers ended -> what that run showed."""
    runs = {}
    for how, messages in {"stopped": 10_000, "killed": 3_000}.items():
        own = folder / how
        own.mkdir()
        with start_twin(faults=0, early_expiry=0) as twin:
            runs[how] = turnover.run(
                twin, own, messages=messages // (5 if quick else 1), kill=how == "killed"
            )
    return runs


def _bill(twin: Twin, sizes: dict[str, Any]) -> dict[str, float]:
    cost = twin.cost()
    # Two workers, each with a backlog; calls and pings are jobs as well.
    jobs = 2 * sizes["backlog"] + sizes["pings"] + 5
    return {
        "RPCs per 1,000 jobs": 1000 * sum(cost["rpcs"].values()) / jobs,
        "cents per 1,000 jobs": 100_000 * cost["usd"] / jobs,
        "late by a lease": cost["expired"],
    }


def _table(sides: list[Side]) -> Table:
    table = Table(title=f"On the strict twin, {LATENCY * 1e3:g} ms away, in one run")
    table.add_column("")
    for side in sides:
        table.add_column(side.name, justify="right")
    for row in ROWS:
        table.add_row(row, *(_text(side.median(row)) for side in sides))
    return table
