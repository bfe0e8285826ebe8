"""``python -m benchmarks embedded``: our embedded transport beside Redis, SQLAlchemy and memory.

Prints figures and ratios measured in this one run, and whether the marks were met. The exit code
tells only whether something broke: a slow machine is no failure.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.servers import redis_server
from benchmarks.side import Side

#: Figure -> whether more is better.
ROWS = {
    "delay/s": True,
    "drain solo/s": True,
    "drain prefork/s": True,
    "drain reliable solo/s": True,
    "idle p50 ms": False,
    "idle p99 ms": False,
    "idle CPU %": False,
    "stop solo s": False,
    "stop prefork s": False,
}


def main(quick: bool) -> int:
    calls, pings, idle = (300, 50, 3.0) if quick else (1000, 100, 5.0)
    console = Console(width=110)
    with (
        tempfile.TemporaryDirectory(prefix="gwi-bench-") as name,
        redis_server(Path(name)) as redis,
    ):
        sides = _sides(Path(name), redis)
        for side in sides:
            console.print(f"measuring {side.name} ...")
            side.folder.mkdir()
            ours = side.name == "embedded"
            side.measure(calls=calls, pings=pings, idle_seconds=idle, reliable=ours)
        memory = _memory(calls)
    console.print(_table(sides))
    console.print(f"Kombu's memory transport, in one process: {memory:,.0f} delay/s.")
    _marks(console, sides)
    return 0


def _sides(folder: Path, redis: str) -> list[Side]:
    path = folder / "embedded"
    sides = [
        Side("embedded", f"embedded://{path}/gwi", f"embedded://{path}/gwi", path),
        Side("redis", f"{redis}/0", f"{redis}/1", folder / "redis"),
    ]
    path = folder / "sqlalchemy"
    sides.append(
        Side(
            "sqlalchemy",
            f"sqla+sqlite:///{path}/b.db",
            f"db+sqlite:///{path}/r.db",
            path,
            drained=15,
        )
    )
    return sides


def _table(sides: list[Side]) -> Table:
    reference = sides[1]
    table = Table(title="Side by side in one run")
    table.add_column("")
    for side in sides:
        table.add_column(side.name, justify="right")
    table.add_column(f"embedded / {reference.name}", justify="right")
    ours = sides[0].figures
    for row, more_is_better in ROWS.items():
        cells = [_text(side.figures.get(row)) for side in sides]
        other = reference.figures.get(row)
        if row == "drain reliable solo/s":
            ratio = f"{ours[row] / ours['drain solo/s']:.2f} of plain"
        elif other:
            word = "more is better" if more_is_better else "less is better"
            ratio = f"{ours[row] / other:.2f} ({word})"
        else:
            ratio = ""
        table.add_row(row, *cells, ratio)
    return table


def _text(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _marks(console: Console, sides: list[Side]) -> None:
    ours = sides[0].figures
    cost = 1e6 / ours["drain reliable solo/s"] - 1e6 / ours["drain solo/s"]
    console.print(f"A reliable job costs {cost:,.0f} µs more than a plain task.")
    redis = sides[1].figures
    marks = [
        *(
            (f"drain on {pool} at least 0.8 of Redis's", ours[row] >= 0.8 * redis[row])
            for pool, row in (("prefork", "drain prefork/s"), ("solo", "drain solo/s"))
        ),
        ("idle p50 under 15 ms", ours["idle p50 ms"] < 15),
        ("idle CPU under 2 % of a core", ours["idle CPU %"] < 2),
        ("warm stop under 1 s (solo)", ours["stop solo s"] < 1),
        ("warm stop under 1 s (prefork)", ours["stop prefork s"] < 1),
    ]
    for text, met in marks:
        console.print(f"{'met    ' if met else 'NOT met'}  {text}")


def _memory(calls: int) -> float:
    """Kombu's memory transport has no second process: only what a call costs can be compared."""
    from celery import Celery

    app = Celery("bench-memory", broker="memory://", set_as_current=False)

    @app.task(shared=False)
    def noop() -> None: ...

    noop.delay()
    began = time.perf_counter()
    for _ in range(calls):
        noop.delay()
    return calls / (time.perf_counter() - began)
