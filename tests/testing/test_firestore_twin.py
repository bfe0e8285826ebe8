"""The Firestore twin: the emulator's answers, or what the service may do instead; and jobs on it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery, states
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import firestore

from gwi_celery import ReliableTask, broker_for
from gwi_celery.backends.firestore import FirestoreBackend
from gwi_celery.brokers.base import QueueSpec
from gwi_celery.errors import StoreUnusable
from gwi_celery.firestore.client import Client
from gwi_celery.firestore.documents import Query
from gwi_celery.firestore.url import parse
from gwi_celery.gcp.emulators import FIRESTORE_HOST
from gwi_celery.testing.emulators import Emulator
from gwi_celery.testing.twin import FirestoreTwin, start_firestore_twin
from tests.apps import fresh_app
from tests.machine import PATIENCE
from tests.threadworker import worker_in_thread
from tests.workers import eventually

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
    assert list(jobs.stream()) == []  # what finds nothing is a read, too
    assert jobs.count().get()[0][0].value == 0
    assert list(jobs.list_documents()) == []
    client = jobs._client  # whose bulk writers make such calls
    writes = [{"delete": jobs.document("a")._document_path}]
    client._firestore_api.batch_write(
        request={"database": client._database_string, "writes": writes},
        metadata=client._rpc_metadata,
    )
    after = twin.cost()["documents"]
    grown = {kind: after[kind] - before.get(kind, 0) for kind in after}
    assert grown == {"writes": 1, "reads": 5, "deletes": 2}


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


# --- jobs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def app(twin: FirestoreTwin) -> Iterator[Celery]:
    """With a worker, and its store behind the twin."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FIRESTORE_HOST, twin.endpoint)
        app = fresh_app(
            store_url=f"firestore://p-{uuid.uuid4().hex[:20]}",
            contention_delay=0.1,
            max_contention_delay=0.2,
        )
        app.conf.result_backend = "cache+memory://"
        app.ran, app.begun = [], lambda: None

        @app.task(shared=False, base=ReliableTask, bind=True, name="audit", max_retries=1)
        def audit(self: Any, *, tenant_id: str, run_id: str) -> str:
            app.begun()
            for name in ("first", "second"):
                self.step(name, app.ran.append, f"{run_id} {name}")
                if not self.request.retries:
                    raise self.retry(countdown=0)
            return run_id

        broker_for(app).declare_queue(QueueSpec("celery"))
        with worker_in_thread(app):
            yield app
        broker_for(app).close()
        app.close()


@pytest.mark.parametrize(
    "switches",
    [
        {"aborted": 0.4},
        {"faults": 0.4},
        {"late": 0.4},
        {"exhausted": 0.2},
        {"latency": 0.02},
        {"indexes": True, "progress": 1},
    ],
    ids=" ".join,
)
def test_jobs_survive(app: Celery, switch: Callable[..., Any], switches: dict[str, Any]) -> None:
    """Each is claimed, retried once, and claimed again, with its first step read from the store."""
    switch(**switches)
    runs = [f"{' '.join(switches)} {n}" for n in range(3)]
    results = [app.tasks["audit"].delay(tenant_id="acme", run_id=run) for run in runs]
    assert [result.get(timeout=PATIENCE, interval=0.05) for result in results] == runs
    expected = sorted(f"{run} {step}" for run in runs for step in ("first", "second"))
    assert sorted(ran for ran in app.ran if ran.rpartition(" ")[0] in runs) == expected


def test_a_job_goes_on_once_there_is_quota_again(
    app: Celery, twin: FirestoreTwin, switch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = threading.Event()

    def begun() -> None:
        if not refusing.is_set():
            switch(exhausted=1)
            refusing.set()

    monkeypatch.setattr(app, "begun", begun)
    result = app.tasks["audit"].delay(tenant_id="acme", run_id="quota")
    assert refusing.wait(PATIENCE)
    before = twin.cost()["rpcs"]["Commit"]
    eventually(lambda: twin.cost()["rpcs"]["Commit"] >= before + 1, "the step is saved again")
    switch(exhausted=0)
    assert result.get(timeout=PATIENCE, interval=0.05) == "quota"
    assert sorted(ran for ran in app.ran if ran.startswith("quota")) == [
        "quota first",
        "quota second",
    ]


def test_what_needs_an_index_that_is_missing_is_told(
    twin: FirestoreTwin, switch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FIRESTORE_HOST, twin.endpoint)
    client = Client(parse(f"firestore://p-{uuid.uuid4().hex[:20]}"))
    query = Query("", "gwi_jobs", descendants=True, order=[("owner", "asc")])
    assert (client.query(query).documents, client.count(query)) == ({}, 0)
    switch(indexes=True)
    for call in (client.query, client.count):
        with pytest.raises(
            StoreUnusable, match=r"deploy this package's\s.*firestore\.indexes\.json"
        ):
            call(query)
    client.close()


def test_a_result_arrives_though_streams_are_reset(
    twin: FirestoreTwin, switch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FIRESTORE_HOST, twin.endpoint)
    url = f"firestore://p-{uuid.uuid4().hex[:20]}"
    backend = FirestoreBackend(Celery(set_as_current=False), url=url)
    switch(listen_life=0.2)
    before = twin.cost()["rpcs"].get("Listen", 0)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(backend.wait_for, "id", timeout=PATIENCE)
        eventually(lambda: twin.cost()["rpcs"].get("Listen", 0) >= before + 2)
        backend.store_result("id", 42, states.SUCCESS)
        assert waiting.result()["result"] == 42
    backend.close()


def test_an_unknown_switch_is_told(twin: FirestoreTwin) -> None:
    with pytest.raises(ValueError, match="'fault'; there are: indexes"):
        twin.switch(fault=1)
