"""``python -m benchmarks transport``: Pub/Sub beside Kombu's ``gcpubsub``, Redis and the raw client.

All sides in one run, in turn, each measurement in a process of its own with a broker, project or
database of its own; medians. One solo worker; plain tasks; no results. ``default`` is Celery's default
(early ack, prefetch multiplier 4), ``late`` is acks_late with a multiplier of 1.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from rich.console import Console
from rich.table import Table

from benchmarks import raw
from benchmarks.servers import redis_server
from benchmarks.side import ROOT
from benchmarks.transport_side import CONFIGURATIONS
from gwi_celery.testing.emulators import start_pubsub

ROWS = [
    "delay/s",
    "raw publish/s",
    "batched/s",
    "drain default/s",
    "drain late/s",
    "idle p50 ms",
    "idle p99 ms",
    "idle CPU %",
    "stop s",
    "RSS MB",
    "USS MB",
    "threads",
]


@dataclass
class Side:
    """One broker; ``broker`` makes a URL of its own for each repetition."""

    name: str
    url: str
    environment: dict[str, str] = field(default_factory=dict)
    runs: list[dict[str, float]] = field(default_factory=list)

    def broker(self, number: int) -> str:
        return self.url.format(unique=f"bench-{uuid4().hex[:8]}", number=number)

    def median(self, row: str) -> float | None:
        values = [run[row] for run in self.runs if row in run]
        return statistics.median(values) if values else None


def main(quick: bool) -> int:
    sizes: dict[str, Any] = {"calls": 500, "backlog": 2000, "pings": 100, "idle": 5.0}
    repetitions = 3
    if quick:
        sizes, repetitions = {"calls": 200, "backlog": 500, "pings": 30, "idle": 2.0}, 1
    console = Console(width=110)
    with (
        tempfile.TemporaryDirectory(prefix="gwi-bench-") as name,
        start_pubsub(fresh=True) as emulator,
        redis_server(Path(name)) as redis,
    ):
        ceilings: list[dict[str, float]] = []
        sides = _sides(console, Path(name), emulator.endpoint, redis)
        for number in range(repetitions):
            console.print(f"run {number + 1} of {repetitions}: the raw client", highlight=False)
            ceilings.append(raw.measure(emulator.endpoint, sizes["calls"]))
            for side in sides:
                console.print(f"  {side.name}")
                side.runs.append(_measure(side, number, Path(name), sizes))
    ceiling = {key: statistics.median(c[key] for c in ceilings) for key in ceilings[0]}
    console.print(_table(sides))
    console.print(
        "Raw client, per second: " + ", ".join(f"{k} {v:,.0f}" for k, v in ceiling.items())
    )
    _marks(console, {side.name: side for side in sides})
    return 0


def _sides(console: Console, folder: Path, emulator: str, redis: str) -> list[Side]:
    environment = {"PUBSUB_EMULATOR_HOST": emulator}
    sides = []
    try:
        from gwi_celery.transport import pubsub  # noqa: F401
    except ImportError:
        console.print("No Pub/Sub transport in this checkout.")
    else:
        sides.append(Side("pubsub", f"pubsub://{emulator}/{{unique}}", environment))
    try:
        import kombu.transport.gcpubsub  # noqa: F401
    except ImportError as exc:
        console.print(f"Without gcpubsub ({exc}): pip install 'gwi-celery[bench]'.")
    else:
        sides.append(Side("gcpubsub", "gcpubsub://projects/{unique}", environment))
    sides.append(Side("redis", redis + "/{number}"))
    sides.append(Side("embedded", f"embedded://{folder}/{{unique}}"))
    return sides


def _measure(side: Side, number: int, folder: Path, sizes: dict[str, Any]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for place, configuration in enumerate(CONFIGURATIONS):
        # A project of its own for each worker: the emulator goes on with the last pull of one that has
        # stopped, and leases a message of the next one's to it.
        own = folder / f"{side.name}-{number}-{configuration}"
        own.mkdir()
        orders = {
            **sizes,
            "name": side.name,
            "folder": str(own),
            "broker": side.broker(number * len(CONFIGURATIONS) + place),
            "environment": side.environment,
            "configuration": configuration,
        }
        figures.update(_in_own_process(side, own, orders))
    return figures


def _in_own_process(side: Side, own: Path, orders: dict[str, Any]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.transport_side"],
        input=json.dumps(orders),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=own,
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{side.name} could not be measured:\n{done.stderr[-4000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _table(sides: list[Side]) -> Table:
    ours, others = sides[0], sides[1:]
    table = Table(title="Medians, side by side in one run")
    table.add_column("")
    for side in sides:
        table.add_column(side.name, justify="right")
    for other in others:
        table.add_column(f"{ours.name} / {other.name}", justify="right")
    for row in ROWS:
        mine = ours.median(row)
        cells = [_text(side.median(row)) for side in sides]
        for other in others:
            theirs = other.median(row)
            cells.append(f"{mine / theirs:.2f}" if mine is not None and theirs else "")
        table.add_row(row, *cells)
    return table


def _text(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _marks(console: Console, sides: dict[str, Side]) -> None:
    """What was asked for, each met or not. Only where both sides were measured."""
    if "pubsub" not in sides:
        return
    get = {name: side.median for name, side in sides.items()}
    ours, nothing = get["pubsub"], lambda row: None
    redis, gcpubsub = get.get("redis", nothing), get.get("gcpubsub", nothing)

    def check(text: str, mine: float | None, *limits: float | None, least: bool) -> None:
        known = [limit for limit in limits if limit is not None]
        if mine is None or not known:
            console.print(f"unknown  {text}")
            return
        limit = max(known) if least else min(known)
        met = mine >= limit if least else mine <= limit
        sign = ">=" if least else "<="
        console.print(
            f"{'met    ' if met else 'NOT met'}  {text}: {mine:,.2f} {sign} {limit:,.2f}",
            highlight=False,
        )

    def times(factor: float, value: float | None) -> float | None:
        return None if value is None else factor * value

    row = "drain default/s"
    check(
        "drain at least 1.2 times the better of Redis and gcpubsub",
        ours(row),
        times(1.2, redis(row)),
        times(1.2, gcpubsub(row)),
        least=True,
    )
    row = "idle p50 ms"
    check("idle p50 at most twice Redis's", ours(row), times(2, redis(row)), least=False)
    check("idle p50 under a fifth of gcpubsub's", ours(row), times(0.2, gcpubsub(row)), least=False)
    check(
        "confirmed .delay() at least 0.8 of the raw unary publish",
        ours("delay of raw"),
        0.8,
        least=True,
    )
    check("batched at least 3,000/s", ours("batched/s"), 3000.0, least=True)
    check("warm stop when idle under 1 s", ours("stop s"), 1.0, least=False)
    for row in ("RSS MB", "USS MB", "threads"):
        check(f"{row} no more than gcpubsub's", ours(row), gcpubsub(row), least=False)
