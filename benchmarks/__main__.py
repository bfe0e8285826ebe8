"""``python -m benchmarks [--quick]``: our embedded transport beside Redis, SQLAlchemy and memory.

Prints figures and ratios measured in this one run, and whether the marks were met. The exit code
tells only whether something broke: a slow machine is no failure.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer calls: a minute, and noisier")
    quick = parser.parse_args().quick
    calls, pings, idle = (300, 50, 3.0) if quick else (1000, 100, 5.0)
    console = Console(width=110)
    with tempfile.TemporaryDirectory(prefix="gwi-bench-") as name, _redis(Path(name)) as redis:
        sides = _sides(Path(name), redis)
        if redis is None:
            console.print("No redis-server on this machine: compared with SQLAlchemy instead.")
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


def _sides(folder: Path, redis: str | None) -> list[Side]:
    path = folder / "embedded"
    sides = [Side("embedded", f"embedded://{path}/gwi", f"embedded://{path}/gwi", path)]
    if redis is not None:
        sides.append(Side("redis", f"{redis}/0", f"{redis}/1", folder / "redis"))
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
    redis = next((side.figures for side in sides if side.name == "redis"), None)
    marks = [
        ("idle p50 under 15 ms", ours["idle p50 ms"] < 15),
        ("idle CPU under 2 % of a core", ours["idle CPU %"] < 2),
        ("warm stop under 1 s (solo)", ours["stop solo s"] < 1),
        ("warm stop under 1 s (prefork)", ours["stop prefork s"] < 1),
    ]
    if redis is not None:
        for pool in ("solo", "prefork"):
            row = f"drain {pool}/s"
            marks.insert(
                0, (f"drain on {pool} at least 0.8 of Redis's", ours[row] >= 0.8 * redis[row])
            )
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


@contextmanager
def _redis(folder: Path) -> Iterator[str | None]:
    """A Redis server of our own on loopback, without a disk; None if there is no such program."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    server = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if time.monotonic() > deadline:
                raise RuntimeError("redis-server did not start")
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=10)


if __name__ == "__main__":
    sys.exit(main())
