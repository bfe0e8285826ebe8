"""``python -m benchmarks soak``: mixed jobs at a steady rate, and whether what they use levels off.

Real worker processes, started and stopped here. Jobs with steps, cursors and retries, duplicates,
contention, chords, plain tasks; a tenth of them fails. Outcomes are kept for a sixth of the time (five
minutes at most), so that what expires is part of the run. Every 30 seconds a line of the curve is
printed, and written to ``curve.csv`` in the folder that ``--out`` names, beside the workers' logs.

At the end two things are said, and the exit code is 0 only if both hold:

- *plateau*: over the last two thirds of the run, the least-squares lines through memory, files,
  descriptors and threads rise by no more than 3 % of their mean (or 4 MB, 256 KB, 3 and 3).
- *invariants*: each call had one outcome, the right one, within two minutes; each step ran once.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from gwi_celery.options import NUMBER, SECONDS, WHOLE, argument
from gwi_celery.testing.emulators import start_firestore, start_pubsub

ROOT = Path(__file__).resolve().parent.parent
POOLS = {"prefork": 4, "threads": 4, "solo": 1, "gevent": 8}

#: Seconds that a call may take to its outcome, and a worker to start.
PATIENCE = 120.0
#: Share of its mean by which a fitted line may rise over the last two thirds, or so much at least.
MOST_RISE = 0.03
LEAST = {"memory MB": 4.0, "files MB": 0.25, "descriptors": 3.0, "threads": 3.0}

COLUMNS = (
    *("seconds", "parent MB", "children MB", "publisher MB", "processes"),
    *("descriptors", "threads", "files MB", "called", "done", "failed", "waiting"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--broker", choices=["embedded", "emulator"], default="embedded")
    parser.add_argument("--pool", choices=POOLS, default="prefork")
    parser.add_argument("--minutes", type=argument(NUMBER, 0.1, 100_000), default=10.0)
    parser.add_argument(
        "--rate",
        type=argument(NUMBER, 0.01, 1000),
        default=5.0,
        help="calls per second (default 5)",
    )
    parser.add_argument(
        "--workers", type=argument(WHOLE, 1, 100), default=1, help="worker processes (default 1)"
    )
    parser.add_argument(
        "--concurrency",
        type=argument(WHOLE, 1, 1000),
        help="of each (default: 4, gevent 8, solo 1)",
    )
    parser.add_argument(
        "--every",
        type=argument(SECONDS, 0.1, 3600),
        default=30.0,
        help="seconds between two lines",
    )
    parser.add_argument(
        "--mix", type=_kinds, default=",".join(MIX), help="kinds of jobs (default: all)"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for curve.csv and logs (default: a new one)"
    )


def _kinds(text: str) -> list[str]:
    """Kinds of jobs, from a list with commas."""
    kinds = text.split(",")
    for kind in kinds:
        if kind not in MIX:
            raise argparse.ArgumentTypeError(f"{kind!r}: write some of {','.join(MIX)}")
    return kinds


# --- the jobs ---------------------------------------------------------------------------------------


@dataclass
class Expected:
    """One call that was made, and what has to come of it."""

    result: Any
    state: str
    value: Any
    called: float
    #: Lines its steps have to leave in the journal, each once.
    journal: tuple[str, ...] = ()
    failed: bool = field(init=False)

    def __post_init__(self) -> None:
        self.failed = self.state == "FAILURE"


#: Kind -> how many of 20 calls. Two of them fail.
MIX = {
    "steps": 5,
    "cursors": 3,
    "retries": 2,
    "duplicates": 2,
    "contention": 2,
    "fails": 1,
    "plain_fails": 1,
    "plain": 3,
    "chords": 1,
}


class Publisher:
    """Calls jobs, and knows what has to come of each."""

    def __init__(self, jobs: Any, kinds: list[str]) -> None:
        self._jobs = jobs
        self._deck: list[str] = []
        self._kinds = [kind for kind in kinds for _ in range(MIX[kind])]
        self._rng = random.Random(7)
        self.called = 0

    def call(self) -> list[Expected]:
        if not self._deck:
            self._deck = list(self._kinds)
            self._rng.shuffle(self._deck)
        self.called += 1
        made = getattr(self, f"_{self._deck.pop()}")(self.called)
        return list(made)

    def _reliable(self, task: str, n: int, *lines: str, **more: Any) -> Expected:
        run = f"r{n}"
        result = getattr(self._jobs, task).delay(tenant_id=f"t{n % 7}", run_id=run, **more)
        journal = tuple(f"{run} {line}" for line in lines)
        return Expected(result, "SUCCESS", run, time.monotonic(), journal)

    def _steps(self, n: int) -> Iterator[Expected]:
        yield self._reliable("steps", n, "first", "large", "last")

    def _cursors(self, n: int) -> Iterator[Expected]:
        yield self._reliable("cursors", n, "scanned")

    def _retries(self, n: int) -> Iterator[Expected]:
        yield self._reliable("retries", n, "tried")

    def _duplicates(self, n: int) -> Iterator[Expected]:
        yield self._reliable("steps", n, "first", "large", "last")
        yield self._reliable("steps", n)

    def _contention(self, n: int) -> Iterator[Expected]:
        for half in (0, 1):
            yield self._reliable("contends", n, f"half{half}", half=half)

    def _fails(self, n: int) -> Iterator[Expected]:
        result = self._jobs.fails.delay(tenant_id=f"t{n % 7}", run_id=f"r{n}")
        yield Expected(result, "FAILURE", "Refused", time.monotonic(), (f"r{n} before",))

    def _plain_fails(self, n: int) -> Iterator[Expected]:
        yield Expected(self._jobs.plain_fails.delay(n), "FAILURE", "Refused", time.monotonic())

    def _plain(self, n: int) -> Iterator[Expected]:
        yield Expected(self._jobs.plain.delay(n), "SUCCESS", n, time.monotonic())

    def _chords(self, n: int) -> Iterator[Expected]:
        from celery import chord

        body = chord(self._jobs.plain.s(n + i) for i in range(3))(self._jobs.total.s())
        yield Expected(body, "SUCCESS", 3 * n + 3, time.monotonic())


class Audit:
    """Looks at each call's outcome once it is there, and at what the steps left in the journal."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._offset = 0
        self._steps: Counter[str] = Counter()
        #: Lines of calls that are over: none of them may come once more.
        self._over: set[str] = set()
        self.waiting: deque[Expected] = deque()
        self.done = self.failed = 0
        self.broken: list[str] = []

    def look(self) -> None:
        """Once through what is waiting."""
        self._read()
        for _ in range(len(self.waiting)):
            expected = self.waiting.popleft()
            state = expected.result.state
            if state not in ("SUCCESS", "FAILURE", "REVOKED"):
                if time.monotonic() - expected.called > PATIENCE:
                    self.broken.append(f"{expected.result.id} is {state} after {PATIENCE:g} s")
                else:
                    self.waiting.append(expected)
                continue
            self._judge(expected, state)
        for line in [line for line in self._steps if line in self._over]:
            self.broken.append(f"{line!r} ran once more after its job's end")
            del self._steps[line]

    def _judge(self, expected: Expected, state: str) -> None:
        self.done += 1
        self.failed += state == "FAILURE"
        found = expected.result.result
        value = type(found).__name__ if isinstance(found, BaseException) else found
        if (state, value) != (expected.state, expected.value):
            self.broken.append(
                f"{expected.result.id} is {state} {found!r}, "
                f"and has to be {expected.state} {expected.value!r}"
            )
        self._read()
        for line in expected.journal:
            count = self._steps.pop(line, 0)
            self._over.add(line)
            if count != 1:
                self.broken.append(f"{line!r} ran {count} times")

    def _read(self) -> None:
        if not self._journal.exists():
            return
        with self._journal.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        complete, _, _ = data.rpartition(b"\n")
        if complete:
            self._offset += len(complete) + 1
            self._steps.update(complete.decode().split("\n"))


