"""The script that checks a real database, run on the emulator."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from gwi_celery.doctor import Finding, firestore
from gwi_celery.firestore.client import Client
from gwi_celery.firestore.documents import Query, create
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


@pytest.mark.emulator
def test_what_a_killed_check_left_is_deleted_by_a_later_one(
    firestore_emulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"firestore://check-{uuid4().hex[:20]}"
    said: list[Finding] = []
    killed, later = (firestore.Trial(url, 1, said.append) for _ in range(2))
    killed.leftovers()
    killed.client.commit([create(killed.name("a"), {})])
    assert said.pop().measured == "nothing"
    later.leftovers()
    assert said.pop().measured == "nothing; of 1 that began in the last 2 hours, left alone"
    monkeypatch.setattr(firestore, "_OLD", 0)
    later.leftovers()
    assert said.pop().measured == "of 1, deleted now"
    assert not later.client.read([killed.name("a")]).documents
    later.clean_up()
    assert not later.client.query(Query("", "gwi-check")).documents
    for trial in (killed, later):
        trial.client.close()
        trial.store.close()
