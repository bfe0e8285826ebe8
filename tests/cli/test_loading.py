"""What the command line says of an app that can't work, and how its commands end: real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.machine import PATIENCE

#: Ctrl-C's signal is not ignored, as it is in what a shell started in the background.
APP = """
import signal

from celery import Celery
from gwi_celery import setup

signal.signal(signal.SIGINT, signal.default_int_handler)
app = Celery("loaded")
setup(app, folder={folder!r}{more})
"""


def begin(folder: Path, more: str, arguments: Sequence[str]) -> subprocess.Popen[str]:
    (folder / "loaded.py").write_text(APP.format(folder=str(folder / "jobs"), more=more))
    return subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "loaded", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )


def test_an_app_that_is_refused_as_it_is_imported_is_one_sentence(tmp_path: Path) -> None:
    with begin(tmp_path, ", lease_secs=3", ["worker", "-P", "solo"]) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert out == ""
    assert err.startswith(
        "Error: setup() has no setting 'lease_secs'; did you mean 'lease_seconds'"
    )
    assert len(err.splitlines()) == 1


def test_what_is_watched_ends_with_ctrl_c_and_says_nothing(tmp_path: Path) -> None:
    with begin(tmp_path, "", ["gwi", "jobs", "list", "--watch", "0.1"]) as process:
        assert process.stdout is not None
        heads = [process.stdout.readline() for _ in range(2)]  # it was shown again
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    assert all("STATUS" in head for head in heads)
    assert (process.returncode, err.strip()) == (0, "")


def test_a_reader_that_has_seen_enough_ends_a_command_quietly(tmp_path: Path) -> None:
    with begin(tmp_path, "", ["gwi", "jobs", "list", "--watch", "0.1"]) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(PATIENCE) == 1
    assert err == ""
