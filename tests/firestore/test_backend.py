"""What is Firestore's own about its result backend: round trips, lost answers, the stream, forks."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, chain, states
from celery.app.task import Context
from celery.exceptions import Ignore

from gwi_celery import ReliableTask, setup
from gwi_celery.backends.firestore import FirestoreBackend
from gwi_celery.errors import ConfigurationError, LeaseLost, StoreUnusable
from gwi_celery.firestore import documents
from gwi_celery.firestore.listener import listener_of
from gwi_celery.gcp import fork_gate
from gwi_celery.integration import integration
from gwi_celery.stores.base import JobStatus, Outcome, StoredResult
from gwi_celery.stores.firestore.results import result_name
from tests.firestore_wire import (
    ABORTED,
    COMMIT,
    LATE,
    LISTEN,
    LOST_ANSWER,
    LOST_REQUEST,
    READ,
    Wire,
)
from tests.machine import PATIENCE
from tests.workers import ROOT, eventually

pytestmark = [pytest.mark.emulator, pytest.mark.usefixtures("firestore_emulator")]

SUCCESS, FAILURE, STARTED = states.SUCCESS, states.FAILURE, states.STARTED
CALL = {"tenant_id": "acme", "run_id": "r1"}


@pytest.fixture
def app(wire: Wire) -> Iterator[Celery]:
    """Set up with store and results in one place; what a task stores eagerly is as a worker's."""
    app = Celery(f"unit-{uuid4().hex}", set_as_current=False)
    url = f"firestore://{wire.url.project}"
    setup(app, broker_url=f"embedded://:memory:/{uuid4().hex}", store_url=url)
    integration(app)._store = wire.store()
    app.conf.task_always_eager = app.conf.task_store_eager_result = True
    backend = FirestoreBackend(app, url=url, intercept=wire)
    backend.thread_safe = True
    app._backend = backend
    yield app
    backend.close()
    integration(app).store.close()
    app.close()


@pytest.fixture
def backend(app: Celery) -> Any:
    return app.backend


def request(task_id: str = "t1", **fields: Any) -> Context:
    return Context({"id": task_id, "task": "add", **fields})


# --- round trips ----------------------------------------------------------------------------------


def test_what_a_result_costs(backend: Any, wire: Wire) -> None:
    backend.store_result("t1", 1, SUCCESS, request=request())
    assert wire.calls == [COMMIT]
    with wire.counting() as calls:
        backend.store_result("t2", None, STARTED, request=request("t2"))
        backend.store_result("t2", 2, SUCCESS, request=request("t2"))
    assert calls == [COMMIT, COMMIT]
    with wire.counting() as calls:  # STARTED by a process that is no more
        backend.store_result("t3", None, STARTED, request=request("t3"))
        backend._shared.versions.clear()
        backend.store_result("t3", 3, SUCCESS, request=request("t3", retries=1))
    assert calls == [COMMIT, READ, COMMIT]
    with wire.counting() as calls:
        backend.store_result("t3", 3, SUCCESS, request=request("t3", retries=1))
    assert calls == [READ]
    with wire.counting() as calls:
        got = list(backend.get_many([f"t{n}" for n in range(1, 4)]))
        assert len(got) == 3
    assert calls == [READ]


def test_what_a_chord_costs(app: Celery, backend: Any, wire: Wire) -> None:
    assert backend.count_part("g", "a") == (1, False)
    assert wire.calls == [COMMIT]
    with wire.counting() as calls:
        assert backend.count_part("g", "a") == (1, False)
    assert calls == [COMMIT, READ]
    header = ["g2", [app.AsyncResult(f"part-{n}") for n in range(3)]]
    body = app.signature("sum", task_id="body")
    body["chord_size"] = 3
    backend.apply_chord(header, body)
    app.conf.task_always_eager = False
    for n in range(3):
        part = request(f"part-{n}", group="g2", chord=dict(body))
        with wire.counting() as calls:
            backend.mark_as_done(part.id, n, part)
        assert calls[:2] == [COMMIT, COMMIT], "its result, and its count"
        assert calls[2:] == ([READ, READ, COMMIT] if n == 2 else [])


