"""Many pushes at once, long jobs, and the end of a service in the middle of one."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from gwi_celery import broker_for, store_for
from gwi_celery.stores.base import JobStatus
from gwi_celery.testing.emulators import free_port
from tests import zygote
from tests.machine import PATIENCE
from tests.service.pushing import APP, NO_TLS, PushSubscription, Service, envelope
from tests.workers import ROOT, Worker, eventually, read_audit

pytestmark = pytest.mark.acceptance

CALL = {"tenant_id": "acme", "run_id": "r1"}


def job(n: int) -> dict[str, object]:
    body = {"id": f"job-{n}", "type": "three_steps", "tenantId": "acme", "runId": f"r{n}"}
    return envelope(json.dumps(body).encode())


def events(folder: Path, name: str) -> list[dict[str, object]]:
    return [e for e in read_audit(folder) if e["event"] == name]


@pytest.mark.parametrize(
    ("wait", "statuses"),
    [("120", {204}), ("0", {204, 429})],
    ids=["they wait", "they are refused and redelivered"],
)
def test_fifty_at_once_on_one_place(
    wait: str,
    statuses: set[int],
    jobs: ModuleType,
    serve: Callable[..., Service],
    tmp_path: Path,
) -> None:
    """Nothing is lost, nothing runs twice, and the answers are as documented."""
    service = serve(env={"GWI_PUSH_WAIT": wait})
    answers: Counter[int] = Counter()

    def push(n: int) -> None:
        while True:
            answer = httpx.post(f"{service.url}/push", json=job(n), timeout=PATIENCE, verify=NO_TLS)
            answers[answer.status_code] += 1
            if answer.status_code == 204:
                return
            assert answer.headers["Retry-After"] == "1"
            time.sleep(0.05)

    with ThreadPoolExecutor(50) as threads:
        list(threads.map(push, range(50)))
    assert set(answers) == statuses
    assert answers[204] == 50
    steps = Counter((e["name"], e["pid"]) for e in events(tmp_path, "step"))
    assert sum(steps.values()) == 150
    assert len(events(tmp_path, "attempt")) == 50
    done = store_for(jobs.app).list_jobs("acme", status=JobStatus.SUCCEEDED)
    assert len(done.jobs) == 50
    stats = service.stats()
    assert (stats["succeeded"], stats["in_flight"]) == (50, 0)
    assert stats["busy"] == answers[429]


def test_health_answers_while_a_job_keeps_the_processor_busy(
    jobs: ModuleType,
    serve: Callable[..., Service],
    subscribe: Callable[..., PushSubscription],
    tmp_path: Path,
) -> None:
    service = serve()
    subscribe(service)
    jobs.busy.delay(**CALL, seconds=1.5)
    eventually(lambda: events(tmp_path, "start"))
    for path in ("/health", "/ready"):
        assert service.http.get(path).status_code == 200
    current = eventually(lambda: service.stats()["current"])
    assert isinstance(current, list)
    assert (current[0]["type"], current[0]["tenant"], current[0]["run"]) == ("busy", "acme", "r1")
    assert current[0]["fence"] > 0


def test_a_job_longer_than_its_push_goes_on_in_the_next_at_no_cost(
    jobs: ModuleType,
    serve: Callable[..., Service],
    subscribe: Callable[..., PushSubscription],
    tmp_path: Path,
) -> None:
    # Between handing back and the answer's last moment are 8 % of it: enough for a busy machine.
    service = serve(env={"GWI_PUSH_DEADLINE": "15"})
    subscription = subscribe(service)
    result = jobs.counted.delay(**CALL, to=150, pause=0.1)
    assert result.get(timeout=PATIENCE) == 150
    assert [e["n"] for e in events(tmp_path, "n")] == list(range(150)), "nothing is done twice"
    assert len(events(tmp_path, "attempt")) >= 2
    assert set(subscription.answers) == {204}
    broker = broker_for(jobs.app)
    eventually(lambda: broker.size("celery").total == 0)
    stats = service.stats()
    assert stats["handed_back"] >= 1
    assert stats["retried"] == stats["nacked"] == 0
    record = store_for(jobs.app).list_jobs("acme").jobs[0]
    assert (record.crashes, record.generation) == (0, 1)


def test_a_deaf_job_outlives_its_push_and_answers_the_next(
    jobs: ModuleType,
    serve: Callable[..., Service],
    subscribe: Callable[..., PushSubscription],
    tmp_path: Path,
) -> None:
    """It reaches no boundary in time: its push is refused, and the message finds it still running."""
    service = serve(env={"GWI_PUSH_DEADLINE": "1"}, concurrency=2)
    subscription = subscribe(service)
    result = jobs.deaf.delay(**CALL, seconds=3)
    assert result.get(timeout=PATIENCE) == "done"
    assert len(events(tmp_path, "deaf")) == 1, "no second attempt ran beside it"
    assert subscription.answers[503] == 1
    broker = broker_for(jobs.app)
    eventually(lambda: broker.size("celery").total == 0)
    assert not broker.has_queue("celery.dead")


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_sigterm_hands_the_job_to_the_next_instance(
    pool: str,
    jobs: ModuleType,
    serve: Callable[..., Service],
    subscribe: Callable[..., PushSubscription],
    tmp_path: Path,
) -> None:
    first = serve(pool=pool)
    subscription = subscribe(first)
    result = jobs.counted.delay(**CALL, to=60, pause=0.05)
    eventually(lambda: len(events(tmp_path, "n")) > 3)
    assert first.stop(timeout=20) < 10
    assert first.process.returncode == 0
    subscription.__exit__()
    done = len(events(tmp_path, "n"))
    assert done < 60, "it was interrupted"
    assert store_for(jobs.app).list_locks("acme") == [], "its lock is free at once"
    assert subscription.answers[204] == 1, "the copy was there before the answer"
    subscribe(serve(pool=pool))
    assert result.get(timeout=PATIENCE) == 60
    assert [e["n"] for e in events(tmp_path, "n")] == list(range(60))


def test_sigterm_stops_the_intake_at_once_and_says_so(
    jobs: ModuleType, serve: Callable[..., Service], tmp_path: Path
) -> None:
    service = serve(env={"GWI_SHUTDOWN_GRACE": "2", "TMPDIR": str(tmp_path)})
    assert list(tmp_path.glob("pymp-*")), "prefork's shared memory"
    with ThreadPoolExecutor(1) as threads:
        body = {
            "id": "d",
            "type": "deaf",
            "tenantId": "acme",
            "runId": "d",
            "payload": {"seconds": 60},
        }
        running = threads.submit(service.push, json.dumps(body).encode())
        eventually(lambda: events(tmp_path, "deaf"))
        service.process.send_signal(signal.SIGTERM)
        with httpx.Client(base_url=service.url, timeout=PATIENCE) as http:
            ready = eventually(
                lambda: (r := http.get("/ready")).status_code == 503 and r, what="unready"
            )
            assert ready.json() == {"status": "unready", "reason": "shutting down"}  # type: ignore[attr-defined]
            assert http.get("/health").status_code == 200
            refused = http.post("/push", json=job(1))
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        # A job that hears nothing: its push is refused in time, and it is killed.
        assert running.result().status_code == 503
    assert service.stop(timeout=20) < 8
    assert service.process.returncode == 0
    assert not list(tmp_path.glob("pymp-*"))


def test_a_job_that_ignores_sigterm_is_finished_by_the_next_instance(
    jobs: ModuleType,
    serve: Callable[..., Service],
    subscribe: Callable[..., PushSubscription],
    tmp_path: Path,
) -> None:
    first = serve(env={"GWI_SHUTDOWN_GRACE": "0.5"})
    subscription = subscribe(first)
    result = jobs.deaf.delay(**CALL, seconds=60)
    eventually(lambda: events(tmp_path, "deaf"))
    assert first.stop(timeout=20) < 10
    subscription.__exit__()
    subscribe(serve())
    assert result.get(timeout=PATIENCE) == "done"
    assert len(events(tmp_path, "first")) == 1, "its finished step did not run again"


def test_sigkill_in_the_middle_loses_nothing(
    jobs: ModuleType,
    serve: Callable[..., Service],
    subscribe: Callable[..., PushSubscription],
    tmp_path: Path,
) -> None:
    first = serve()
    subscription = subscribe(first)
    result = jobs.counted.delay(**CALL, to=40, pause=0.05)
    eventually(lambda: len(events(tmp_path, "n")) > 5)
    first.kill()
    subscription.__exit__()
    assert subscription.answers[0] >= 1, "the connection broke, which is no ack"
    subscribe(serve())
    assert result.get(timeout=PATIENCE) == 40
    counts = Counter(e["n"] for e in events(tmp_path, "n"))
    assert set(counts) == set(range(40))
    assert sum(counts.values()) <= 41, "at most the one in flight is done again"


def test_the_store_or_broker_away_is_a_refusal_and_readiness_says_which(
    jobs: ModuleType, serve: Callable[..., Service], tmp_path: Path
) -> None:
    service = serve()
    store = tmp_path / "gwi" / "store.sqlite3"
    store.parent.mkdir(exist_ok=True)
    store.write_text("this is not a database, however long one looks at it. " * 100)
    body = {"id": "s", "type": "three_steps", "tenantId": "acme", "runId": "s"}
    assert service.push(json.dumps(body).encode()).status_code == 503
    ready = service.http.get("/ready")
    assert ready.status_code == 503
    assert ready.json()["reason"] == "the store does not answer"
    assert "not a SQLite database" in ready.json()["store"]["reason"]
    assert ready.json()["broker"]["ok"] is True
    store.unlink()
    assert service.push(json.dumps(body).encode()).status_code == 204
    assert events(tmp_path, "attempt")


# --- the pull worker ------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_pull_worker_answers_too_while_it_is_busy(
    pool: str, jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    port = free_port()
    worker = start(pool=pool, env={"PORT": str(port), "GWI_ENVIRONMENT": "development"})
    result = jobs.busy.delay(**CALL, seconds=1.5)
    eventually(lambda: events(tmp_path, "start"))
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
        assert http.get("/health").json() == {"status": "ok"}
        assert http.get("/ready").json()["status"] == "ready"
        current = eventually(lambda: http.get("/stats").json()["current"])
        assert current[0]["type"] == "busy"  # type: ignore[index]
        assert http.post("/push", json={}).status_code == 404
        assert result.get(timeout=PATIENCE) == "done"

        def counted() -> bool:  # the ack by the worker, the end by its child: in either order
            stats = http.get("/stats").json()
            return (stats["mode"], stats["acked"], stats["succeeded"]) == ("pull", 1, 1)

        eventually(counted, what="the ack and the end")
        assert "gwi_succeeded_total 1.0" in http.get("/metrics").text
    assert worker.stop() < 10
    assert worker.process.returncode == 0


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_pull_worker_whose_job_ignores_sigterm_ends_in_time(
    pool: str, jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    worker = start(pool=pool, env={"GWI_WORKER_GRACE": "0.5"})
    result = jobs.deaf.delay(**CALL, seconds=60)
    eventually(lambda: events(tmp_path, "deaf"))
    assert worker.stop(timeout=20) < 10
    assert worker.process.returncode == 0
    start(pool=pool)
    assert result.get(timeout=PATIENCE) == "done"
    assert len(events(tmp_path, "first")) == 1, "its finished step did not run again"


def test_under_another_server_it_hands_back_as_well(
    jobs: ModuleType, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """As an ASGI application: the signal is the server's, and comes to us first."""
    program = (
        "from gwi_celery.service import create_app\n"
        f"from {APP} import app\n"
        "asgi = create_app(app)\n"
    )
    (tmp_path / "other_server.py").write_text(program)
    port = free_port()
    env = {"JOBS_FOLDER": str(tmp_path), "GWI_ENVIRONMENT": "development"}
    server = zygote.start(
        "uvicorn",
        ["other_server:asgi", "--port", str(port)],
        folder=tmp_path,
        env={**os.environ, **env, "PYTHONPATH": str(ROOT)},
    )
    request.addfinalizer(server.stdout.close)
    request.addfinalizer(server.kill)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as http:
        eventually(lambda: _answers(http))
        body = {"id": "c", "type": "counted", "tenantId": "acme", "runId": "c"}
        job = json.dumps({**body, "payload": {"to": 60, "pause": 0.05}}).encode()
        with ThreadPoolExecutor(1) as threads:
            pushed = threads.submit(http.post, "/push", json=envelope(job))
            eventually(lambda: len(events(tmp_path, "n")) > 3)
            server.send_signal(signal.SIGTERM)
            assert pushed.result().status_code == 204
        server.wait(timeout=PATIENCE)
    size = broker_for(jobs.app).size("celery")
    assert size is not None
    assert size.ready == 1, "the copy"
    assert store_for(jobs.app).list_locks("acme") == []
    assert len(events(tmp_path, "n")) < 60


