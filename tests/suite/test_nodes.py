"""After a crash of one of pytest-xdist's processes the run ends, red, and names the test."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests import zygote
from tests.workers import eventually

#: As tests/conftest.py has it.
CONFTEST = """
from tests import nodes
from tests.order import pytest_xdist_make_scheduler

def pytest_configure(config):
    if config.option.numprocesses and not hasattr(config, "workerinput"):
        nodes.fork_them(config)
"""

#: Both processes crash at the same time, with tests waiting behind. What they forked lives on, and has
#: their ends of pytest-xdist's pipes.
TESTS = """
import os, signal, time
from pathlib import Path
import pytest

here = Path(__file__).parent

@pytest.mark.parametrize("n", [1, 2])
def test_crashes(n):
    child = os.fork()
    if child == 0:
        signal.pause()
    (here / f"child-{n}").write_text(str(child))
    while len(list(here.glob("child-*"))) < 2:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

@pytest.mark.parametrize("n", range(6))
def test_passes(n):
    pass
"""


@pytest.mark.slow  # it runs pytest, in six processes
def test_crashed_processes_are_replaced_and_the_tests_named(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p xdist\n")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TESTS)
    done = zygote.run_pytest(tmp_path, "-n", "2", "--dist", "loadgroup")
    assert done.returncode == 1, done.stdout
    for n in (1, 2):
        assert f"crashed while running 'test_it.py::test_crashes[{n}]'" in done.stdout
        child = int((tmp_path / f"child-{n}").read_text())
        eventually(
            lambda child=child: not psutil.pid_exists(child), "what a crashed process forked"
        )
    assert "2 failed, 6 passed" in done.stdout, done.stdout
