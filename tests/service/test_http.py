"""The service under real HTTP: who is let in, what is read, and what strangers can't do to it."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import schemathesis
import yaml

from gwi_celery import broker_for, store_for
from gwi_celery.service import openapi
from tests.machine import PATIENCE
from tests.service.pushing import APP, Service, envelope, jobs_in
from tests.service.tokens import ACCOUNT, AUDIENCE, Issuer, published
from tests.workers import read_audit

pytestmark = [pytest.mark.acceptance, pytest.mark.xdist_group("service-http")]

ISSUER = Issuer()
PEOPLE = {"Authorization": "Bearer for-people"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("http")


@pytest.fixture(scope="module")
def jobs(folder: Path) -> Iterator[object]:
    with jobs_in(folder) as module:
        yield module


@pytest.fixture(scope="module")
def guarded(folder: Path, jobs: object) -> Iterator[Service]:
    """A service as in production: tokens are needed everywhere."""
    with published(ISSUER.certificates) as url:
        env = {
            "JOBS_FOLDER": str(folder),
            "GWI_ENVIRONMENT": "production",
            "GWI_PUSH_AUDIENCE": AUDIENCE,
            "GWI_PUSH_SERVICE_ACCOUNT": ACCOUNT,
            "GWI_PUSH_CERTS_URL": url,
            "GWI_SERVICE_TOKEN": "for-people",
        }
        service = Service(APP, folder, env=env)
        yield service.ready()
        service.close()


@pytest.fixture(scope="module")
def open_service(folder: Path, jobs: object) -> Iterator[Service]:
    """A service as on a developer's machine, with small limits."""
    env = {
        "JOBS_FOLDER": str(folder),
        "GWI_MAX_BODY_BYTES": "200000",
        "GWI_BODY_TIMEOUT": "1",
    }
    service = Service(APP, folder, env=env)
    yield service.ready()
    service.close()


def job(run: str, task: str = "three_steps") -> bytes:
    return json.dumps(
        {"id": f"{task}-{run}", "type": task, "tenantId": "acme", "runId": run}
    ).encode()


def attempts(folder: Path) -> int:
    return len([e for e in read_audit(folder) if e["event"] == "attempt"])


# --- who is let in --------------------------------------------------------------------------------


def push(service: Service, run: str, token: str | None) -> httpx.Response:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return service.http.post("/push", json=envelope(job(run)), headers=headers)


def test_pubsubs_push_runs(guarded: Service, folder: Path) -> None:
    before = attempts(folder)
    assert push(guarded, "let-in", ISSUER.token()).status_code == 204
    assert attempts(folder) == before + 1


@pytest.mark.parametrize(
    ("token", "status"),
    [
        (lambda: None, 401),
        (lambda: Issuer().token(), 401),
        (lambda: ISSUER.token(exp=int(time.time()) - 60), 401),
        (lambda: ISSUER.token(aud="https://another-service.example.test"), 401),
        (lambda: ISSUER.token(email="someone@else.test"), 403),
        (lambda: "for-people", 401),
    ],
    ids=["none", "forged", "expired", "for another service", "of another account", "people's"],
)
def test_others_are_turned_away_and_nothing_runs(
    token: object, status: int, guarded: Service, folder: Path
) -> None:
    before = attempts(folder)
    sent = token()  # type: ignore[operator]
    answer = push(guarded, "turned-away", sent)
    assert answer.status_code == status
    assert set(answer.json()) == {"reason"}
    assert attempts(folder) == before
    if sent:
        assert sent not in guarded.log
        assert sent.split(".")[0] not in answer.text
    guarded.wait_for(rf"{status} /push from 127.0.0.1: ")


