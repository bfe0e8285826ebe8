"""Whatever a message holds, its worker lives on: it has run, or is in the dead letter.

FUZZ_EXAMPLES says how many messages each worker gets (0: all of the about 9,000), FUZZ_SEED which.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from gwi_celery import broker_for
from gwi_celery.brokers.base import OutgoingMessage, QueueSpec
from tests.fuzz.messages import Odd, messages, wrapped
from tests.service.pushing import Service
from tests.workers import Worker, eventually, read_audit

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
#: Seconds for all of them.
PATIENCE = max(90.0, EXAMPLES / 5) if EXAMPLES else 1800.0

pytestmark = pytest.mark.acceptance


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_pull_worker_survives_any_message(
    pool: str, jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    odd = messages(EXAMPLES, seed=SEED)
    broker = broker_for(jobs.app)
    settled: set[str] = set()
    for message in odd:
        # Not all in one request: some are nearly as large as one may be.
        broker.publish("", "celery", OutgoingMessage(message.data, message.attributes))
    worker = start(pool=pool)
    eventually(
        lambda: not _missing(odd, jobs, tmp_path, settled), "all to be settled", timeout=PATIENCE
    )
    assert jobs.add.delay(2, 3, tenant_id="acme").get(timeout=PATIENCE) == 5
    assert worker.process.poll() is None
    assert worker.log.count("ready.") == 1, "it started again"


def test_a_push_service_survives_any_message(
    jobs: ModuleType, serve: Callable[..., Service], tmp_path: Path
) -> None:
    odd = messages(EXAMPLES, seed=SEED)
    broker_for(jobs.app).declare_queue(QueueSpec("celery"))
    service = serve(concurrency=2, env={"GWI_PUSH_WAIT": "30"})

    def push(message: Odd) -> int:
        return service.http.post("/push", json=wrapped(message)).status_code

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(push, odd))
    refused = [m.what for m, status in zip(odd, answers, strict=True) if status != 204]
    assert refused == []
    left = _missing(odd, jobs, tmp_path, set())
    assert left == []
    assert service.http.get("/health").status_code == 200
    assert service.process.poll() is None


def _missing(odd: list[Odd], jobs: ModuleType, folder: Path, settled: set[str]) -> list[str]:
    """What has neither run nor is in the dead letter; ``settled``: what was before."""
    for event in read_audit(folder):
        if event["event"] == "ran":
            settled.add(str(event["fuzz"]))
            found = re.fullmatch(r"fuzz-(\d+)", str(event["id"]))
            if found:
                settled.add(found[1])
    broker = broker_for(jobs.app)
    if broker.has_queue("celery.dead"):
        dead = broker.peek("celery.dead", 100_000)
        settled |= {message.attributes.get("fuzz", "") for message in dead}
    return [f"{m.number}: {m.what}" for m in odd if str(m.number) not in settled]
