"""The Cloud Run twin with a container of a few lines: who gets in, and what becomes of instances."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from gwi_celery.testing.twin.cloudrun import SIGNATURE_REMOVED, CloudRun, start_cloud_run
from tests.machine import PATIENCE
from tests.service.tokens import ACCOUNT, AUDIENCE, Issuer
from tests.workers import eventually

#: Prints the token it gets, answers 200 after the seconds that the body says, and is deaf to SIGTERM.
PROGRAM = """
import http.server, os, signal, time
signal.signal(signal.SIGTERM, lambda *a: print("asked to end", flush=True))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        print(self.headers.get("Authorization"), flush=True)
        time.sleep(float(body))
        self.send_response(200)
        self.end_headers()
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
COMMAND = [sys.executable, "-c", PROGRAM]
ISSUER = Issuer()


@pytest.fixture
def service() -> Iterator[CloudRun]:
    with start_cloud_run(
        COMMAND,
        invoker=ACCOUNT,
        audience=AUDIENCE,
        certificates=lambda: ISSUER.certificates,
        max_instances=2,
        queue_wait=0.2,
        request_timeout=3,
        cold_start=0,
        grace=0.5,
    ) as started:
        yield started


def post(service: CloudRun, token: str | None, seconds: float = 0) -> int:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    body = str(seconds)
    return httpx.post(service.url, content=body, headers=headers, timeout=PATIENCE).status_code


def test_the_invoker_alone_gets_in_and_its_signature_does_not(service: CloudRun) -> None:
    good = ISSUER.token()
    assert post(service, None) == 403
    assert post(service, ISSUER.token(email="another@p.example")) == 403
    assert post(service, ISSUER.token(aud="https://elsewhere")) == 401
    assert post(service, Issuer().token()) == 401, "signed by another"
    assert service.instances == [], "who is refused starts none"
    assert post(service, good) == 200
    [line, *_] = service.log().splitlines()
    assert line == f"Bearer {good.rpartition('.')[0]}.{SIGNATURE_REMOVED}"


def test_instances_start_for_requests_up_to_their_number_and_end(service: CloudRun) -> None:
    token = ISSUER.token()
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda _: post(service, token, 1.5), range(3)))
    assert sorted(answers) == [200, 200, 429], "one request at a time in each"
    assert len(service.instances) == 2
    assert post(service, token, 60) == 504
    first = service.instances[0]
    service.shut_down(first)
    eventually(lambda: first.process.poll() is not None)
    assert first.process.returncode == -signal.SIGKILL, "it was deaf to SIGTERM"
    assert "asked to end" in first.log()
    other = service.instances[0]
    other.signal_all(signal.SIGKILL)
    eventually(lambda: other.process.poll() is not None)
    assert post(service, token) == 200, "by a new one"
