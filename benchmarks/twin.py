"""``python -m benchmarks twin``: our Pub/Sub transport beside Kombu's ``gcpubsub``, far and near.

On the strict twin, with 20 ms added to each call, as a near region has, and on Google's emulator, which
answers at once, and holds, closes and strands nothing. One solo worker; plain tasks; Celery's default
settings, so a prefetch of 4. What the calls of a side would have been billed is the twin's count; the
emulator counts nothing. Beside both, bare gRPC without Celery: the floor of latency, and the ceiling of
a drain at that prefetch.

Then our workers alone, three at a time, which start and are stopped, or killed, all the time
(:mod:`.turnover`): how many messages were late by a lease.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import raw, turnover
from benchmarks.transport import Side, _measure, _text
from gwi_celery.testing.emulators import start_pubsub
from gwi_celery.testing.twin import Twin, start_twin

#: Seconds added to each call.
LATENCY = 0.02
#: Workers whose queue has to be pulled.
_PULLING = "stopped, with priority levels"
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
        folder = Path(name)
        # gcpubsub, and the raw client, would fail of topics that aren't usable at once.
        off = {"faults": 0, "early_expiry": 0, "settle": 0, "name_rest": 0}
        for side in sides:
            # A twin for each, so that nobody's pulls take another's messages.
            with start_twin(latency=LATENCY, **off) as twin:
                side.environment = twin.environ
                console.print(side.name)
                figures = _measure(side, 0, folder, sizes)
                figures.update(_bill(twin, sizes))
                side.runs.append(figures)
        with start_twin(latency=LATENCY, **off) as twin:
            bare = raw.bare(twin.endpoint, sizes["backlog"], sizes["pings"])
        console.print("on the emulator")
        near = [Side(side.name, side.url) for side in sides]
        with start_pubsub(fresh=True) as emulator:
            bare_near = raw.bare(emulator.endpoint, sizes["backlog"], sizes["pings"])
            for side in near:
                side.environment = {"PUBSUB_EMULATOR_HOST": emulator.endpoint}
                url = f"pubsub://{emulator.endpoint}/{{unique}}"
                side.url = url if side.name == "pubsub" else side.url
                console.print(side.name)
                side.runs.append(_measure(side, 1, folder, sizes))
        console.print("workers that start and stop")
        runs = _turnovers(folder, quick)
    for side in [*sides, *near]:
        side.runs[0]["delay ms"] = 1000 / side.runs[0]["delay/s"]
    title = f"On the strict twin, {LATENCY * 1e3:g} ms away, in one run"
    _show(console, title, sides, bare)
    console.print(
        f"Bare gRPC at a prefetch of 4, without Celery: {bare['drain/s']:.0f} messages per second",
        highlight=False,
    )
    _show(console, "On Google's emulator, in the same run", near, bare_near)
    for how, run in runs.items():
        console.print(
            f"{run.messages:,} messages, {run.ended} workers {how}: {run.late} late by a lease, "
            f"{run.twice} run twice; the slowest took {run.slowest:.1f} s, "
            f"the slowest stop {run.slowest_stop:.1f} s",
            highlight=False,
        )
    ours, theirs = sides[0].runs[0], sides[1].runs[0]
    most = 5 * theirs["drain default/s"]
    drain = (f"drain at least 5 times gcpubsub's ({ours['drain default/s']:.0f}/s of {most:.0f})",)
    marks = [
        (*drain, ours["drain default/s"] >= most),
        _near_the_floor(ours, bare),
        (f"warm stop under 1 s ({ours['stop s']:.2f} s)", ours["stop s"] < 1),
        ("no message late by a lease", not ours["late by a lease"]),
        ("nor while workers start and stop", not runs["stopped"].late),
    ]
    ours, theirs = near[0].runs[0], near[1].runs[0]
    rates = f"{ours['drain default/s']:.0f}/s, {theirs['drain default/s']:.0f}"
    near_marks = [
        (
            f"drain at least gcpubsub's ({rates})",
            ours["drain default/s"] >= theirs["drain default/s"],
        ),
        _near_the_floor(ours, bare_near),
        (f"warm stop under 1 s ({ours['stop s']:.2f} s)", ours["stop s"] < 1),
    ]
    for place, judged in (("twin", marks), ("emulator", near_marks)):
        for text, met in judged:
            console.print(f"{'met    ' if met else 'NOT met'}  {place}: {text}", highlight=False)
    return 0


def _near_the_floor(ours: dict[str, float], bare: dict[str, float]) -> tuple[str, bool]:
    limit = bare["floor ms"] + 2 * bare["round trip ms"]
    text = (
        f"idle p50 within 2 round trips of the floor ({ours['idle p50 ms']:.1f} ms of {limit:.1f}: "
        f"{bare['floor ms']:.1f} and twice {bare['round trip ms']:.1f})"
    )
    return text, ours["idle p50 ms"] <= limit


def _turnovers(folder: Path, quick: bool) -> dict[str, turnover.Turnover]:
    """How the workers ended -> what that run showed."""
    runs = {}
    for how, messages in {"stopped": 10_000, "killed": 3_000, _PULLING: 8_000}.items():
        own = folder / how
        own.mkdir()
        with start_twin(faults=0, early_expiry=0) as twin:
            runs[how] = turnover.run(
                twin,
                own,
                messages=messages // (5 if quick else 1),
                kill=how == "killed",
                options="priority_levels=0,5" if how == _PULLING else "",
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


def _show(console: Console, title: str, sides: list[Side], bare: dict[str, float]) -> None:
    table = Table(title=title)
    table.add_column("")
    for side in sides:
        table.add_column(side.name, justify="right")
    for row in ROWS:
        if any(side.median(row) is not None for side in sides):
            table.add_row(row, *(_text(side.median(row)) for side in sides))
    table.add_row("idle floor ms", *(_text(bare["floor ms"]) for _ in sides))
    console.print(table)