def whole_job(app: Celery) -> Any:
    @app.task(shared=False, base=ReliableTask, bind=True, name="job")
    def job(self: Any, steps: int = 0, *, tenant_id: str, run_id: str) -> Any:
        return [self.step(f"s{n}", lambda n=n: n) for n in range(steps)]

    return job


def stored(app: Celery, task_id: str) -> Any:
    return app.AsyncResult(task_id)._get_task_meta()


@pytest.mark.parametrize("steps", [0, 3])
def test_a_reliable_job_costs_its_steps_and_two_with_its_result(
    app: Celery, wire: Wire, steps: int
) -> None:
    done = whole_job(app).delay(steps, **CALL)
    assert wire.calls == [COMMIT] * (steps + 2)
    meta = stored(app, done.id)
    assert (meta["status"], meta["result"]) == (SUCCESS, list(range(steps)))
    assert meta["task_id"] == done.id


def test_what_duplicates_cost(app: Celery, wire: Wire) -> None:
    job = whole_job(app)
    first = job.delay(2, **CALL)
    with wire.counting() as calls:
        other = job.delay(2, **CALL)
    assert calls == [COMMIT, READ, COMMIT], "a claim that is refused, and a result of its own"
    assert stored(app, other.id)["result"] == [0, 1]
    with wire.counting() as calls:  # the same message, delivered again
        assert app.tasks["job"].apply((2,), CALL, task_id=first.id, retries=1).get() == [0, 1]
    assert calls == [READ]


def test_a_failure_goes_with_the_finish_too(app: Celery, wire: Wire) -> None:
    @app.task(shared=False, base=ReliableTask, name="fails")
    def fails(*, tenant_id: str, run_id: str) -> None:
        raise KeyError("no such thing")

    failed = fails.delay(**CALL)
    assert wire.calls == [COMMIT] * 2
    meta = stored(app, failed.id)
    assert meta["status"] == FAILURE
    assert isinstance(meta["result"], KeyError)
    assert "in fails" in meta["traceback"]
    assert 'raise KeyError("no such thing")' in meta["traceback"]
    with wire.counting() as calls:
        app.tasks["fails"].apply((), CALL, task_id=failed.id, retries=1)
    assert calls == [READ]


def test_what_is_not_stored_costs_nothing(app: Celery, wire: Wire) -> None:
    @app.task(shared=False, base=ReliableTask, name="quiet", ignore_result=True)
    def quiet(*, tenant_id: str, run_id: str) -> int:
        return 1

    done = quiet.delay(**CALL)
    assert wire.calls == [COMMIT] * 2
    assert app.backend.get(app.backend.get_key_for_task(done.id)) is None


def test_a_result_with_callbacks_is_stored_after_they_were_sent(app: Celery, wire: Wire) -> None:
    job = whole_job(app)

    @app.task(shared=False, name="after")
    def after(value: Any) -> Any:
        return value

    done = job.apply_async((), CALL, link=after.s())
    # claim, finish, the callback's result, and only then its own
    assert wire.calls == [COMMIT] * 4
    names = [{write.update.name for write in sent.writes} for sent in wire.requests]
    path = app.backend.client.document_path
    own = path(result_name(app.backend._paths, app.backend.get_key_for_task(done.id)))
    assert [own in written for written in names] == [False, False, False, True]
    (record,) = integration(app).store.list_jobs("acme").jobs
    assert record.result_of is None
    last = chain(job.s(1, tenant_id="acme", run_id="r2"), after.s())()
    assert last.get() == [0]


def test_an_ignored_job_has_no_result(app: Celery, wire: Wire) -> None:
    @app.task(shared=False, base=ReliableTask, name="ignores")
    def ignores(*, tenant_id: str, run_id: str) -> None:
        raise Ignore

    done = ignores.delay(**CALL)
    assert wire.calls == [COMMIT] * 2
    assert app.backend.get(app.backend.get_key_for_task(done.id)) is None


