"""The script that checks a real database, run on the emulator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from gwi_celery.firestore.client import Client
from gwi_celery.firestore.documents import Query
from gwi_celery.firestore.url import parse

ROOT = Path(__file__).parents[2]


@pytest.mark.emulator
def test_the_check_finds_what_the_store_relies_on_and_leaves_nothing(
    firestore_emulator: Any,
) -> None:
    url = f"firestore://check-{uuid4().hex[:20]}"
    done = subprocess.run(
        [sys.executable, "docs/check_firestore.py", "--seconds", "1", url],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "BROKEN" not in done.stdout
    assert "all that is relied on holds" in done.stdout
    assert "p99" in done.stdout
    assert "left behind" not in done.stdout
    client = Client(parse(url))
    for group in ("things", "gwi_jobs", "gwi_locks", "gwi_steps", "gwi_chunks"):
        assert not client.query(Query("", group, descendants=True)).documents
    client.close()
