"""The script that checks a real database, run on the emulator."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from gwi_celery.firestore.client import Client
from gwi_celery.firestore.documents import Query
from gwi_celery.firestore.url import parse
from tests import zygote


@pytest.mark.emulator
def test_the_check_finds_what_the_store_relies_on_and_leaves_nothing(
    firestore_emulator: Any,
) -> None:
    url = f"firestore://check-{uuid4().hex[:20]}"
    done = zygote.run_module("docs.check_firestore", "--seconds", "1", url, folder=zygote.ROOT)
    assert done.returncode == 0, done.stdout
    assert "BROKEN" not in done.stdout
    assert "all that is relied on holds" in done.stdout
    assert "p99" in done.stdout
    assert "left behind" not in done.stdout
    client = Client(parse(url))
    for group in ("gwi-check", "things", "gwi_jobs", "gwi_locks", "gwi_steps", "gwi_chunks"):
        assert not client.query(Query("", group, descendants=True)).documents
    client.close()
