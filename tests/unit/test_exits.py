"""How a worker's process ends."""

from __future__ import annotations

import subprocess
import sys


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