def _answers(http: httpx.Client) -> bool:
    try:
        return http.get("/health").status_code == 200
    except httpx.HTTPError:
        return False


def test_a_pull_worker_whose_port_is_taken_works_all_the_same(
    jobs: ModuleType, start: Callable[..., Worker], serve: Callable[..., Service], tmp_path: Path
) -> None:
    taken = serve().port
    worker = start(env={"PORT": str(taken), "GWI_HOST": "127.0.0.1"})
    worker.wait_for("can't listen on port")
    assert jobs.plain_add.delay(1, 2).get(timeout=PATIENCE) == 3


def test_a_service_that_is_killed_leaves_its_port_free(
    jobs: ModuleType, serve: Callable[..., Service], tmp_path: Path
) -> None:
    """A pool child that outlives its parent holds none of the parent's sockets."""
    service = serve()
    body = {"id": "d", "type": "deaf", "tenantId": "acme", "runId": "d", "payload": {"seconds": 5}}
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(service.push, json.dumps(body).encode())
        eventually(lambda: events(tmp_path, "deaf"))
        os.kill(service.process.pid, signal.SIGKILL)  # the parent only
        service.process.wait(timeout=PATIENCE)
        with pytest.raises(httpx.HTTPError):
            running.result(timeout=PATIENCE)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{service.url}/health", timeout=5)


