"""How a worker's process ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from celery import signals

from gwi_celery import exits
from tests import zygote

_ENDS_NOW = """
import multiprocessing, os
import billiard
from gwi_celery.exits import end_now

shared = billiard.Value("i")
child = multiprocessing.get_context("fork").Process(target=end_now, args=(3,))
child.start()
child.join()
print(child.exitcode, sum(n.startswith("pymp-") for n in os.listdir(os.environ["TMPDIR"])), flush=True)
end_now(4)
"""


def test_a_worker_ends_without_a_last_garbage_collection() -> None:
    """It takes most of a second over all that Google loads; what runs at exit still does."""
    script = (
        "import atexit, gc\n"
        "from celery import signals\n"
        "import gwi_celery.exits\n"
        "atexit.register(lambda: print('frozen' if gc.get_freeze_count() else 'collects'))\n"
        "{}"
    )
    stopped = "signals.worker_shutdown.send(sender=None)"
    found = [
        subprocess.run(
            [sys.executable, "-c", script.format(end)], check=True, capture_output=True, text=True
        ).stdout
        for end in (stopped, "")
    ]
    assert found == ["frozen\n", "collects\n"]


def test_a_pools_child_flushes_as_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves by ``os._exit``, after this signal."""
    monkeypatch.setattr(exits, "_flushes", [])
    flushed: list[str] = []
    exits.at_exit(lambda: flushed.append("all"))
    signals.worker_process_shutdown.send(sender=None, pid=1, exitcode=0)
    assert flushed == ["all"]


def test_a_process_that_ends_at_once_deletes_the_folder_of_its_pool_only(tmp_path: Path) -> None:
    """Not that of the process that it was forked from."""
    done = zygote.run(_ENDS_NOW, folder=tmp_path, env={"TMPDIR": str(tmp_path)})
    assert (done.stdout, done.returncode) == ("3 1\n", 4)
    assert not list(tmp_path.glob("pymp-*"))
