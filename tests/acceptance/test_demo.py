"""``make demo`` keeps its word, and its checker can fail."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.repo_insight.verify import AUDIT, STATE, main
from gwi_celery.testing.emulators import Emulator
from tests.machine import PATIENCE
from tests.workers import ROOT, eventually

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.slow,  # make demo is how a newcomer runs it
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("demo"),
]

DEMO = [sys.executable, "-m", "examples.repo_insight.demo"]
#: A setting of the user's that is wrong must not reach the demo.
ENVIRONMENT = {**os.environ, "GWI_FOLDER": "/nonexistent", "GCP_PROJECT_ID": "not-for-the-demo"}


def folder_of(output: str) -> Path:
    found = re.search(r"everything goes to (demo-output/\S+)/", output)
    assert found is not None, output
    return ROOT / found[1]


@pytest.fixture(scope="module")
def finished() -> Iterator[tuple[int, str, Path]]:
    """One demo that ran to its end: exit code, output, folder."""
    done = subprocess.run(
        DEMO,
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    folder = folder_of(done.stdout)
    yield done.returncode, done.stdout, folder
    shutil.rmtree(folder)


def test_the_demo_ends_with_every_invariant_held(finished: tuple[int, str, Path]) -> None:
    code, output, folder = finished

    assert code == 0, output
    assert re.search(r"All \d+ invariants held\.$", output.strip()), output
    assert output.count("SIGKILL to the worker's process group") == 2
    assert len(list(folder.glob("reports/*/report.html"))) >= 3


def test_the_demo_leaves_no_process_behind(finished: tuple[int, str, Path]) -> None:
    pids = {int(pid) for pid in re.findall(r"worker started, pid (\d+)", finished[1])}

    assert len(pids) == 3
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.killpg(pid, 0)


def sabotage(audit: Path, fault: str) -> None:
    """Change the trail as a bug in the library would have."""
    lines = audit.read_text().splitlines()
    events = [json.loads(line) for line in lines]
    recorded = next(e for e in events if e["event"] == "step recorded")
    if fault == "a recorded step ran again":
        later = next(
            i
            for i, e in enumerate(events)
            if e["run"] == recorded["run"]
            and e["tenant"] == recorded["tenant"]
            and e["attempt"] == 2
            and e["event"] == "step answered"
        )
        events[later]["event"] = "step called"
    elif fault == "a fence went back":
        starts = [e for e in events if e["event"] == "attempt started" and e["attempt"] == 2]
        for event in events:
            if event["fence"] == starts[0]["fence"]:
                event["fence"] = 0
    elif fault == "a commit batch is missing":
        events = [e for e in events if e.get("step") != "batch-7"]
    elif fault == "the mismatch ran":
        ledger = json.loads((audit.parent / "submissions.json").read_text())
        mismatch = next(s for s in ledger["submissions"] if s["kind"] == "mismatch")
        events.append({**recorded, "event": "attempt started", "task_id": mismatch["task_id"]})
    text = "".join(json.dumps(e) + "\n" for e in events)
    audit.write_text("" if fault == "the trail is empty" else text)


@pytest.mark.parametrize(
    "fault",
    [
        "a recorded step ran again",
        "a fence went back",
        "a commit batch is missing",
        "the mismatch ran",
        "the trail is empty",
    ],
)
def test_a_sabotaged_trail_is_reported(
    finished: tuple[int, str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    copy = tmp_path / "demo"
    shutil.copytree(finished[2], copy)
    assert main([str(copy)]) == 0  # as it was, it holds, in another place too
    sabotage(copy / AUDIT, fault)

    assert main([str(copy)]) == 1
    assert "INVARIANTS BROKEN" in capsys.readouterr().out


def test_a_folder_without_a_demo_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 1
    assert "holds no finished demo" in capsys.readouterr().out


def test_an_interrupt_ends_the_worker_too() -> None:
    process = subprocess.Popen(
        DEMO, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    output = ""
    try:
        assert process.stdout is not None
        for line in process.stdout:
            output += line
            if "worker started, pid" in line:
                process.send_signal(signal.SIGINT)
        assert process.wait(timeout=PATIENCE) == 130, output
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        shutil.rmtree(folder_of(output))
    (pid,) = re.findall(r"worker started, pid (\d+)", output)

    def gone() -> bool:
        try:
            os.killpg(int(pid), 0)
        except ProcessLookupError:
            return True
        return False

    assert eventually(gone, what="the worker is gone")


@pytest.mark.slow
@pytest.mark.emulator
def test_the_demo_runs_on_the_emulators_as_it_does_on_a_folder(
    pubsub_emulator: Emulator, firestore_emulator: Emulator
) -> None:
    done = subprocess.run(
        [*DEMO, "--project", f"demo-{os.getpid()}"],
        cwd=ROOT,
        env={
            **ENVIRONMENT,
            "PUBSUB_EMULATOR_HOST": pubsub_emulator.endpoint,
            "FIRESTORE_EMULATOR_HOST": firestore_emulator.endpoint,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    folder = folder_of(done.stdout)
    assert done.returncode == 0, done.stdout
    assert re.search(r"All \d+ invariants held\.$", done.stdout.strip()), done.stdout
    assert done.stdout.count("SIGKILL to the worker's process group") == 2
    assert re.search(r"results: +firestore://", (folder / "worker.log").read_text())
    assert not (folder / STATE).exists(), "nothing of the broker's or store's is in the folder"
    shutil.rmtree(folder)
