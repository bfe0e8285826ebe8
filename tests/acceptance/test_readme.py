"""The README's file and its commands, as they stand there: in a folder, and on Google's emulators."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from gwi_celery.testing.emulators import Emulator
from tests.workers import ROOT, worker

pytestmark = pytest.mark.acceptance


def take_from_the_readme(folder: Path) -> list[str]:
    """Write ``insight.py``, and something to analyse; the command that calls it."""
    text = (ROOT / "README.md").read_text()
    [code] = re.findall(r"```python\n([^`]*Celery\(\"insight\"\).*?)```", text, re.DOTALL)
    (folder / "insight.py").write_text(code)
    for name in ("one.py", "two.py"):
        (folder / name).touch()
    assert "celery -A insight worker --concurrency 1 " in text
    [call] = re.findall(r"^(python -c 'import insight.*)$", text, re.MULTILINE)
    program, *arguments = shlex.split(call)
    assert program == "python"
    return [sys.executable, *arguments]


def analysed(folder: Path, environment: dict[str, str]) -> str:
    """What the call prints, made twice: the second time nothing runs."""
    call = take_from_the_readme(folder)
    printed = []
    with worker(
        "insight", folder, env={**environment, "PYTHONPATH": f"{ROOT}:{folder}"}
    ) as running:
        for _ in range(2):
            done = subprocess.run(
                call,
                cwd=folder,
                env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
                check=False,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, done.stderr + running.log
            printed.append(done.stdout)
        running.wait_for("is answered from the store")
    assert printed[0] == printed[1]
    return printed[0].strip()


def test_it_runs_as_it_stands(tmp_path: Path) -> None:
    assert analysed(tmp_path, {}) == "{'files': 3}"
    assert (tmp_path / ".gwi" / "store.sqlite3").exists()


@pytest.mark.emulator
def test_with_a_project_it_runs_on_google_cloud_without_another_change(
    tmp_path: Path, pubsub_emulator: Emulator, firestore_emulator: Emulator
) -> None:
    environment = {
        "GCP_PROJECT_ID": f"p-{uuid.uuid4().hex[:20]}",
        "PUBSUB_EMULATOR_HOST": pubsub_emulator.endpoint,
        "FIRESTORE_EMULATOR_HOST": firestore_emulator.endpoint,
    }
    assert analysed(tmp_path, environment) == "{'files': 3}"
    assert not (tmp_path / ".gwi").exists()
