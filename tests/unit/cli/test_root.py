"""The group ``gwi``, which Celery imports for each of its commands."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import sys
from celery.bin.celery import celery
assert "gwi" in celery.commands
print([name for name in sys.modules if name.startswith(("google.", "grpc", "gwi_celery.doctor"))])
"""


def test_a_worker_that_starts_does_not_import_what_our_commands_need() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], check=True, capture_output=True, text=True
    )
    assert done.stdout == "[]\n"