def test_a_retried_job_finds_the_result_of_its_last_attempt(app: Celery, wire: Wire) -> None:
    @app.task(shared=False, base=ReliableTask, bind=True, name="t", max_retries=2)
    def t(self: Any, *, tenant_id: str, run_id: str) -> int:
        if self.request.retries == 0:
            raise self.retry(countdown=0)
        if elsewhere:
            app.backend._shared.versions.clear()
        return 5

    claim, release, retry, finish = [COMMIT] * 4
    elsewhere = False
    done = t.delay(**CALL)
    assert wire.calls == [claim, release, retry, READ, claim, finish]
    assert stored(app, done.id)["result"] == 5
    elsewhere = True
    with wire.counting() as calls:
        done = t.delay(tenant_id="acme", run_id="r2")
    assert calls == [claim, release, retry, READ, claim, READ, finish]
    assert stored(app, done.id)["result"] == 5


def test_elsewhere_the_result_is_written_by_itself(app: Celery, wire: Wire) -> None:
    other = FirestoreBackend(
        app, url=f"firestore://{wire.url.project}/other", intercept=wire, expires=100
    )
    other.thread_safe = True
    app._backend = other
    done = whole_job(app).delay(**CALL)
    assert wire.calls == [COMMIT] * 3
    assert stored(app, done.id)["result"] == []
    (record,) = integration(app).store.list_jobs("acme").jobs
    assert record.result_of is None
    other.close()


@pytest.mark.parametrize("fault", [LOST_REQUEST, LOST_ANSWER, LATE, ABORTED])
def test_a_finish_with_a_result_converges(app: Celery, wire: Wire, fault: str) -> None:
    job = whole_job(app)
    wire.faults = iter([None, fault])
    done = job.delay(**CALL)
    assert stored(app, done.id)["result"] == []
    (record,) = integration(app).store.list_jobs("acme").jobs
    assert (record.status, record.result_of) == (JobStatus.SUCCEEDED, done.id)


def test_a_finish_leaves_a_success_alone(app: Celery, backend: Any, wire: Wire) -> None:
    """A task's id that is used again, against all rules, after its job was forgotten."""
    backend.store_result("t1", "first", SUCCESS)
    whole_job(app).apply_async((1,), CALL, task_id="t1")
    assert stored(app, "t1")["result"] == "first"
    (record,) = integration(app).store.list_jobs("acme").jobs
    assert record.status is JobStatus.SUCCEEDED


def test_a_stale_holder_writes_no_result_either(app: Celery, backend: Any, wire: Wire) -> None:
    store = integration(app).store
    job = whole_job(app)
    claim = job.claim_request(job.resolve_call([], CALL, {}, "t1"), {}, "t1", 1, redelivered=False)
    lease = store.claim(claim).lease
    store.force_release(claim.lock)
    key = backend.get_key_for_task("t1")
    with pytest.raises(LeaseLost):
        store.finish(
            lease,
            Outcome(JobStatus.SUCCEEDED, b"stale"),
            StoredResult("t1", key, SUCCESS, b"{}", 100.0),
        )
    assert backend.get(key) is None


def test_a_large_result_goes_with_its_outcome(app: Celery, wire: Wire) -> None:
    large = os.urandom(1_800_000).hex()

    @app.task(shared=False, base=ReliableTask, name="large")
    def make(*, tenant_id: str, run_id: str) -> str:
        return large

    done = make.delay(**CALL)
    assert stored(app, done.id)["result"] == large
    assert max(request.ByteSize() for request in wire.requests) < 3_500_000


