"""One side, measured once, in a process of its own: reads its orders as JSON, writes figures as JSON."""

from __future__ import annotations

import importlib
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import raw
from benchmarks.side import PATIENCE, Worker

APP = "benchmarks.transport_app"

#: Name of a configuration -> what it changes of Celery's defaults.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "late": {"task_acks_late": True, "worker_prefetch_multiplier": 1},
}


class Measurement:
    def __init__(self, orders: dict[str, Any]) -> None:
        self.name: str = orders["name"]
        self.configuration: str = orders["configuration"]
        self.folder = Path(orders["folder"])
        self.calls: int = orders["calls"]
        self.backlog: int = orders["backlog"]
        self.pings: int = orders["pings"]
        self.idle: float = orders["idle"]
        self.environment = {
            **orders["environment"],
            "BENCH_BROKER": orders["broker"],
            "BENCH_MARK": str(self.folder / "marks"),
            "BENCH_COUNT": str(self.backlog),
        }
        os.environ.update(self.environment)
        self.app = importlib.import_module(APP)

    def run(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        batched = self._batched()
        if self.configuration == "default":
            figures.update(self._delays())
            if batched is not None:
                figures["batched/s"] = self._rate(self.calls * 5, batched)
            self.app.app.control.purge()
        (batched or self._delay_each)(self.backlog)
        self._wait_for_publishes()
        with self._worker() as worker:
            figures[f"drain {self.configuration}/s"] = self._drained(worker)
            if self.configuration == "default":
                waits = self._latency(worker)
                figures["idle p50 ms"] = statistics.median(waits) * 1e3
                figures["idle p99 ms"] = waits[int(len(waits) * 0.99) - 1] * 1e3
                figures["idle CPU %"] = worker.idle_cpu(self.idle)
                figures.update(worker.footprint())
                figures["stop s"] = worker.stop()
        self.app.app.close()
        return figures

    def _delays(self) -> dict[str, float]:
        """Calls per second; on Pub/Sub in turns with the raw client, so that both have the same luck."""
        if self.name != "pubsub":
            return {"delay/s": self._rate(self.calls, self._delay_each)}
        raw_publish = raw.publishing(self.environment["PUBSUB_EMULATOR_HOST"])
        turns, seconds = 20, {"delay/s": 0.0, "raw publish/s": 0.0}
        each = self.calls // turns
        for turn in range(turns + 1):
            for name, call in (("delay/s", self._delay_each), ("raw publish/s", raw_publish)):
                began = time.perf_counter()
                call(each)
                if turn:  # the first one connects and declares
                    seconds[name] += time.perf_counter() - began
        figures = {name: turns * each / spent for name, spent in seconds.items()}
        return {**figures, "delay of raw": figures["delay/s"] / figures["raw publish/s"]}

    def _rate(self, calls: int, call: Callable[[int], None]) -> float:
        call(1)  # the first one connects and declares
        began = time.perf_counter()
        call(calls)
        return calls / (time.perf_counter() - began)

    def _delay_each(self, count: int) -> None:
        for _ in range(count):
            self.app.noop.delay()

    def _batched(self) -> Callable[[int], None] | None:
        """Pipelined publishes, confirmed at the end, where the side has them."""
        if self.name != "pubsub":
            return None
        import gwi_celery

        publish_batch = getattr(gwi_celery, "publish_batch", None)
        if publish_batch is None:
            return None

        def publish(count: int) -> None:
            with publish_batch():
                self._delay_each(count)

        return publish

    def _wait_for_publishes(self) -> None:
        """``gcpubsub`` doesn't wait for its publishes, so that a backlog may not be there yet."""
        if self.name == "gcpubsub":
            time.sleep(1.0)

    @contextmanager
    def _worker(self) -> Iterator[Worker]:
        environment = {
            **self.environment,
            "BENCH_CONF": json.dumps(CONFIGURATIONS[self.configuration]),
        }
        worker = Worker("solo", self.folder, environment, app=APP, log_level="WARNING")
        try:
            yield worker
        finally:
            worker.close()

    def _lines(self, worker: Worker, count: int) -> list[float]:
        """The first ``count`` marks, waited for."""
        marks = self.folder / "marks"
        deadline = time.monotonic() + PATIENCE
        while True:
            lines = marks.read_text().splitlines() if marks.exists() else []
            if len(lines) >= count:
                return [float(line) for line in lines[:count]]
            if time.monotonic() > deadline or worker.process.poll() is not None:
                raise RuntimeError(
                    f"{self.name}: {len(lines)} of {count} marks, then nothing more\n{worker.tail()}"
                )
            time.sleep(0.005)  # more often, it would take CPU time from what it measures

    def _drained(self, worker: Worker) -> float:
        first, last = self._lines(worker, 2)
        return (self.backlog - 1) / max(last - first, 1e-9)

    def _latency(self, worker: Worker) -> list[float]:
        warm = 5
        for n in range(self.pings + warm):
            # Idle again; for a random time, or the pings would fall in step with the emulator, which
            # looks for messages every 50 ms.
            time.sleep(random.uniform(0.02, 0.12))
            self.app.mark.delay(time.time())
            self._lines(worker, 2 + n + 1)
        return sorted(self._lines(worker, 2 + warm + self.pings)[2 + warm :])


def main() -> int:
    figures = Measurement(json.load(sys.stdin)).run()
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