# --- the workers ------------------------------------------------------------------------------------


@contextmanager
def workers(options: Any, out: Path, environment: dict[str, str]) -> Iterator[list[Any]]:
    """The worker processes, each in a group of its own, their logs in ``out``."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for n in range(options.workers):
            with (out / f"worker{n}.log").open("wb") as log:
                started.append(
                    subprocess.Popen(
                        [
                            *(sys.executable, "-m", "celery", "-A", "benchmarks.soak_app"),
                            *("worker", "--pool", options.pool, "--loglevel", "ERROR"),
                            *("--concurrency", str(options.concurrency or POOLS[options.pool])),
                            *("-n", f"soak{n}@localhost"),
                        ],
                        cwd=out,
                        env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        yield started
        for worker in started:
            worker.terminate()
        for worker in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(timeout=30)
    finally:
        for worker in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()


def measure(started: list[Any], folder: Path | None) -> dict[str, float]:
    """What the workers use now, their children included."""
    figures = dict.fromkeys(COLUMNS, 0.0)
    figures["publisher MB"] = psutil.Process().memory_info().rss / 1e6
    for worker in started:
        parent = psutil.Process(worker.pid)
        for process in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                of = "parent MB" if process == parent else "children MB"
                figures[of] += process.memory_info().rss / 1e6
                figures["descriptors"] += process.num_fds()
                figures["threads"] += process.num_threads()
                figures["processes"] += 1
    if folder is not None:
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):  # gone meanwhile
                figures["files MB"] += path.stat().st_size / 1e6
    return figures


# --- judgement --------------------------------------------------------------------------------------


def rise(curve: list[dict[str, float]], name: str) -> tuple[float, float]:
    """By how much the fitted line rises over the last two thirds of the run, and the mean there."""
    end = curve[-1]["seconds"]
    late = [row for row in curve if row["seconds"] >= end / 3]
    times = [row["seconds"] for row in late]
    values = [
        row["parent MB"] + row["children MB"] if name == "memory MB" else row[name] for row in late
    ]
    slope = statistics.linear_regression(times, values).slope
    return slope * (times[-1] - times[0]), statistics.mean(values)


def verdict(curve: list[dict[str, float]]) -> bool:
    """Print whether each curve is a plateau."""
    if len(curve) < 6:
        print("no plateau can be told from fewer than six lines: give it more minutes")
        return False
    flat = True
    hours = (curve[-1]["seconds"] * 2 / 3) / 3600
    for name, least in LEAST.items():
        risen, mean = rise(curve, name)
        most = max(mean * MOST_RISE, least)
        good = risen <= most
        flat = flat and good
        print(
            f"{'plateau' if good else 'GROWS  '}  {name}: {risen:+.2f} over the last two thirds "
            f"(at most {most:.2f}), mean {mean:.1f}, that is {risen / hours:+.1f} an hour"
        )
    return flat


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main(options: Any) -> int:
    signal.signal(signal.SIGTERM, _stop)  # nothing started here may outlive it
    out: Path = options.out or Path(tempfile.mkdtemp(prefix="soak-"))
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    ttl = min(max(options.minutes * 10, 20.0), 300.0)
    environment = {"SOAK_TTL": f"{ttl:g}", "SOAK_JOURNAL": str(out / "journal")}
    Path(environment["SOAK_JOURNAL"]).unlink(missing_ok=True)
    with contextlib.ExitStack() as stack:
        folder = None
        if options.broker == "embedded":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-gwi-")))
            environment["SOAK_BROKER"] = environment["SOAK_STORE"] = f"embedded://{folder}"
        else:
            pubsub = stack.enter_context(start_pubsub())
            firestore = stack.enter_context(start_firestore())
            project = f"soak-{time.time_ns() % 10**9}"
            environment |= {
                "PUBSUB_EMULATOR_HOST": pubsub.endpoint,
                "FIRESTORE_EMULATOR_HOST": firestore.endpoint,
                "SOAK_BROKER": f"pubsub://{project}",
                "SOAK_STORE": f"firestore://{project}",
            }
        os.environ.update(environment)
        jobs = importlib.import_module("benchmarks.soak_app")
        try:
            return _run(options, out, folder, environment, jobs)
        finally:
            jobs.app.close()


def _run(
    options: Any, out: Path, folder: Path | None, environment: dict[str, str], jobs: Any
) -> int:
    publisher, audit = Publisher(jobs, options.mix), Audit(out / "journal")
    curve: list[dict[str, float]] = []
    print(f"{options.broker}, {options.pool}: {options.minutes:g} minutes into {out}")
    print("  ".join(f"{column:>12}" for column in COLUMNS), flush=True)
    with workers(options, out, environment) as started, (out / "curve.csv").open("w") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        audit.waiting.extend(publisher.call())
        deadline = time.monotonic() + PATIENCE
        while not audit.done:
            audit.look()
            if time.monotonic() > deadline or audit.broken:
                print(f"no job was done: see {out}/worker0.log {audit.broken}")
                return 1
            time.sleep(0.1)

        def line() -> None:
            row = {
                **measure(started, folder),
                **{"seconds": time.monotonic() - began, "called": publisher.called},
                **{"done": audit.done, "failed": audit.failed, "waiting": len(audit.waiting)},
            }
            curve.append(row)
            writer.writerow({name: round(value, 3) for name, value in row.items()})
            file.flush()
            print("  ".join(f"{row[column]:>12.1f}" for column in COLUMNS), flush=True)

        began = now = time.monotonic()
        next_call = next_line = began
        end = began + options.minutes * 60
        while now < end:
            if now >= next_call:
                audit.waiting.extend(publisher.call())
                next_call = max(next_call + 1 / options.rate, now - 1)
            else:
                audit.look()
                time.sleep(max(min(next_call - time.monotonic(), 0.2), 0))
            now = time.monotonic()
            if now >= next_line:
                line()
                next_line += options.every
            ended = [worker.poll() for worker in started if worker.poll() is not None]
            if ended:
                audit.broken.append(f"a worker ended by itself with {ended}")
                break
        deadline = time.monotonic() + PATIENCE
        while audit.waiting and time.monotonic() < deadline and not ended:
            audit.look()
            time.sleep(0.2)
        line()
    flat = verdict(curve)
    broken = audit.broken
    print(f"{audit.done} calls with their one outcome, {audit.failed} of them failures, as meant")
    for what in broken[:20]:
        print(f"BROKEN   {what}")
    print(
        f"invariants: {'kept' if not broken else f'{len(broken)} broken'}; curve: {out}/curve.csv"
    )
    return 0 if flat and not broken else 1
