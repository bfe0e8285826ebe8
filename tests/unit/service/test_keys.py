"""Keys are fetched behind everybody's back: nobody waits for it, and good ones outlive bad answers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest

from gwi_celery.errors import ConfigurationError
from gwi_celery.service import keys as module
from gwi_celery.service.keys import Keys, check_url, fetch_from
from gwi_celery.testing.twin.tokens import Tokens
from tests.machine import PATIENCE, Stopwatch
from tests.service.tokens import Issuer, published
from tests.workers import eventually

ONE, TWO = Issuer("one"), Issuer("two")


class Source:
    """What is published, and how often it was asked for."""

    def __init__(self, **published: str) -> None:
        self.published: Mapping[str, str] | Exception = published
        self.asked = 0
        self.free = threading.Event()
        self.free.set()

    def __call__(self) -> Mapping[str, str]:
        self.asked += 1
        self.free.wait(PATIENCE)
        if isinstance(self.published, Exception):
            raise self.published
        return self.published


@contextmanager
def keys(source: Callable[[], Mapping[str, str]]) -> Iterator[Keys]:
    found = Keys(source)
    try:
        yield found
    finally:
        found.stop()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are old at once, and a failed fetch is repeated at once."""
    monkeypatch.setattr(module, "_TTL", 0.01)
    monkeypatch.setattr(module, "_BACKOFF", (0.01, 0.02))


def test_nobody_waits_for_new_keys_and_old_ones_stay_in_use(quick: None) -> None:
    source = Source(**ONE.certificates)
    with keys(source) as found:
        assert found.get("one") is not None
        source.free.clear()
        before = source.asked
        eventually(lambda: source.asked > before, what="a fetch that hangs")
        with Stopwatch() as watch:
            for n in range(100):
                assert found.get("one") is not None
                assert found.get(f"stranger-{n}") is None
        assert watch.seconds < 1
        source.published = {**ONE.certificates, **TWO.certificates}
        source.free.set()
        eventually(lambda: found.get("two"), what="the new key")


@pytest.mark.parametrize(
    "answer",
    [
        OSError("no network"),
        {},
        {"one": "damaged"},
        {"one": 5},
        {"three": "-----BEGIN CERTIFICATE-----"},
    ],
)
def test_a_bad_answer_replaces_nothing(answer: object, quick: None) -> None:
    source = Source(**ONE.certificates)
    with keys(source) as found:
        assert found.get("one") is not None
        source.published = answer  # type: ignore[assignment]
        before = source.asked
        eventually(lambda: source.asked > before + 2, what="bad answers")
        assert found.get("one") is not None


def test_a_damaged_key_among_good_ones_is_left_out() -> None:
    weak = (
        "-----BEGIN PUBLIC KEY-----\nMFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAL\n-----END PUBLIC KEY-----"
    )
    with keys(Source(**ONE.certificates, two="damaged", three=weak)) as found:
        assert found.get("one") is not None
        assert found.get("two") is None
        assert found.get("three") is None


def test_strangers_cause_no_more_than_one_fetch_a_minute() -> None:
    source = Source(**ONE.certificates)
    with keys(source) as found:
        for n in range(100):
            assert found.get(f"stranger-{n}") is None
        time.sleep(0.1)
        assert source.asked == 1


def test_without_any_key_only_the_first_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST", 0.2)
    source = Source()
    source.free.clear()
    with keys(source) as found:
        with Stopwatch() as watch:
            for _ in range(20):
                with pytest.raises(LookupError):
                    found.get("one")
        assert watch.seconds < 2
        source.published = ONE.certificates
        source.free.set()
        eventually(lambda: _known(found, "one"), what="the key")


def _known(found: Keys, key_id: str) -> bool:
    try:
        return found.get(key_id) is not None
    except LookupError:
        return False


def test_a_failing_source_is_asked_at_growing_intervals() -> None:
    source = Source()
    source.published = OSError("no network")
    with keys(source) as found:
        for _ in range(50):
            with pytest.raises(LookupError):
                found.get("one")
        assert source.asked == 1


def test_a_certificate_is_used_as_long_as_it_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens()
    tokens.make("a@b.test", "x")
    with keys(lambda: tokens.certificates) as found:
        assert found.get("twin") is not None
        later = time.time() + 30 * 86400
        monkeypatch.setattr(module.time, "time", lambda: later)
        assert found.get("twin") is None


# --- fetching -------------------------------------------------------------------------------------


def test_they_are_fetched_from_a_url() -> None:
    with published(ONE.certificates) as url:
        assert fetch_from(url)() == ONE.certificates


@pytest.mark.parametrize(
    "url",
    [
        "http://certs.example.test/x",
        "http://127.0.0.1.example.test/",
        "http://localhost@example.test/",
        "https:",
        "file:///etc/passwd",
        "/etc/passwd",
    ],
)
def test_who_could_be_changed_on_the_way_is_not_asked(url: str) -> None:
    with pytest.raises(ConfigurationError, match="push_certs_url"):
        fetch_from(url)


def test_google_and_this_machine_are() -> None:
    for url in (
        module.GOOGLE_CERTS,
        "http://127.0.0.1:1/x",
        "http://localhost/x",
        "http://[::1]:1/",
    ):
        check_url(url)


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"]
)
def test_a_fetch_ends_in_time_however_slowly_its_answer_drips(head: bytes) -> None:
    with _server(head, b"a") as url:
        with Stopwatch() as watch, pytest.raises(TimeoutError, match=r"no answer in 0\.5 s"):
            fetch_from(url, deadline=0.5)()
        assert watch.seconds < 5


def test_a_redirect_is_not_followed_and_a_huge_answer_not_read() -> None:
    moved = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n"
    with _server(moved, b"") as url, pytest.raises(OSError, match="302"):
        fetch_from(url)()
    huge = b"HTTP/1.1 200 OK\r\n\r\n"
    with _server(huge, b"x" * 300_000) as url, pytest.raises(ValueError, match="more than"):
        fetch_from(url)()


@contextmanager
def _server(head: bytes, drip: bytes) -> Iterator[str]:
    """Answers with ``head``, and then with ``drip`` again and again."""
    listening = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            try:
                connection.sendall(head)
                while drip and not over.wait(0.01):
                    connection.sendall(drip)
            except OSError:
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/certs"
    finally:
        over.set()
        thread.join(timeout=PATIENCE)
        listening.close()
