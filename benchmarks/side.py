"""One side of the comparison: a broker, its worker processes, and the measurements on them."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent

#: Seconds a worker may take to start, or a backlog to drain, before the run is given up.
PATIENCE = 120.0


@dataclass
class Side:
    """A broker under measurement."""

    name: str
    broker: str
    results: str
    folder: Path
    #: Tasks drained, where a transport that polls would take minutes for more.
    drained: int | None = None
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "BENCH_BROKER": self.broker,
            "BENCH_RESULTS": self.results,
            "BENCH_MARK": str(self.folder / "marks"),
        }

    def measure(self, *, calls: int, pings: int, idle_seconds: float, reliable: bool) -> None:
        """Fill in ``figures``. Raises RuntimeError when something broke."""
        app = self._app()
        try:
            self.figures["delay/s"] = self._delays(app, calls)
            if self.drained is not None:
                app.app.control.purge()
                calls, pings = self.drained, min(pings, self.drained)
                for _ in range(calls):
                    app.noop.delay()
            with self._worker("solo") as solo:
                self.figures["drain solo/s"] = self._drain(app, solo, calls)
                p50, p99 = self._latency(app, pings)
                self.figures["idle p50 ms"], self.figures["idle p99 ms"] = p50 * 1e3, p99 * 1e3
                self.figures["idle CPU %"] = solo.idle_cpu(idle_seconds)
                self.figures["stop solo s"] = solo.stop()
            for _ in range(calls):
                app.noop.delay()
            with self._worker("prefork") as prefork:
                self.figures["drain prefork/s"] = self._drain(app, prefork, calls)
                self.figures["stop prefork s"] = prefork.stop()
            if reliable:
                for n in range(calls):
                    app.reliable.delay(tenant_id="bench", run_id=f"r{n}")
                with self._worker("solo") as solo:
                    self.figures["drain reliable solo/s"] = self._drain(
                        app, solo, calls, task="reliable"
                    )
        finally:
            app.app.close()

    def _app(self) -> Any:
        os.environ.update(self.environment)
        sys.modules.pop("benchmarks.app", None)
        return importlib.import_module("benchmarks.app")

    def _delays(self, app: Any, calls: int) -> float:
        app.noop.delay()  # the first one connects and declares
        began = time.perf_counter()
        for _ in range(calls - 1):
            app.noop.delay()
        return (calls - 1) / (time.perf_counter() - began)

    def _drain(self, app: Any, worker: Worker, calls: int, task: str = "noop") -> float:
        """Rate over a backlog, by the worker's own log: from the first success to the last."""
        pattern = f"Task benchmarks.app.{task}["
        first, last = worker.wait_for(
            lambda line: pattern in line and "succeeded" in line, count=calls
        )
        return (calls - 1) / max(last - first, 1e-9)

    def _latency(self, app: Any, pings: int) -> tuple[float, float]:
        marks = self.folder / "marks"
        for n in range(pings + 5):
            app.mark.delay(time.time())
            deadline = time.monotonic() + PATIENCE
            while not marks.exists() or len(marks.read_text().splitlines()) <= n:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{self.name}: a ping was never answered")
                time.sleep(0.001)
            time.sleep(0.02)  # idle again
        waits = sorted(float(x) for x in marks.read_text().splitlines()[5:])
        return statistics.median(waits), waits[int(len(waits) * 0.99) - 1]

    @contextmanager
    def _worker(self, pool: str) -> Iterator[Worker]:
        worker = Worker(pool, self.folder, self.environment)
        try:
            yield worker
        finally:
            worker.close()


class Worker:
    """A ``celery worker`` in a process group of its own; each line of its log with its time."""

    def __init__(
        self,
        pool: str,
        folder: Path,
        environment: dict[str, str],
        *,
        app: str = "benchmarks.app",
        log_level: str = "INFO",
    ) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "-A", app, "worker"),
                *("--pool", pool, "--concurrency", "1", "--loglevel", log_level),
                *("-n", f"bench{time.monotonic_ns()}@localhost"),
            ],
            cwd=folder,
            env={**os.environ, **environment, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._lines: list[tuple[float, str]] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self._lines.append((time.perf_counter(), line))
                self._changed.notify_all()

    def wait_for(self, wanted: Callable[[str], bool], count: int) -> tuple[float, float]:
        """Times of the first and the ``count``-th such line."""
        deadline = time.monotonic() + PATIENCE
        seen: list[float] = []
        looked = 0
        with self._changed:
            while True:
                while looked < len(self._lines):
                    at, line = self._lines[looked]
                    looked += 1
                    if wanted(line):
                        seen.append(at)
                if len(seen) >= count:
                    return seen[0], seen[count - 1]
                if time.monotonic() > deadline or self.process.poll() is not None:
                    tail = "".join(line for _, line in self._lines[-20:])
                    raise RuntimeError(f"the worker did not get there:\n{tail}")
                self._changed.wait(0.5)

    def tail(self) -> str:
        """The end of its log."""
        with self._changed:
            return "".join(line for _, line in self._lines[-20:])

    def idle_cpu(self, seconds: float) -> float:
        """Percent of one core, the worker's children included."""
        main = psutil.Process(self.process.pid)
        family = [main, *main.children(recursive=True)]

        def used() -> float:
            return sum(sum(p.cpu_times()[:2]) for p in family)

        before = used()
        time.sleep(seconds)
        return (used() - before) / seconds * 100

    def footprint(self) -> dict[str, float]:
        """Memory in MB, of the main process alone, and its threads."""
        main = psutil.Process(self.process.pid)
        memory = main.memory_full_info()
        return {
            "RSS MB": memory.rss / 1e6,
            "USS MB": memory.uss / 1e6,
            "threads": float(main.num_threads()),
        }

    def stop(self, timeout: float = 30.0) -> float:
        """Seconds from SIGTERM to the end."""
        began = time.perf_counter()
        self.process.terminate()
        self.process.wait(timeout=timeout)
        return time.perf_counter() - began

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(timeout=5)
        if self.process.stdout is not None:
            self.process.stdout.close()
