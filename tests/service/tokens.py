"""Tokens like Google's, signed with keys of our own, and where their certificates are."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import crypt, jwt

AUDIENCE = "https://jobs.example.test/push"
ACCOUNT = "pusher@project.iam.gserviceaccount.test"


class Issuer:
    """Signs tokens; ``certificates`` is what it publishes."""

    def __init__(self, key_id: str = "key-1") -> None:
        self.key_id = key_id

    @cached_property
    def certificates(self) -> dict[str, str]:
        public = self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return {self.key_id: public.decode()}

    @cached_property
    def _key(self) -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)

    @cached_property
    def _signer(self) -> Any:
        private = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
        return crypt.RSASigner.from_string(private, self.key_id)

    def token(self, **changes: Any) -> str:
        """A good token, but for ``changes`` (None: without that claim)."""
        now = int(time.time())
        claims = {
            "iss": "https://accounts.google.com",
            "aud": AUDIENCE,
            "azp": "1",
            "sub": "1",
            "email": ACCOUNT,
            "email_verified": True,
            "iat": now - 10,
            "exp": now + 3600,
            **changes,
        }
        encoded: bytes = jwt.encode(
            self._signer, {k: v for k, v in claims.items() if v is not None}
        )
        return encoded.decode()


@contextmanager
def published(certificates: dict[str, str]) -> Iterator[str]:
    """The URL of a server that publishes certificates."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(certificates).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/certs"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
