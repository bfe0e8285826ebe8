"""What a fork finds and leaves: calls that go on, and no lock of ours that stays held."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pytest

import gwi_celery
from gwi_celery import forks
from gwi_celery.gcp import fork_gate
from tests.machine import PATIENCE


def _in_child(check) -> int:  # type: ignore[no-untyped-def] # any callable
    """The exit code of a forked child that runs ``check``: 0 if it is true."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if check() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class _Call:
    """A long call that counts, and may make another while a fork is under way."""

    def __init__(self, makes: bool = False) -> None:
        self.paused = self.resumed = 0
        self.started = False
        self.made: _Call | None = None
        self._makes = makes
        fork_gate.register(self)

    def pause(self, waited: float) -> None:
        self.paused += 1
        if self._makes and self.made is None:
            self.made = _Call()
            assert not fork_gate.try_enter(), "nothing starts during a fork"

    def resume(self) -> None:
        self.resumed += 1


def test_a_call_made_while_another_thread_forks_is_told_to_go_on() -> None:
    first = _Call(makes=True)
    assert _in_child(lambda: True) == 0
    assert first.paused
    assert first.resumed == 1
    assert first.made is not None
    assert first.made.resumed == 1


@pytest.mark.parametrize("make", [forks.lock, forks.rlock, forks.condition])
def test_a_lock_that_another_thread_holds_is_free_in_the_child(make) -> None:  # type: ignore[no-untyped-def]
    made = make()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with made:
            held.set()
            done.wait(PATIENCE)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(PATIENCE)

    def free() -> bool:
        if not made.acquire(timeout=PATIENCE):
            return False
        made.release()
        return True

    try:
        assert _in_child(free) == 0
        assert not made.acquire(blocking=False), "in the parent it is still held"
    finally:
        done.set()
        thread.join()


def test_every_lock_of_ours_is_one_that_a_fork_frees() -> None:
    root = Path(gwi_celery.__file__).parent
    made = {
        str(path.relative_to(root)): found
        for path in root.rglob("*.py")
        if "testing" not in path.parts
        and (
            found := re.findall(r"threading\.(?:R?Lock|Condition|Semaphore)\b\(?", path.read_text())
        )
    }
    # The gate itself is made anew in the child.
    assert set(made) <= {"forks.py", "gcp/fork_gate.py"}, "make it by gwi_celery.forks"
