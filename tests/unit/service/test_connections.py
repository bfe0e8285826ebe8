"""Strangers who connect and say nothing, or say it slowly, keep nobody from being answered."""

from __future__ import annotations

import contextlib
import random
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import httpx
import psutil
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gwi_celery.service import connections, server
from gwi_celery.service.answers import Json
from gwi_celery.service.limits import HeadLimit
from gwi_celery.testing.emulators import free_port
from tests.machine import PATIENCE, Stopwatch, examples
from tests.workers import eventually

MOST = 20


async def health(request: Request) -> Response:
    return Json({"client": request.client.host if request.client else "", "half": "\ud800"})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of a server that keeps MOST connections, and waits for a head for a second."""
    monkeypatch.setattr(connections, "HEAD_TIMEOUT", 1.0)
    monkeypatch.setattr(server, "_HEALTH_CONNECTIONS", MOST)
    application = Starlette(routes=[Route("/health", health)], middleware=[Middleware(HeadLimit)])
    number = free_port()
    running = server.BackgroundServer(application, "127.0.0.1", number)
    running.start()
    eventually(lambda: _answers(number))
    yield number
    running.stop()


def _answers(port: int) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
    return False


def _established(port: int) -> list[int]:
    """The other ends of the server's connections."""
    found = psutil.Process().net_connections("tcp")
    kept = [c for c in found if c.laddr.port == port and c.status == psutil.CONN_ESTABLISHED]
    return sorted(c.raddr.port for c in kept)


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def test_idle_connections_make_room_for_who_asks(port: int) -> None:
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}"))
        assert kept.get("/health").status_code == 200
        for _ in range(5 * MOST // 2):
            stack.enter_context(_connect(port))
        with Stopwatch() as watch:
            assert _answers(port)
        assert watch.seconds < 5
        assert len(_established(port)) <= MOST + 1
        assert kept.get("/health").status_code == 200, "who asked before is closed last"


@pytest.mark.parametrize(
    "sent", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: x\r\nA: "]
)
def test_a_head_that_does_not_come_ends_its_connection(sent: bytes, port: int) -> None:
    with _connect(port) as s, Stopwatch() as watch:
        began = time.monotonic()
        s.sendall(sent)
        with contextlib.suppress(OSError):
            while watch.seconds < 10:
                s.settimeout(0.2)
                with contextlib.suppress(TimeoutError):
                    if s.recv(1000) == b"":
                        break
                if sent:
                    s.sendall(b"a")  # slowly, one byte after the other
        assert time.monotonic() - began > 0.5
        assert watch.seconds < 8


def test_a_second_head_is_timed_as_well_and_a_body_that_nobody_reads(port: int) -> None:
    for head in (
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /health HT",
        b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n",
    ):
        with _connect(port) as s, Stopwatch() as watch:
            s.sendall(head)
            with contextlib.suppress(OSError):
                while s.recv(1000) != b"" and watch.seconds < 10:
                    s.sendall(b"a")
            assert watch.seconds < 8


def test_a_whole_request_is_not_timed(port: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        assert client.get("/health").status_code == 200
        (before,) = _established(port)
        time.sleep(1.5)
        assert client.get("/health").status_code == 200
        assert _established(port) == [before], "an idle one is kept for longer"


def test_who_connects_is_who_calls_and_any_text_can_be_answered(port: int) -> None:
    answer = httpx.get(f"http://127.0.0.1:{port}/health", headers={"X-Forwarded-For": "9.9.9.9"})
    assert answer.json() == {"client": "127.0.0.1", "half": "\ud800"}


def test_two_lengths_are_refused_and_the_connection_ends(port: int) -> None:
    with _connect(port) as s:
        s.sendall(
            b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n"
            b"\r\n0\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        answer = b""
        while more := s.recv(65536):
            answer += more
        assert answer.startswith(b"HTTP/1.1 400")
        assert answer.count(b"HTTP/1.1") == 1


def test_a_line_end_is_no_part_of_a_path(port: int) -> None:
    for path in ("/health%0a", "/health%0A%0d", "/health%00", "/health/"):
        assert httpx.get(f"http://127.0.0.1:{port}{path}").status_code in (307, 404)
    assert httpx.get(f"http://127.0.0.1:{port}/health%0a").status_code == 404


def test_there_are_fewer_where_descriptors_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, most in ((256, 64), (1024, 100), (10, 8), (-1, 100)):
        monkeypatch.setattr(connections.resource, "getrlimit", lambda _, soft=soft: (soft, -1))
        assert connections.most_connections(100) == most


def test_hostile_heads_leave_it_well(port: int) -> None:
    rng = random.Random(11)
    process = psutil.Process()
    before, number = 0, examples(2000)
    for n in range(number):
        if n == number // 4:  # what is kept for good is there by now
            before = process.memory_info().rss
        head = _hostile(rng)
        status = _send(port, head)
        assert status in (0, 200, 400, 404, 405, 411, 431), head[:200]
        if n % 100 == 0:
            assert _answers(port)
    assert process.memory_info().rss - before < 16 * 1024 * 1024
    assert _answers(port)


def _hostile(rng: random.Random) -> bytes:
    method = rng.choice(
        [b"GET", b"POST", b"HEAD", b"TRACE", b"CONNECT", b"get", b"X" * 50, b"\x16\x03"]
    )
    path = rng.choice(
        [
            *(b"/health", b"/health%0a", b"//health", b"/../health", b"/health?" + b"&" * 99),
            *(b"*", b"@evil.example", b"health", b"http://evil.example/health"),
            *(b"/%00", b"/" + b"a" * 40_000, b"/h\xe9", b"/%ff%fe"),
        ]
    )
    version = rng.choice([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/9.9", b"HTTP/2", b""])
    header = rng.choice(
        [
            *(b"Host: x", b"Host: evil.example\r\nHost: x", b"Host: /?@", b"Host:", b": x"),
            *(b"A" * 40_000 + b": b", b"A: b\r\n" * 2000, b"X: " + rng.randbytes(30)),
            *(b"Host: x\r\n folded", b"Host: x\nY: z", b"Expect: 100-continue\r\nHost: x"),
            b"Transfer-Encoding: chunked\r\nHost: x",
            b"Transfer-Encoding: x, chunked\r\nHost: x",
            b"Content-Length: 5\r\nContent-Length: 6\r\nHost: x",
            b"Content-Length: -1\r\nHost: x",
            b"Upgrade: websocket\r\nConnection: upgrade\r\nHost: x",
        ]
    )
    body = rng.choice([b"", b"0\r\n\r\n", b"fffffffffffffff\r\n", b"GET /health HTTP/1.1\r\n\r\n"])
    return b"%s %s %s\r\n%s\r\n\r\n%s" % (method, path, version, header, body)


def _send(port: int, head: bytes) -> int:
    """The answer's status; 0: none, and the connection ended."""
    with _connect(port) as s, contextlib.suppress(ConnectionError):
        s.sendall(head)
        s.shutdown(socket.SHUT_WR)
        answer = s.recv(65536)
        return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0
    return 0


def test_who_is_refused_while_it_sends_reads_the_answer(port: int) -> None:
    """Closing at once would have the kernel reset the connection, and the answer be lost."""
    body = b"x" * 8_000_000
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/nowhere", data=body
    )  # it sends close
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=PATIENCE)
    assert refused.value.code == 404
    refused.value.close()


def test_who_never_ends_sending_is_not_read_for_ever(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_DROPPED_AT_MOST", 1_000_000)
    head = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 999999999\r\n\r\n"
    with _connect(port) as s:
        s.sendall(head)
        assert s.recv(1000).startswith(b"HTTP/1.1 404")
        with pytest.raises(ConnectionError):
            for _ in range(1000):
                s.sendall(b"x" * 100_000)
