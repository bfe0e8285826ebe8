"""``python -m benchmarks costs``: what one job of each kind calls, writes and is billed, counted.

A real worker (pull), then the push service, on the twins of Pub/Sub and Firestore, which count. Prices
are list prices: Pub/Sub's, and Firestore's in a multi-region. ``docs/scale.md`` has the table, and
``tests/firestore/test_costs.py`` compares them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from gwi_celery.testing.emulators import start_firestore
from gwi_celery.testing.twin import FirestoreTwin, Twin, start_firestore_twin, start_twin
from gwi_celery.testing.twin.cloudrun import start_cloud_run

#: Of each kind, one after the other: several at a time share deliveries, and are a little cheaper.
JOBS = 5
_APP = "benchmarks.costs_app"
_PATIENCE = 60.0
#: The columns: what each counts, of both twins' reports.
COUNTED = {
    "publishes": ("rpcs", "Publish"),
    "commits": ("rpcs", "Commit"),
    "reads by key": ("rpcs", "BatchGetDocuments"),
    "queries": ("rpcs", "RunQuery"),
    "written": ("documents", "writes"),
    "read": ("documents", "reads"),
    "deleted": ("documents", "deletes"),
}


@dataclass(frozen=True)
class Kind:
    name: str
    #: Calls it, for the run of that name.
    call: Callable[[Any, str], object]
    #: Messages that it takes; a copy counts.
    messages: int = 1
    #: What has to be done before, for each run, and isn't counted.
    before: Callable[[Any, str], object] | None = None


def _of(run: str) -> dict[str, str]:
    return {"tenant_id": "acme", "run_id": run}


def _contended(app: Any, run: str) -> None:
    """Two jobs of one run: the second finds the lock held, waits, and runs."""
    app.reliable.delay(**_of(run), seconds=_HELD)
    time.sleep(_HELD / 3)
    app.stepping.delay(**_of(run))


#: Seconds: shorter than half of ``contention_delay``, so that a copy is enough.
_HELD = 1.0

KINDS = (
    Kind("plain, with a result", lambda app, run: app.plain.delay()),
    Kind("plain, ignore_result", lambda app, run: app.plain.apply_async(ignore_result=True)),
    Kind("reliable", lambda app, run: app.reliable.delay(**_of(run))),
    Kind("reliable, 3 steps", lambda app, run: app.stepping.delay(**_of(run))),
    Kind(
        "a duplicate of a finished one",
        lambda app, run: app.reliable.delay(**_of(run)),
        before=lambda app, run: app.reliable.delay(**_of(run)),
    ),
    Kind("reliable, and one with 3 steps that waits for its lock", _contended, messages=3),
    Kind(
        "reliable, ETA in a second",
        lambda app, run: app.reliable.apply_async((), _of(run), countdown=1),
    ),
    Kind(
        "reliable, retried once after a second",
        lambda app, run: app.retried.delay(**_of(run)),
        messages=2,
    ),
)
PUSHED = (
    Kind("reliable, pushed", lambda app, run: app.reliable.delay(**_of(run))),
    Kind("reliable, 3 steps, pushed", lambda app, run: app.stepping.delay(**_of(run))),
)


@dataclass
class Row:
    """Of one job."""

    name: str
    counts: dict[str, float]
    #: Per million.
    usd: dict[str, float]


def measure(jobs: int = JOBS) -> Iterator[Row]:
    """Each kind as soon as it is counted. Raises AssertionError if jobs don't come to an end."""
    quiet = {"faults": 0, "early_expiry": 0, "settle": 0}
    with (
        start_firestore(fresh=True) as emulator,
        start_firestore_twin(emulator.endpoint, lenient=True) as firestore,
        start_twin(**quiet) as pubsub,
        tempfile.TemporaryDirectory(prefix="gwi-bench-") as folder,
    ):
        env = {
            **os.environ,
            **firestore.environ,
            **pubsub.environ,
            "GCP_PROJECT_ID": f"p-{uuid.uuid4().hex[:20]}",
            "GWI_FOLDER": folder,
            "GWI_CONTENTION_DELAY": str(4 * _HELD),
            "GWI_ENVIRONMENT": "development",
        }
        before = dict(os.environ)
        os.environ.update(env)
        try:
            tasks = import_module(_APP)
            counter = _Counter(tasks, pubsub, firestore, env["GCP_PROJECT_ID"])
            command = [sys.executable, "-m", "celery", "-A", _APP]
            alone = ["--without-heartbeat", "--without-gossip", "--without-mingle"]
            pull = [*command, "-q", "worker", "--pool", "threads", "-c", "4", *alone]
            with _process([*pull, "-l", "ERROR"], env):
                counter.warm_up()
                yield from (counter.count(kind, jobs) for kind in KINDS)
            with start_cloud_run(
                [*command, "gwi", "serve", "--pool", "threads", "-c", "4"],
                env=env,
                iam=False,
                cpu_always=True,
                concurrency=80,
                max_instances=1,
            ) as service:
                tasks.app.finalize()
                from gwi_celery import broker_for

                broker: Any = broker_for(tasks.app)
                broker.push_to("celery", f"{service.url}/push")
                counter.warm_up()
                yield from (counter.count(kind, jobs) for kind in PUSHED)
            tasks.app.close()
        finally:
            os.environ.clear()
            os.environ.update(before)
            sys.modules.pop(_APP, None)


