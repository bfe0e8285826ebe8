"""The public keys that tokens are checked with: fetched ahead of need, and kept while fetching fails.

A separate thread fetches them, so no request does: neither one with a good token when the keys are old,
nor a stranger's that names an unknown key.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate

from gwi_celery import forks
from gwi_celery.background import Ticker
from gwi_celery.backoff import Backoff
from gwi_celery.errors import ConfigurationError
from gwi_celery.text import from_json

logger = logging.getLogger(__name__)

#: Where Google publishes the certificates that its tokens are signed with.
GOOGLE_CERTS = "https://www.googleapis.com/oauth2/v1/certs"

#: Seconds until keys are fetched again. Google keeps a key for days.
_TTL = 3600.0
#: Seconds between fetches for an unknown key, since a stranger can name any.
_PAUSE = 60.0
#: First and longest pause after a fetch that failed, seconds.
_BACKOFF = (1.0, 60.0)
#: Seconds that a request waits for the very first keys; from then on none waits.
_FIRST = 5.0
#: Seconds that a fetch may take in all, and bytes that it may bring.
_DEADLINE, _LARGEST = 10.0, 1024 * 1024
#: Shortest RSA key that is trusted, bits.
_SHORTEST_KEY = 2048

Fetch = Callable[[], Mapping[str, str]]


class Keys:
    """Key id -> public key.

    Args:
        fetch: Returns the certificates or public keys (PEM) by key id. Called in a thread; may raise.
    """

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._changed = forks.condition()
        self._ticker = Ticker("gwi-keys", self._refresh)
        self._pauses = Backoff(*_BACKOFF)
        self._known: dict[str, _Key] = {}
        self._started = self._stopped = False
        #: Monotonic time at which the latest fetch began.
        self._began = 0.0
        #: Monotonic time until which requests wait for the first fetch; 0: it has ended.
        self._wait_until = 0.0

    def start(self) -> None:
        """Begin to fetch. A first :meth:`get` does so as well."""
        with self._changed:
            if not (self._started or self._stopped):
                self._started = True
                self._wait_until = time.monotonic() + _FIRST
                self._ticker.wake()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._ticker.stop(0.0)

    def wait(self) -> None:
        """Wait until the first fetch has succeeded or failed, for a few seconds at most."""
        self.start()
        with self._changed:
            while (left := self._wait_until - time.monotonic()) > 0 and not self._stopped:
                self._changed.wait(left)

    def get(self, key_id: str) -> RSAPublicKey | None:
        """The key, or None if it is unknown; then it is fetched, for the next request that needs it.

        Raises LookupError if no key at all is known.
        """
        self.wait()
        with self._changed:
            key = self._known.get(key_id)
            if key is not None and key.until > time.time():
                return key.public
            if not self._known:
                raise LookupError("no keys")
            if not self._stopped:
                self._ticker.wake(self._began + _PAUSE)
            return None

    def _refresh(self) -> float:
        """Fetch the keys; returns the monotonic time of the next fetch."""
        self._began = time.monotonic()
        try:
            found = self._read(self._fetch())
        except Exception as exc:
            pause = self._pauses.next()
            logger.error(
                "can't fetch the certificates that tokens are checked with (%s: %s): %s; "
                "trying again in %.0f s",
                type(exc).__name__,
                exc,
                "those known stay in use" if self._known else "nobody is let in",
                pause,
            )
            found = None
        else:
            pause = _TTL
            self._pauses.reset()
        with self._changed:
            if found is not None:
                self._known = found
            self._wait_until = 0.0
            self._changed.notify_all()
        return time.monotonic() + pause

    def _read(self, certificates: Mapping[str, str]) -> dict[str, _Key]:
        """The usable keys among them. A damaged one doesn't replace the one that was known."""
        found: dict[str, _Key] = {}
        for key_id, pem in certificates.items():
            try:
                found[key_id] = _Key(pem)
            except Exception as exc:
                logger.error("the certificate of key %.50r can't be used: %s", key_id, exc)
                if key_id in self._known:
                    found[key_id] = self._known[key_id]
        if not found:
            raise ValueError("no usable certificate in the answer")
        return found


class _Key:
    """A certificate's key, and seconds since the epoch until which it may be used."""

    def __init__(self, pem: str) -> None:
        data = pem.encode()
        self.until = float("inf")
        if b"BEGIN CERTIFICATE" in data:
            certificate = load_pem_x509_certificate(data)
            end = certificate.not_valid_after_utc
            if end < datetime.now(timezone.utc):
                raise ValueError(f"it was valid until {end:%Y-%m-%d}")
            self.until, public = end.timestamp(), certificate.public_key()
        else:
            public = load_pem_public_key(data)  # type: ignore[assignment]
        if not isinstance(public, RSAPublicKey) or public.key_size < _SHORTEST_KEY:
            raise ValueError(f"not an RSA key of {_SHORTEST_KEY} bits or more")
        self.public = public


# --- fetching -------------------------------------------------------------------------------------


def check_url(url: str) -> None:
    """Raises ConfigurationError: whoever can change what is fetched there can sign tokens."""
    parts = urlsplit(url)
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and local)):
        raise ConfigurationError(
            f"push_certs_url is {url!r}: whoever can change what is there opens /push, so it must be "
            "https://, or http:// on this machine"
        )


def fetch_from(url: str, deadline: float = _DEADLINE) -> Fetch:
    """Fetches certificates from ``url``, in ``deadline`` seconds in all. Raises ConfigurationError."""
    check_url(url)

    def fetch() -> Mapping[str, str]:
        call = _Call()
        opener = urllib.request.build_opener(call, _NoRedirect)
        timer = threading.Timer(deadline, call.end)
        timer.daemon = True
        timer.start()
        try:
            with opener.open(url, timeout=deadline) as response:
                data = response.read(_LARGEST + 1)
            if len(data) > _LARGEST:
                raise ValueError(f"an answer of more than {_LARGEST} bytes")
        finally:
            timer.cancel()
            call.close()
            if call.ended:  # rather than the error that ending it has caused
                raise TimeoutError(f"no answer in {deadline:g} s")
        found = from_json(data)
        if not isinstance(found, dict) or not all(isinstance(pem, str) for pem in found.values()):
            raise ValueError("the answer is not a JSON object of texts")
        return found

    return fetch


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Keys come from where the setting says, and nowhere else."""

    def redirect_request(self, *args: Any) -> None:
        return None


class _Call(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """A call that another thread can end: a socket's time-out starts again with each byte."""

    def __init__(self) -> None:
        urllib.request.HTTPSHandler.__init__(self)
        self._sockets: list[socket.socket] = []
        self.ended = False

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._maker(_Plain), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._maker(_Tls), request)

    def _maker(self, kind: type[_Plain]) -> Any:
        def make(*args: Any, **kwargs: Any) -> http.client.HTTPConnection:
            connection = kind(*args, **kwargs)
            connection.opened = self._sockets
            return connection

        return make

    def end(self) -> None:
        self.ended = True
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


class _Plain(http.client.HTTPConnection):
    """Reports its socket as soon as it exists, before the TLS handshake."""

    opened: list[socket.socket]

    def connect(self) -> None:
        super().connect()
        self.opened.append(self.sock.dup())


class _Tls(http.client.HTTPSConnection, _Plain):
    """HTTPSConnection connects by the class after it, which is the one above."""
