"""What tests' processes are forked from."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from uuid import uuid4

from tests.machine import PATIENCE
from tests.zygote import Zygote


def test_what_was_forked_for_a_process_ends_with_it(tmp_path: Path) -> None:
    """A process of tests that crashes leaves no worker."""
    (tmp_path / "waits.py").write_text("import signal; print('here', flush=True); signal.pause()")
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid4().hex
    mine, theirs = Zygote(run), Zygote(run)
    left = mine.fork("waits", [], tmp_path, dict(os.environ), talks=False)
    child = theirs.fork("waits", [], tmp_path, dict(os.environ), talks=False)
    assert [each.stdout.readline() for each in (left, child)] == ["here\n"] * 2
    assert theirs._control is not None
    theirs._control.close()
    assert child.wait(PATIENCE) == -signal.SIGKILL
    assert left.poll() is None
    left.kill()
    assert left.wait(PATIENCE) == -signal.SIGKILL
    for each in (left, child):
        each.stdout.close()