# --- lost answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [LOST_REQUEST, LOST_ANSWER, LATE, ABORTED])
def test_a_write_converges(backend: Any, wire: Wire, fault: str) -> None:
    wire.faults = iter([fault])
    backend.store_result("t1", 1, SUCCESS)
    wire.faults = iter([fault])
    backend.store_result("t2", None, STARTED)
    wire.faults = iter([fault])
    backend.store_result("t2", 2, SUCCESS)
    assert [meta["result"] for _, meta in sorted(backend.get_many(["t1", "t2"]))] == [1, 2]
    wire.faults = iter([fault])
    assert backend.count_part("g", "a") == (1, False)
    wire.faults = iter([None, fault])
    assert backend.count_part("g", "b") == (2, False)
    wire.faults = iter([fault])
    backend.mark_sent("g")
    wire.faults = iter([None, fault])
    backend.delete(backend.get_key_for_task("t1"))
    wire.faults = iter(())
    wire.arrive()
    assert backend.count_part("g", "a") == (2, True)
    assert backend.get(backend.get_key_for_task("t1")) is None


def test_pieces_that_are_missing_are_an_error(backend: Any, wire: Wire) -> None:
    backend.store_result("t1", os.urandom(2_000_000).hex(), SUCCESS)
    name = result_name(backend._paths, backend.get_key_for_task("t1"))
    read = backend.client.query(documents.Query(name, "gwi_chunks", mask=[]))
    backend.client.commit([documents.delete(next(iter(read.documents)))])
    with pytest.raises(StoreUnusable, match="are gone"):
        backend.get(backend.get_key_for_task("t1"))


# --- the stream -----------------------------------------------------------------------------------


def waiting(backend: Any, task_id: str, got: list[Any], *, timeout: float = 60) -> threading.Thread:
    thread = threading.Thread(
        target=lambda: got.append(backend.wait_for(task_id, timeout=timeout)["result"])
    )
    thread.start()
    return thread


def live(backend: Any, count: int = 1) -> bool:
    return len(listener_of(backend.client)._current) >= count


def test_a_wait_asks_once_and_is_told(backend: Any, wire: Wire) -> None:
    got: list[Any] = []
    backend.wait_for = type(backend).wait_for.__get__(backend)
    threads = [waiting(backend, f"t{n % 2}", got) for n in range(4)]
    eventually(lambda: live(backend, 4))
    writer = FirestoreBackend(backend.app, url=backend.url)
    with wire.counting() as calls:
        for n in (0, 1):
            writer.store_result(f"t{n}", n, SUCCESS)
        for thread in threads:
            thread.join(timeout=PATIENCE)
    assert calls == [], "nobody asked"
    assert sorted(got) == [0, 0, 1, 1]
    assert wire.calls.count(LISTEN) == 1, "one stream for all"
    with wire.counting() as calls:
        assert backend.wait_for("t1", timeout=PATIENCE)["result"] == 1
        late = waiting(backend, "t2", got)
        eventually(lambda: live(backend))
        writer.store_result("t2", 2, SUCCESS)
        late.join(timeout=PATIENCE)
    assert calls.count(LISTEN) == 0, "it is open yet"
    writer.close()


def test_a_stream_that_breaks_is_opened_again(backend: Any, wire: Wire) -> None:
    got: list[Any] = []
    thread = waiting(backend, "t1", got)
    eventually(lambda: live(backend))
    wire.streams[0].cancel()
    eventually(lambda: len(wire.streams) == 2 and live(backend))
    backend.store_result("t1", 1, SUCCESS)
    thread.join(timeout=PATIENCE)
    assert got == [1]


def test_without_a_stream_it_asks_now_and_then(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend.client, "listen", _refuse)
    monkeypatch.setattr("gwi_celery.backends.firestore.backend._FIRST_LOOK", 0.05)
    got: list[Any] = []
    thread = waiting(backend, "t1", got)
    backend.store_result("t1", 1, SUCCESS)
    thread.join(timeout=PATIENCE)
    assert got == [1]


def _refuse(requests: Any) -> Any:
    raise StoreUnusable("no stream today")


