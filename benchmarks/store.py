"""``python -m benchmarks store``: what reliability costs on Firestore, and what another way would cost.

On the emulator, which answers in a millisecond; the protocols are measured with 10 ms added to each round
trip as well, about what a region away costs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

from rich.console import Console
from rich.table import Table

from benchmarks import protocol
from benchmarks.delay import delayed
from benchmarks.seed import bare_query, seed
from benchmarks.side import PATIENCE, ROOT, Worker
from gwi_celery.errors import GwiError
from gwi_celery.gcp.emulators import FIRESTORE_HOST
from gwi_celery.stores.url import open_store
from gwi_celery.testing.emulators import start_firestore

APP = "benchmarks.store_app"

#: Delay added to a round trip, seconds -> how many times faster than the naive protocol we must be.
MARKS = {0.0: 4.0, 0.01: 5.0}


def main(quick: bool) -> int:
    console = Console(width=110, highlight=False)
    repetitions = 1 if quick else 3
    try:
        open_store("firestore://bench").close()
    except GwiError as exc:
        console.print(f"No Firestore store in this checkout: {exc}")
        return 1
    with start_firestore(fresh=True) as emulator:
        os.environ[FIRESTORE_HOST] = emulator.endpoint
        _tasks(console, 100 if quick else 500, repetitions)
        _protocols(console, emulator.endpoint, 10 if quick else 50, repetitions)
        _contention(console, 2.0 if quick else 5.0)
        _lists(console, 10_000 if quick else 100_000)
    return 0


def _project() -> str:
    return f"bench-{uuid4().hex[:8]}"


# --- through Celery -------------------------------------------------------------------------------


def _tasks(console: Console, count: int, repetitions: int) -> None:
    """A backlog on one solo worker, embedded broker: plain tasks, then reliable ones."""
    rates: dict[str, list[float]] = {"plain": [], "reliable": [], "reliable, 3 steps": []}
    for _ in range(repetitions):
        with tempfile.TemporaryDirectory(prefix="gwi-bench-") as name:
            for kind, each in rates.items():
                each.append(_drain(Path(name), kind, count))
    table = Table(title="Tasks on one solo worker, embedded broker, no results of Celery's")
    for heading in ("", "per second", "ms each", "of plain"):
        table.add_column(heading, justify="left" if not heading else "right")
    plain = statistics.median(rates["plain"])
    for kind, each in rates.items():
        rate = statistics.median(each)
        table.add_row(kind, f"{rate:,.0f}", f"{1e3 / rate:.2f}", f"{rate / plain:.2f}")
    console.print(table)


def _drain(folder: Path, kind: str, count: int) -> float:
    marks = folder / f"marks-{kind}"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "BENCH_MARK": str(marks),
        "BENCH_COUNT": str(count),
        "GWI_BROKER_URL": f"embedded://{folder}/{kind.replace(' ', '').replace(',', '-')}",
        "GWI_STORE_URL": f"firestore://{_project()}",
    }
    submit = f"from {APP} import submit; submit({kind!r}, {count})"
    subprocess.run([sys.executable, "-c", submit], env=environment, cwd=folder, check=True)
    worker = Worker("solo", folder, environment, app=APP, log_level="WARNING")
    try:
        deadline = time.monotonic() + PATIENCE
        while not marks.exists() or len(marks.read_text().splitlines()) < 2:
            if time.monotonic() > deadline or worker.process.poll() is not None:
                raise RuntimeError(f"the worker did not get there:\n{worker.tail()}")
            time.sleep(0.01)
        first, last = map(float, marks.read_text().splitlines())
        return (count - 1) / (last - first)
    finally:
        worker.close()


# --- protocols ------------------------------------------------------------------------------------


def _protocols(console: Console, endpoint: str, count: int, repetitions: int) -> None:
    table = Table(title="One uncontended job, ms: our commits and transactions")
    for heading in ("added per round trip", "steps", "ours", "naive", "times faster"):
        table.add_column(heading, justify="right")
    verdicts = []
    for delay, mark in MARKS.items():
        for steps in (0, 3):
            with delayed(endpoint, delay) as address:
                arguments = ["jobs", _project(), str(count), str(repetitions), str(steps)]
                times = _protocol(arguments, address)
            ratio = times["naive"] / times["ours"]
            table.add_row(
                f"{delay * 1e3:.0f} ms",
                str(steps),
                f"{times['ours'] * 1e3:.2f}",
                f"{times['naive'] * 1e3:.2f}",
                f"{ratio:.1f}",
            )
            if not steps:
                word = "met    " if ratio >= mark else "NOT met"
                verdicts.append(
                    f"{word}  {mark:g} times faster with {delay * 1e3:.0f} ms added: {ratio:.1f}"
                )
    console.print(table)
    console.print("\n".join(verdicts))


def _protocol(arguments: list[str], address: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.protocol", *arguments],
        env={**os.environ, FIRESTORE_HOST: address, "PYTHONPATH": str(ROOT)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


# --- contention -----------------------------------------------------------------------------------


def _contention(console: Console, seconds: float) -> None:
    table = Table(title="One key that all contend for (claim, finish), per second")
    for heading in ("processes", "granted", "refused"):
        table.add_column(heading, justify="right")
    for processes in (2, 4, 8, 16):
        totals = _contend(processes, seconds)
        table.add_row(
            str(processes),
            f"{totals['granted'] / seconds:,.0f}",
            f"{totals['refused'] / seconds:,.0f}",
        )
    console.print(table)


def _contend(processes: int, seconds: float) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.protocol", "contend", _project(), str(seconds)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with ExitStack() as stack:
        started: list[Any] = []
        for _ in range(processes):
            process = stack.enter_context(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            started.append(process)
        for process in started:
            process.stdout.readline()  # it is ready
        for process in started:
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [json.loads(process.stdout.readline()) for process in started]
    return {key: sum(answer[key] for answer in answers) for key in ("granted", "refused")}


# --- lists ----------------------------------------------------------------------------------------


def _lists(console: Console, many: int) -> None:
    """The cost of a page, few runs against many.

    The emulator has no indexes: it looks at every document of the collection. So the bare query of
    Google's client is measured beside the store's, and what is asked of us is to add nothing to it.
    """
    table = Table(title="A page of 100 jobs of one tenant, ms (median of 20)")
    for heading in ("runs", "first page", "by status", "second page", "the bare query"):
        table.add_column(heading, justify="right")
    few = _page_costs(200)
    costs = _page_costs(many)
    for runs, cost in ((200, few), (many, costs)):
        table.add_row(f"{runs:,}", *(f"{c * 1e3:.1f}" for c in cost.values()))
    console.print(table)
    ratio, bare = costs["first page"] / few["first page"], costs["bare"] / few["bare"]
    if ratio < 1.5:
        verdict = "met    "
    elif costs["first page"] < 1.5 * costs["bare"]:
        verdict = "met but for the emulator, whose bare query takes as long"
    else:
        verdict = "NOT met"
    console.print(
        f"{verdict}  a page costs the same with {many:,} runs as with 200: {ratio:.2f} times "
        f"(the bare query {bare:.2f} times)"
    )


def _page_costs(runs: int) -> dict[str, float]:
    """Seconds, by what is asked for."""
    project = _project()
    seed(project, runs)
    store = open_store(f"firestore://{project}")
    first = store.list_jobs(protocol.TENANT, limit=100)
    assert first.next_token is not None

    def page(**options: Any) -> int:
        return len(store.list_jobs(protocol.TENANT, limit=100, **options).jobs)

    costs = {
        "first page": _median_of_20(page),
        "by status": _median_of_20(lambda: page(status=first.jobs[0].status)),
        "second page": _median_of_20(lambda: page(token=first.next_token)),
        "bare": _median_of_20(bare_query(project, 100)),
    }
    store.close()
    return costs


def _median_of_20(ask: Callable[[], int]) -> float:
    times = []
    for _ in range(20):
        began = time.perf_counter()
        assert ask() == 100
        times.append(time.perf_counter() - began)
    return statistics.median(times)
