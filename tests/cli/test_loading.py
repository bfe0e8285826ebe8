"""What the command line says of an app that can't work, and how its commands end: real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests import zygote
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
QUIET = {"PYTHONWARNINGS": "ignore"}
WATCH = ["-A", "loaded", "gwi", "jobs", "list", "--watch", "0.1"]


def app_in(folder: Path, more: str = "") -> None:
    (folder / "loaded.py").write_text(APP.format(folder=str(folder / "jobs"), more=more))


def test_an_app_that_is_refused_as_it_is_imported_is_one_sentence(tmp_path: Path) -> None:
    app_in(tmp_path, ", lease_secs=3")
    start = ("-A", "loaded", "worker", "-P", "solo")
    done = zygote.run_module("celery", *start, folder=tmp_path, env=QUIET)
    assert done.returncode == 2
    assert done.stdout.startswith(
        "Error: setup() has no setting 'lease_secs'; did you mean 'lease_seconds'"
    )
    assert len(done.stdout.splitlines()) == 1


def test_what_is_watched_ends_with_ctrl_c_and_says_nothing(tmp_path: Path) -> None:
    app_in(tmp_path)
    process = zygote.start("celery", WATCH, folder=tmp_path, env={**os.environ, **QUIET})
    assert process.stdout is not None
    with process.stdout:
        shown = [process.stdout.readline() for _ in range(2)]  # it was shown again
        process.send_signal(signal.SIGINT)
        shown += process.stdout.readlines()
    assert process.wait(PATIENCE) == 0
    assert all("STATUS" in line for line in shown), shown


def test_a_reader_that_has_seen_enough_ends_a_command_quietly(tmp_path: Path) -> None:
    app_in(tmp_path)
    command = [sys.executable, "-m", "celery", *WATCH]
    env = {**os.environ, **QUIET}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=pipe, stderr=pipe, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(PATIENCE) == 1
    assert err == ""