def test_a_stream_nobody_needs_is_closed(
    backend: Any, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gwi_celery.firestore.listener._IDLE", 0.05)
    before = fork_gate.in_flight()
    got: list[Any] = []
    thread = waiting(backend, "t1", got)
    eventually(lambda: live(backend))
    backend.store_result("t1", 1, SUCCESS)
    thread.join(timeout=PATIENCE)
    eventually(lambda: listener_of(backend.client)._stream is None)
    eventually(lambda: fork_gate.in_flight() == before)
    thread = waiting(backend, "t2", got)
    backend.store_result("t2", 2, SUCCESS)
    thread.join(timeout=PATIENCE)
    assert got == [1, 2]


def test_more_than_a_stream_takes(backend: Any, wire: Wire) -> None:
    ids = [f"t{n}" for n in range(120)]
    got: dict[str, Any] = {}
    thread = threading.Thread(
        target=lambda: got.update({i: m["result"] for i, m in backend.get_many(ids, timeout=100)})
    )
    thread.start()
    eventually(lambda: live(backend, 50))
    for task_id in reversed(ids):
        backend.store_result(task_id, task_id, SUCCESS)
    thread.join(timeout=100)
    assert got == {task_id: task_id for task_id in ids}
    assert len(listener_of(backend.client)._targets) == 0


@pytest.mark.parametrize("times", [20])
def test_forks_with_an_open_stream(backend: Any, wire: Wire, times: int) -> None:
    """No call is in flight at the fork; parent and child both go on waiting and writing."""
    got: list[Any] = []
    thread = waiting(backend, "t-last", got)
    eventually(lambda: live(backend))
    for n in range(times):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                # Another process's wait, on a stream of its own, ended by a write of its own.
                done: list[Any] = []
                inner = waiting(backend, f"t{n}", done, timeout=30)
                backend.store_result(f"t{n}", n, SUCCESS)
                inner.join(timeout=PATIENCE)
                code = 0 if done == [n] else 2
            finally:
                os._exit(code)
        deadline = time.monotonic() + PATIENCE
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                break
            assert time.monotonic() < deadline, "a child hangs"
            time.sleep(0.005)
        assert os.waitstatus_to_exitcode(status) == 0
    eventually(lambda: live(backend))
    backend.store_result("t-last", "end", SUCCESS)
    thread.join(timeout=PATIENCE)
    assert got == ["end"]
    assert [m["result"] for _, m in backend.get_many(["t0", f"t{times - 1}"])]


# --- configuration --------------------------------------------------------------------------------


def test_a_plain_app_finds_it_by_its_url() -> None:
    where = "gwi_celery.backends.firestore:FirestoreBackend"
    # What installing the package registers.
    assert f'\nfirestore = "{where}"\n' in (ROOT / "pyproject.toml").read_text()
    url = "firestore://proj/prefix?database=results"
    app = Celery("plain", backend=f"{where}+{url}", set_as_current=False)
    assert isinstance(app.backend, FirestoreBackend)
    assert app.backend.as_uri() == url
    assert app.backend.client.path == "projects/proj/databases/results"
    again = FirestoreBackend(app, url=url)
    assert again.client is app.backend.client, "one connection for all threads"


def test_setup_puts_results_beside_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCP_PROJECT_ID", "proj")
    monkeypatch.setenv("GWI_STORE_BACKEND", "firestore")
    app = Celery("set-up", set_as_current=False)
    setup(app)
    assert app.conf.result_backend == "firestore://proj"
    assert isinstance(app.backend, FirestoreBackend)
    store = integration(app).store
    assert store.keeps_results_of("firestore://proj?timeout=3")
    for other in ("proj/x", "p2", "proj?database=other"):
        assert not store.keeps_results_of(f"firestore://{other}")
    assert not store.keeps_results_of("embedded://")


def test_a_database_for_each_tenant_has_no_place_for_results() -> None:
    app = Celery("tenants", set_as_current=False)
    with pytest.raises(ConfigurationError, match="for each tenant"):
        setup(app, store_url="firestore://proj?database=t-{tenant}")
    app = Celery("tenants", set_as_current=False)
    app.conf.result_backend = "firestore://proj"
    setup(app, store_url="firestore://proj?database=t-{tenant}")
    assert not integration(app).store.keeps_results_of("firestore://proj")
    with pytest.raises(ConfigurationError, match="one database"):
        FirestoreBackend(app, url="firestore://proj?database=t-{tenant}")
