"""Messages through workers that start and stop all the time: how many had to wait for a lease to run out.

On the strict twin, which leaves a message leased to nobody wherever Pub/Sub would. Workers are told to
stop at random moments (SIGTERM, as by Cloud Run or Kubernetes), or are killed.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from benchmarks.side import Worker
from gwi_celery import publish_batch
from gwi_celery.testing.twin import Twin

#: Seconds of a lease: Pub/Sub's shortest, so that what waits for one still arrives in the same run.
LEASE = 10.0
#: Workers at a time, and messages a second: fewer than they manage, so that nothing waits for them.
WORKERS, RATE = 3, 120
#: Seconds between two changes of worker.
EVERY = 2.5
_PATIENCE = 120.0
#: Seconds for a stop. Celery's prefork pool takes 30 when it is told to stop between handing a task to a
#: child and the child's taking it: it forgets the task, and the child waits for its result to be read.
_STOPS = 60.0

APP = "benchmarks.transport_app"


@dataclass
class Turnover:
    """What one run showed."""

    messages: int
    #: Workers that were stopped, or killed.
    ended: int
    #: Leases that ran out: each is a message that was late by it.
    late: int
    #: Calls that ran more than once.
    twice: int
    #: Seconds from the call to its run: the longest.
    slowest: float
    #: Seconds of a warm stop: the longest.
    slowest_stop: float = 0.0


def run(
    twin: Twin,
    folder: Path,
    *,
    messages: int = 10_000,
    kill: bool = False,
    options: str = "",
    settings: dict[str, object] | None = None,
    seed: int = 7,
) -> Turnover:
    """Send them and replace a worker every few seconds. Raises RuntimeError if one never arrives.

    Args:
        kill: SIGKILL in place of a warm stop.
        options: Of the broker, as in its URL: ``priority_levels=0,5``.
        settings: Of Celery, beside its defaults.
    """
    rng = random.Random(seed)
    marks = folder / "marks"
    environment = {
        **twin.environ,
        "BENCH_BROKER": f"pubsub://turnover-{uuid4().hex[:8]}?lease_seconds={LEASE:g}&{options}",
        "BENCH_MARK": str(marks),
        "BENCH_CONF": json.dumps(settings or {}),
    }
    os.environ.update(environment)
    app = importlib.reload(importlib.import_module(APP))
    before = twin.cost()["expired"]
    workers: list[Worker] = []
    found = Turnover(messages, ended=0, late=0, twice=0, slowest=0.0)

    def start() -> None:
        pool = rng.choice(["solo", "prefork"])
        workers.append(Worker(pool, folder, environment, app=APP, log_level="WARNING"))

    def end_one() -> None:
        worker = workers.pop(rng.randrange(len(workers)))
        try:
            if not kill:
                found.slowest_stop = max(found.slowest_stop, worker.stop(_STOPS))
        finally:
            worker.close()
        found.ended += 1

    try:
        for _ in range(WORKERS):
            start()
        sent, began, change = 0, time.monotonic(), time.monotonic() + 2 * EVERY
        while sent < messages:
            due = min(messages, int((time.monotonic() - began) * RATE))
            if due > sent:
                with publish_batch():
                    for n in range(sent, due):
                        app.numbered.delay(n, time.time())
                sent = due
            if time.monotonic() >= change:
                start()
                end_one()
                change = time.monotonic() + EVERY * rng.uniform(0.5, 1.5)
            time.sleep(0.02)
        waits = _waits(marks, messages)
    finally:
        for worker in workers:
            worker.close()
        app.app.close()
    found.late = twin.cost()["expired"] - before
    found.twice = len(waits) - messages
    found.slowest = max(wait for _, wait in waits)
    return found


def _waits(marks: Path, messages: int) -> list[tuple[int, float]]:
    """(number, seconds) of every run, once each message has had one."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        lines = marks.read_text().splitlines() if marks.exists() else []
        waits = [(int(n), float(wait)) for n, wait in map(str.split, lines)]
        missing = messages - len({n for n, _ in waits})
        if not missing:
            return waits
        if time.monotonic() > deadline:
            raise RuntimeError(f"{missing} of {messages} messages never arrived")
        time.sleep(0.2)
