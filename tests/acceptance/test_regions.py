"""Two regions on one queue and one database; the network of one is cut while its jobs run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gwi_celery.brokers.pubsub.options import STRICT_HOST
from gwi_celery.gcp.emulators import FIRESTORE_HOST, PUBSUB_HOST
from gwi_celery.testing.emulators import Emulator
from gwi_celery.testing.twin import Twin, start_twin
from tests.proxy import Proxy, proxied
from tests.workers import ROOT, Worker, eventually, read_audit

pytestmark = [pytest.mark.acceptance, pytest.mark.emulator, pytest.mark.slow]

APP = """
import json, os, time
from pathlib import Path
from celery import Celery
from gwi_celery import ReliableTask, setup

HERE = Path(__file__).parent
REGION = os.environ.get("REGION", "caller")
app = Celery("regions")
setup(app, lease_seconds=10, lock_ttl=3, contention_delay=0.5)


def note(run, n, fence):
    line = json.dumps({"run": run, "step": n, "region": REGION, "fence": fence}) + "\\n"
    fd = os.open(HERE / "audit.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, line.encode())
    os.close(fd)
    while REGION == "east" and n == 1 and not (HERE / "go-on").exists():
        time.sleep(0.05)
    return REGION


@app.task(base=ReliableTask, bind=True, name="job")
def job(self, *, tenant_id, run_id):
    return [self.step(f"s{n}", note, run_id, n, self.fence) for n in range(4)]
"""

CALL = """
import json, sys, regions
runs = sys.argv[1].split(",")
made = [regions.job.delay(tenant_id="acme", run_id=run) for run in runs]
if len(sys.argv) > 2:
    print(json.dumps([result.get(timeout=80) for result in made]))
"""


class Region:
    """A worker, and its network to Pub/Sub and Firestore."""

    def __init__(
        self, name: str, folder: Path, pubsub: Proxy, firestore: Proxy, project: str
    ) -> None:
        self.networks = (pubsub, firestore)
        self.worker = Worker(
            "regions",
            folder,
            concurrency=2,
            env={
                "REGION": name,
                "GCP_PROJECT_ID": project,
                PUBSUB_HOST: pubsub.endpoint,
                STRICT_HOST: pubsub.endpoint,
                FIRESTORE_HOST: firestore.endpoint,
                "PYTHONPATH": f"{ROOT}:{folder}",
            },
        )

    def cut(self) -> None:
        for network in self.networks:
            network.cut()

    def mend(self) -> None:
        for network in self.networks:
            network.mend()


@pytest.fixture
def twin() -> Iterator[Twin]:
    with start_twin(early_expiry=0) as twin:
        yield twin


@pytest.mark.timeout(240)
def test_a_region_that_is_cut_off_loses_nothing_and_writes_nothing_more(
    tmp_path: Path, twin: Twin, firestore_emulator: Emulator
) -> None:
    project = f"p-{uuid.uuid4().hex[:20]}"
    (tmp_path / "regions.py").write_text(APP)
    runs = ["r1", "r2", "r3", "r4"]

    def call(*arguments: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", CALL, *arguments],
            cwd=tmp_path,
            env={
                **os.environ,
                **twin.environ,
                FIRESTORE_HOST: firestore_emulator.endpoint,
                "GCP_PROJECT_ID": project,
                "PYTHONPATH": f"{ROOT}:{tmp_path}",
            },
            check=False,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout else None

    def started_in_the_east() -> set[str]:
        return {line["run"] for line in read_audit(tmp_path) if line["step"] == 1}

    with ExitStack() as stack:

        def region(name: str) -> Region:
            targets = (twin.endpoint, firestore_emulator.endpoint)
            networks = [stack.enter_context(proxied(target)) for target in targets]
            made = Region(name, tmp_path, *networks, project)
            stack.callback(made.worker.close)
            made.worker.ready()
            return made

        east = region("east")
        call(",".join(runs))
        # Two jobs are in the middle of their second step, one step recorded.
        eventually(lambda: len(started_in_the_east()) == 2, what="two jobs run in the east")
        caught = started_in_the_east()
        east.cut()
        west = region("west")
        results = call(
            ",".join(runs), "wait"
        )  # the same calls again: duplicates, whose answers count

        assert len(results) == 4, "nothing is lost"
        for run, regions in zip(runs, results, strict=True):
            if run in caught:
                assert regions == ["east", "west", "west", "west"], "it went on at the last step"
            else:
                assert set(regions) == {"west"}
        # The east comes back and finishes the step that it was in: nobody takes that from it.
        (tmp_path / "go-on").touch()
        east.mend()
        east.worker.wait_for("lost its lease", count=2)
        assert call(",".join(runs), "wait") == results, "what was decided stays"
        assert west.worker.process.poll() is None

        ran = Counter((line["run"], line["step"]) for line in read_audit(tmp_path))
        for (run, step), times in ran.items():
            # A step that was in flight runs again; a recorded one never does.
            assert times == (2 if run in caught and step == 1 else 1), (run, step, times)
        for run in caught:
            fences = [line["fence"] for line in read_audit(tmp_path) if line["run"] == run]
            assert len(set(fences)) == 2
            assert fences == sorted(fences), "the later one has the larger token"
        # Both regions take new jobs.
        assert len(call("r5,r6,r7,r8", "wait")) == 4