def test_a_message_that_is_refused_again_and_again_is_published_anew(
    serve: Callable[..., Service], jobs: ModuleType, tmp_path: Path
) -> None:
    """Pub/Sub would bury it after a hundred refusals, tried by nobody."""
    service = serve(pool="threads", env={"GWI_PUSH_WAIT": "0"})
    with ThreadPoolExecutor(1) as threads:
        body = {"id": "long", "type": "naps", "payload": {"label": "long", "seconds": 3}}
        running = threads.submit(service.push, json.dumps(body).encode())
        eventually(lambda: events(tmp_path, "nap"))
        waiting = json.dumps({"id": "n", "type": "record", "payload": {"label": "n"}}).encode()
        refused = service.http.post("/push", json=envelope(waiting, attempt=49))
        assert refused.status_code == 429
        assert service.http.post("/push", json=envelope(waiting, attempt=50)).status_code == 204
        [copy] = broker_for(jobs.app).peek("celery")
        assert copy.data == waiting
        assert running.result().status_code == 204


def test_large_messages_that_are_not_due_keep_no_other_out(
    serve: Callable[..., Service], jobs: ModuleType, tmp_path: Path
) -> None:
    """Their bodies are let go while they are held: Pub/Sub has them, and sends them again."""
    service = serve(pool="threads", env={"GWI_MAX_BODY_BYTES": "1000000"})  # eight may be in memory
    body = json.dumps(
        {"id": "large", "type": "record", "payload": {"label": "x" * 600_000}}
    ).encode()

    def push(_: int) -> int:
        while True:  # they are read at once, for which there is not always room
            due = {"gwi-not-before": str(time.time() + 8)}
            early = envelope(body, attributes=due)
            answer = httpx.post(f"{service.url}/push", json=early, timeout=60, verify=NO_TLS)
            if answer.status_code != 429:
                return answer.status_code
            time.sleep(0.05)

    with ThreadPoolExecutor(20) as threads:
        held = threads.map(push, range(20))
        small = {"id": "small", "type": "record", "payload": {"label": "n"}}
        assert service.push(json.dumps(small).encode()).status_code == 204
        assert Counter(held) == {503: 20}
