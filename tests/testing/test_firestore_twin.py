"""The Firestore twin: the emulator's answers, or what the service may do instead."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import firestore

from gwi_celery.gcp.emulators import FIRESTORE_HOST
from gwi_celery.testing.emulators import Emulator
from gwi_celery.testing.twin import FirestoreTwin, start_firestore_twin

pytestmark = pytest.mark.emulator


@pytest.fixture(scope="module")
def twin(firestore_emulator: Emulator) -> Iterator[FirestoreTwin]:
    with start_firestore_twin(firestore_emulator.endpoint, lenient=True) as started:
        yield started


@pytest.fixture
def switch(twin: FirestoreTwin) -> Iterator[Callable[..., Any]]:
    before = twin.switch()
    yield twin.switch
    twin.switch(**before)


@pytest.fixture
def jobs(twin: FirestoreTwin, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A collection in a project of its own, by Google's client, through the twin."""
    monkeypatch.setenv(FIRESTORE_HOST, twin.endpoint)
    client = firestore.Client(f"p-{uuid.uuid4().hex[:20]}", credentials=AnonymousCredentials())
    yield client.collection("gwi_jobs")
    client.close()


def test_calls_go_through_and_are_counted(twin: FirestoreTwin, jobs: Any) -> None:
    before = twin.cost()["documents"]
    jobs.document("a").set({"x": 1})
    assert jobs.document("a").get().to_dict() == {"x": 1}
    assert [d.id for d in jobs.stream()] == ["a"]
    jobs.document("a").delete()
    after = twin.cost()["documents"]
    grown = {kind: after[kind] - before.get(kind, 0) for kind in after}
    assert grown == {"writes": 1, "reads": 2, "deletes": 1}


def test_errors_of_the_emulator_are_handed_on(jobs: Any) -> None:
    jobs.document("a").create({"x": 1})
    with pytest.raises(exceptions.AlreadyExists):
        jobs.document("a").create({"x": 2})


def test_a_query_without_its_index_fails(jobs: Any, switch: Callable[..., Any]) -> None:
    switch(indexes=True)
    jobs.document("a").set({"status": "RUNNING", "updated": 1, "run": "r"})
    status = firestore.FieldFilter("status", "==", "RUNNING")
    newest = firestore.Query.DESCENDING
    assert len(list(jobs.where(filter=status).order_by("updated", direction=newest).stream())) == 1
    with pytest.raises(exceptions.FailedPrecondition, match="requires an index"):
        list(jobs.where(filter=status).order_by("updated").stream())
    with pytest.raises(exceptions.FailedPrecondition, match="requires an index"):
        list(jobs.where(filter=status).order_by("run").stream())


@pytest.mark.parametrize(
    ("switches", "error", "written"),
    [
        ({"aborted": 1}, exceptions.Aborted, False),
        ({"exhausted": 1}, exceptions.ResourceExhausted, False),
        ({"late": 1}, exceptions.DeadlineExceeded, True),
    ],
)
def test_a_commit_may_fail_before_or_after_its_effect(
    jobs: Any,
    switch: Callable[..., Any],
    switches: dict[str, Any],
    error: type[Exception],
    written: bool,
) -> None:
    switch(**switches)
    with pytest.raises(error):
        jobs.document("a").set({"x": 1}, retry=None)
    switch(**dict.fromkeys(switches, 0))
    assert jobs.document("a").get().exists is written


def test_a_listen_stream_is_reset(
    twin: FirestoreTwin, jobs: Any, switch: Callable[..., Any]
) -> None:
    switch(listen_life=0.3)
    before = twin.cost()["rpcs"].get("Listen", 0)
    watch = jobs.document("a").on_snapshot(lambda *_: None)
    try:
        while twin.cost()["rpcs"].get("Listen", 0) < before + 2:  # the client opens it again
            pass
    finally:
        watch.unsubscribe()


def test_an_unknown_switch_is_told(twin: FirestoreTwin) -> None:
    with pytest.raises(ValueError, match="'fault'; there are: indexes"):
        twin.switch(fault=1)