def test_a_stranger_is_turned_away_before_a_byte_of_the_body_is_read(guarded: Service) -> None:
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=10) as s:
        s.sendall(b"POST /push HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert s.recv(100).startswith(b"HTTP/1.1 401")


def test_stats_and_metrics_need_peoples_token_and_health_none(guarded: Service) -> None:
    for path in ("/stats", "/metrics"):
        assert guarded.http.get(path).status_code == 401
        assert guarded.http.get(path, headers=PEOPLE).status_code == 200
        wrong = {"Authorization": f"Bearer {ISSUER.token()}"}
        assert guarded.http.get(path, headers=wrong).status_code == 401
    assert guarded.http.get("/health").json() == {"status": "ok"}
    ready = guarded.http.get("/ready").json()
    assert ready["status"] == "ready"
    assert ready["broker"]["latency_ms"] > 0
    assert ready["store"]["ok"] is True


def test_process_is_for_development_only(guarded: Service, open_service: Service) -> None:
    assert guarded.http.post("/process", content=job("by-hand"), headers=PEOPLE).status_code == 404
    answer = open_service.http.post("/process", content=job("by-hand"))
    assert (answer.status_code, answer.json()) == (200, {"message": "acked"})
    unknown = json.dumps({"id": "u", "type": "nobody.knows", "tenantId": "acme", "runId": "r"})
    answer = open_service.http.post("/process", content=unknown)
    assert (answer.status_code, answer.json()["message"]) == (422, "dead-lettered")
    assert "no task is registered as 'nobody.knows'" in answer.json()["reason"]
    # Through a proxy, say: then not even here without the token, which is not set.
    answer = open_service.http.post("/process", content=job("by-hand"), headers=PEOPLE)
    assert answer.status_code == 403


def test_a_web_page_runs_nothing(open_service: Service, folder: Path) -> None:
    before = attempts(folder)
    for path in ("/process", "/push"):
        for headers in (
            {"Content-Type": "text/plain"},
            {"Content-Type": "application/x-www-form-urlencoded"},
            {"Content-Type": "application/json", "Origin": "https://evil.example"},
            {"Content-Type": "application/json", "Host": f"evil.example:{open_service.port}"},
            {"Content-Type": "application/json", "X-Forwarded-For": "127.0.0.1"},
        ):
            answer = open_service.http.post(path, content=job("from-a-page"), headers=headers)
            assert answer.status_code == 403, (path, headers)
    assert attempts(folder) == before


def test_without_knowing_who_may_call_it_does_not_start(folder: Path) -> None:
    env = {"JOBS_FOLDER": str(folder), "GWI_ENVIRONMENT": "production"}
    service = Service(APP, folder, env=env)
    try:
        service.process.wait(timeout=PATIENCE)
        service.wait_for("push_audience is not set: set push_audience and push_service_account")
        assert service.process.returncode != 0
    finally:
        service.close()


# --- what is read ---------------------------------------------------------------------------------


def test_an_unwrapped_message_runs_as_well(open_service: Service, folder: Path) -> None:
    headers = {"x-goog-pubsub-subscription-name": "projects/p/subscriptions/s"}
    before = attempts(folder)
    assert (
        open_service.http.post("/push", content=job("unwrapped"), headers=headers).status_code
        == 204
    )
    assert attempts(folder) == before + 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b'{"message": ', "not JSON"),
        (b"[" * 50_000 + b"]" * 50_000, "nested deeper than 200 levels"),
        (b"[" * 250 + b"]" * 250, "nested deeper than 200 levels"),
        (b'{"message": {"data": "no base64!"}}', "its data is not base64"),
        (b'{"message": {"data": 5}}', "its data is not base64"),
        (b'{"message": {"data": "", "attributes": {"a": 1}}}', "its attributes are not texts"),
        (b'{"message": {"data": "W10="}}', "without the body, headers and properties"),
        (b'{"message": {}}', "not JSON"),
    ],
)
def test_what_is_no_message_is_kept_with_the_reason_and_answered(
    body: bytes, reason: str, open_service: Service, jobs: object
) -> None:
    broker = broker_for(jobs.app)  # type: ignore[attr-defined]
    before = broker.size("celery.dead").total if broker.has_queue("celery.dead") else 0
    assert open_service.http.post("/push", content=body).status_code == 204
    dead = broker.peek("celery.dead")
    assert len(dead) == before + 1
    last = max(dead, key=lambda m: float(m.attributes["gwi-death-time"]))
    assert reason in last.attributes["gwi-death-reason"]


def test_too_much_is_not_read(open_service: Service) -> None:
    assert open_service.http.post("/push", content=b"x" * 300_000).status_code == 413

    def chunks() -> Iterator[bytes]:
        for _ in range(300):
            yield b"x" * 1000

    assert open_service.http.post("/push", content=chunks()).status_code == 413


