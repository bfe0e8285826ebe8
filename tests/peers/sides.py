"""The brokers that the suites run on. Redis is the reference."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from gwi_celery.testing.emulators import free_port, start_pubsub

REFERENCE = "redis"


@dataclass(frozen=True)
class Side:
    """One broker to run on."""

    name: str
    broker: str
    #: The same kind of broker where there is none.
    dead: str
    priority: str = "asc"
    environment: dict[str, str] = field(default_factory=dict)
    #: Transport options of Kombu's suite.
    options: dict[str, Any] = field(default_factory=dict)


@contextmanager
def side(name: str, folder: Path, redis: str) -> Iterator[Side]:
    """The named side, started. ``redis`` is the reference's URL without a database."""
    if name == "redis":
        dead = f"redis://127.0.0.1:{free_port()}/0"
        yield Side(name, f"{redis}/0", dead, priority="desc")
    elif name == "embedded":
        yield Side(name, f"embedded://{folder}/gwi", "embedded:///dev/null/none")
    elif name in ("pubsub", "gcpubsub"):
        with start_pubsub() as emulator:
            project = f"peer-{uuid4().hex[:8]}"
            env = {"PUBSUB_EMULATOR_HOST": emulator.endpoint}
            if name == "pubsub":
                dead = f"pubsub://127.0.0.1:{free_port()}/{project}"
                url = f"pubsub://{emulator.endpoint}/{project}"
                # Redis's priority_steps, which it has without asking.
                options = {"priority_levels": [0, 3, 6, 9]}
                yield Side(name, url, dead, environment=env, options=options)
            else:
                url = f"gcpubsub://projects/{project}"
                yield Side(name, url, "gcpubsub://nothing", environment=env)
    elif name == "memory":
        yield Side(name, "memory://", "memory://")
    else:
        raise SystemExit(f"unknown side {name!r}: redis, embedded, pubsub, gcpubsub or memory")


@contextmanager
def redis_server() -> Iterator[str]:
    """A Redis of our own on loopback: the reference broker, and the suites' result backend."""
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("no redis-server on this machine: the suites need one as their reference")
    port = free_port()
    server = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if time.monotonic() > deadline:
                raise SystemExit("redis-server did not start")
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=10)
