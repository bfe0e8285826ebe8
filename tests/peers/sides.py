"""The brokers and result backends that the suites run on. Redis is the reference for both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from gwi_celery.testing.emulators import free_port, start_firestore, start_pubsub
from tests.peers.obtain import ALIAS

REFERENCE = "redis"

#: Sides with a result backend of ours, on Redis as the broker: only Celery's suite has results.
RESULTS = ("results-embedded", "results-firestore")


@dataclass(frozen=True)
class Side:
    """One broker to run on."""

    name: str
    broker: str
    #: The same kind of broker where there is none.
    dead: str
    priority: str = "asc"
    #: The result backend; None: Redis.
    results: str | None = None
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
    elif name == "results-embedded":
        results = f"{ALIAS}embedded+embedded://{folder}/gwi"
        yield Side(name, f"{redis}/0", "", results=results)
    elif name == "results-firestore":
        with start_firestore() as emulator:
            project = f"peer-{uuid4().hex[:8]}"
            env = {"FIRESTORE_EMULATOR_HOST": emulator.endpoint}
            results = f"{ALIAS}firestore+firestore://{project}"
            yield Side(name, f"{redis}/0", "", results=results, environment=env)
    elif name == "memory":
        yield Side(name, "memory://", "memory://")
    else:
        known = ", ".join(("redis", "embedded", "pubsub", "gcpubsub", "memory", *RESULTS))
        raise SystemExit(f"unknown side {name!r}: use one of {known}")