def test_a_slow_body_is_not_waited_for(open_service: Service) -> None:
    with socket.create_connection(("127.0.0.1", open_service.port), timeout=10) as s:
        s.sendall(b"POST /push HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        assert s.recv(100).startswith(b"HTTP/1.1 408")


def test_a_huge_head_is_refused(open_service: Service) -> None:
    answer = open_service.http.get("/health", headers={"X-Long": "a" * 100_000})
    assert 400 <= answer.status_code < 500


def test_errors_tell_nothing(open_service: Service) -> None:
    for answer in (
        open_service.http.get("/"),
        open_service.http.get("/docs"),
        open_service.http.get("/push"),
        open_service.http.delete("/health"),
    ):
        assert answer.status_code in (404, 405)
        assert "Traceback" not in answer.text
    assert "server" not in open_service.http.get("/health").headers


# --- hostile --------------------------------------------------------------------------------------


def test_hundreds_of_hostile_requests_leave_it_well(open_service: Service, jobs: object) -> None:
    process = psutil.Process(open_service.process.pid)
    hostile = list(_hostile(random.Random(7)))
    with httpx.Client(base_url=open_service.url, timeout=30) as client:
        for body in hostile[:100]:
            client.post("/push", content=body)
        before = process.memory_info().rss
        for body in hostile:
            answer = client.post("/push", content=body)
            said = (body, answer.text, open_service.log[-3000:])
            assert answer.status_code in (204, 413), said
            assert "Traceback" not in answer.text
        grown = process.memory_info().rss - before
    assert open_service.http.get("/health").status_code == 200
    assert open_service.http.get("/ready").status_code == 200
    assert grown < 8 * 1024 * 1024, f"{grown} bytes more"
    assert open_service.http.post("/push", json=envelope(job("after"))).status_code == 204
    assert open_service.stats()["in_flight"] == 0
    store = store_for(jobs.app)  # type: ignore[attr-defined]
    runs = {j.run_id for j in store.list_jobs("acme").jobs}
    assert runs <= {"let-in", "by-hand", "unwrapped", "after"}, "nothing of this was a job"
    assert broker_for(jobs.app).purge("celery.dead") > 400  # type: ignore[attr-defined]


def _hostile(rng: random.Random) -> Iterator[bytes]:
    message = {"headers": {"task": "plain_add", "id": "x"}, "properties": {}, "body": "[[],{},{}]"}
    odd = [None, 5, -1, 1e308, "", "\ud800", [], {}, [[]], {"a": None}, True, "x" * 1000]
    for n in range(500):
        kind = n % 8
        if kind == 0:
            yield rng.randbytes(rng.randrange(2000))
        elif kind == 1:
            yield b"[" * rng.randrange(1, 100_000)
        elif kind == 2:
            yield json.dumps({"message": rng.choice(odd)}).encode()
        elif kind == 3:
            yield json.dumps(envelope(rng.randbytes(500))).encode()
        elif kind == 4:
            part = rng.choice(["headers", "properties", "body"])
            broken = {**message, part: rng.choice(odd), "content-type": rng.choice(odd)}
            yield json.dumps(envelope(json.dumps(broken).encode())).encode()
        elif kind == 5:
            headers = {
                rng.choice(
                    ["task", "id", "eta", "expires", "retries", "timelimit", "compression"]
                ): rng.choice(odd)
            }
            broken = {**message, "headers": {**message["headers"], **headers}}  # type: ignore[dict-item]
            yield json.dumps(envelope(json.dumps(broken).encode())).encode()
        elif kind == 6:
            broken_job = {
                "id": rng.choice(odd),
                "type": rng.choice(odd),
                "payload": rng.choice(odd),
            }
            yield json.dumps(broken_job).encode()
        else:
            yield (
                b'{"__type__": "'
                + rng.choice([b"uuid", b"datetime", b"bytes"])
                + b'", "__value__": 5}'
            )


def described_in_development() -> dict[str, Any]:
    """As the description's first lines say."""
    described: dict[str, Any] = yaml.safe_load(openapi.text())
    del described["paths"]["/push"]["post"]["requestBody"]["content"]["application/octet-stream"]
    described["paths"]["/stats"]["get"]["security"].append({})
    return described


schema = schemathesis.openapi.from_dict(
    described_in_development(),
    config=schemathesis.Config.from_dict(
        {
            "generation": {"deterministic": True},
            # 422: the job is in the dead letter, as no worker knows its task.
            "checks": {
                "positive_data_acceptance": {
                    "expected-statuses": ["2xx", "401", "403", "404", "409", "422", "429", "5xx"]
                }
            },
        }
    ),
)


@schema.parametrize()
@(
    schemathesis.pytest.settings(max_examples=20)
    if hasattr(schemathesis.pytest, "settings")
    else (lambda f: f)
)
def test_it_answers_as_described(case: schemathesis.Case, open_service: Service) -> None:
    case.call_and_validate(base_url=open_service.url)
