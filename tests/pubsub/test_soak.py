"""Everything at once: workers killed, the emulator restarted, and nothing lost."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from gwi_celery import broker_for, publish_batch
from gwi_celery.testing.emulators import Emulator, EmulatorMissing, start_pubsub
from tests.pubsub.jobs import trail
from tests.workers import Worker, eventually

pytestmark = [pytest.mark.acceptance, pytest.mark.emulator]

MESSAGES = 5000


@pytest.fixture
def emulator(pubsub_emulator: Emulator):
    """One that may be restarted: nobody else's."""
    try:
        started = start_pubsub(fresh=True)
        with started as emulator:
            yield emulator
    except EmulatorMissing as exc:  # only a running one was named
        pytest.fail(str(exc))


@pytest.fixture
def url(emulator: Emulator) -> str:
    return f"pubsub://{emulator.endpoint}/soak"


def test_the_server_goes_away_and_comes_back(
    jobs, start: Callable[..., Worker], emulator: Emulator, tmp_path: Path
) -> None:
    """The worker resumes by itself, and what it was doing is done once."""
    worker = start()
    jobs.began.delay("across", 3)
    eventually(lambda: trail(tmp_path, "began"))
    emulator.restart(down_for=1)
    eventually(lambda: trail(tmp_path, "ended"))
    # Between a topic's being made again and its subscription's, what is published reaches nobody.
    eventually(lambda: broker_for(jobs.app).has_queue("celery"))
    for n in range(3):
        jobs.mark.delay(n)
    eventually(lambda: len(trail(tmp_path, "marks")) == 3)
    assert trail(tmp_path, "began") == ["across"]
    # A broadcast before the worker's own queue is there again has nobody to hear it.
    answer = [{worker.name: {"ok": "pong"}}]
    eventually(lambda: jobs.app.control.ping(timeout=2, limit=1) == answer)
    assert worker.process.poll() is None


@pytest.mark.timeout(300)
def test_soak(jobs, start: Callable[..., Worker], emulator: Emulator, tmp_path: Path) -> None:
    """5,000 messages, workers killed at random, the server restarted twice (and with it loses all).

    What the server lost is published again by an audit of what was done.
    """
    rng = random.Random(7)
    workers = [start(pool="solo") for _ in range(3)]
    publish(jobs, range(MESSAGES))
    restarts = [MESSAGES * 3 // 10, MESSAGES * 7 // 10]
    kills = 0
    deadline = time.monotonic() + 240
    while (done := len(set(trail(tmp_path, "marks")))) < MESSAGES:
        assert time.monotonic() < deadline, f"{done} of {MESSAGES} after {kills} kills"
        if restarts and done >= restarts[0]:
            restarts.pop(0)
            emulator.restart(down_for=0.5)
            marked = set(trail(tmp_path, "marks"))
            publish(jobs, [n for n in range(MESSAGES) if str(n) not in marked])
        if kills < 6 and done < MESSAGES * 9 // 10:
            workers.pop(rng.randrange(3)).kill()
            workers.append(start(pool="solo"))
            kills += 1
        time.sleep(rng.uniform(0.2, 1.0))
    counts = Counter(trail(tmp_path, "marks"))
    assert set(counts) == {str(n) for n in range(MESSAGES)}
    assert kills >= 3
    assert not restarts
    twice = sum(count - 1 for count in counts.values())
    # One per kill that hit a task between its end and its ack; what the audit republished while a
    # worker had it in hand; never a flood.
    assert twice < 200, f"{twice} were done again"


def publish(jobs, numbers) -> None:
    with publish_batch() as batch:
        for n in numbers:
            jobs.mark.delay(n, 0.004)
    assert batch.published == len(numbers)
