"""A Cloud Storage with one bucket, in this process: as much of its JSON API as the library uses."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "large"


class FakeStorage:
    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.objects: dict[str, bytes] = {}
        #: What every request is answered with instead, if anything: an HTTP status.
        self.refuses: int | None = None


@contextmanager
def fake_storage() -> Iterator[FakeStorage]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    storage = FakeStorage(f"http://127.0.0.1:{server.server_port}")
    server.storage = storage  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield storage
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self._body()
        url = urlsplit(self.path)
        if self._refused(url.path):
            return
        if url.path == "/batch/storage/v1":
            self._answer(404, b"")
            return
        # multipart/related: the metadata, then the bytes.
        kind = self.headers["Content-Type"].encode()
        whole: Any = message_from_bytes(b"Content-Type: " + kind + b"\r\n\r\n" + body)
        boundary = whole.get_boundary().encode()
        meta, data = body.split(b"--" + boundary)[1:3]
        name = json.loads(meta.split(b"\r\n\r\n", 1)[1])["name"]
        self._storage.objects[name] = data.split(b"\r\n\r\n", 1)[1][: -len(b"\r\n")]
        self._json({"name": name, "bucket": BUCKET})

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if self._refused(url.path):
            return
        if url.path.endswith("/o"):
            prefix = parse_qs(url.query).get("prefix", [""])[0]
            names = [name for name in self._storage.objects if name.startswith(prefix)]
            self._json({"items": [{"name": name, "bucket": BUCKET} for name in names]})
            return
        data = self._storage.objects.get(self._name(url.path))
        if data is None:
            self._answer(404, b"{}")
        else:
            self._answer(200, data)

    def do_DELETE(self) -> None:
        url = urlsplit(self.path)
        if self._refused(url.path):
            return
        gone = self._storage.objects.pop(self._name(url.path), None)
        self._answer(404 if gone is None else 204, b"")

    # --- how ----------------------------------------------------------------------------------

    @property
    def _storage(self) -> FakeStorage:
        storage: FakeStorage = self.server.storage  # type: ignore[attr-defined]
        return storage

    def _refused(self, path: str) -> bool:
        status = self._storage.refuses
        if status is None and f"/b/{BUCKET}/" not in path:
            status = 404
        if status is not None:
            self._answer(status, json.dumps({"error": {"message": "refused"}}).encode())
        return status is not None

    @staticmethod
    def _name(path: str) -> str:
        found = re.search(r"/o/(.+)$", path)
        assert found is not None
        return unquote(found.group(1))

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self, content: dict[str, Any]) -> None:
        self._answer(200, json.dumps(content).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Not to the test's output."""