class _Counter:
    def __init__(self, tasks: Any, pubsub: Twin, firestore: FirestoreTwin, project: str) -> None:
        self._tasks, self._pubsub, self._firestore = tasks, pubsub, firestore
        self._path = f"projects/{project}/subscriptions/gwi-celery"

    def warm_up(self) -> None:
        self._tasks.plain.delay()
        self._wait_acked(1)

    def count(self, kind: Kind, jobs: int) -> Row:
        runs = [f"{kind.name}-{n}" for n in range(jobs)]
        if kind.before is not None:
            self._do(kind.before, runs, 1)
        before = self._report()
        self._do(kind.call, runs, kind.messages)
        made = {name: value - before.get(name, 0.0) for name, value in self._report().items()}
        usd = {name: made.pop(name) / jobs * 1e6 for name in ("Pub/Sub", "Firestore")}
        return Row(kind.name, {name: value / jobs for name, value in made.items()}, usd)

    def _do(self, call: Callable[[Any, str], object], runs: list[str], messages: int) -> None:
        for run in runs:
            acked = self._pubsub.counts(self._path)["acked"]
            call(self._tasks, run)
            self._wait_acked(acked + messages)

    def _wait_acked(self, number: int) -> None:
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                counts = self._pubsub.counts(self._path)
            except ValueError:
                counts = Counter()  # the worker is making it
            if counts["acked"] >= number and not counts["waiting"] + counts["leased"]:
                return
            assert time.monotonic() < until, f"not acked: {counts}"
            time.sleep(0.05)

    def _report(self) -> dict[str, float]:
        found = Counter[str]()
        for twin, name in ((self._pubsub, "Pub/Sub"), (self._firestore, "Firestore")):
            report = twin.cost()
            found[name] = report["usd"]
            for column, (part, key) in COUNTED.items():
                found[column] += report.get(part, {}).get(key, 0)
        return dict(found)


@contextmanager
def _process(command: list[str], env: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(
        command,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def table(rows: list[Row]) -> str:
    """As ``docs/scale.md`` has it."""
    head = ["kind", *COUNTED, "USD per million: Pub/Sub", "Firestore"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [f"{row.counts[name]:.1f}".removesuffix(".0") for name in COUNTED]
        cells += [f"{row.usd[name]:.2f}" for name in ("Pub/Sub", "Firestore")]
        lines.append("| " + " | ".join([row.name, *cells]) + " |")
    return "\n".join(lines)


def main(quick: bool = False) -> int:
    print(table(list(measure(1 if quick else JOBS))))
    return 0
