"""Everything at once: workers killed, the emulator restarted, and nothing lost."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from gwi_celery import broker_for, publish_batch
from gwi_celery.testing.emulators import Emulator, EmulatorMissing
from tests.pubsub.jobs import trail
from tests.twins import OFTEN, PUBSUB, own_pubsub
from tests.workers import Worker, eventually

pytestmark = [pytest.mark.acceptance, pytest.mark.emulator]

#: Workers that are killed, and messages between two of them.
KILLS, BETWEEN = 6, 800


@pytest.fixture
def emulator(pubsub_emulator: Emulator, request: pytest.FixtureRequest):
    """One that may be restarted: nobody else's. A test's parameter is the switches of a twin."""
    try:
        with own_pubsub(getattr(request, "param", PUBSUB)) as emulator:
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


# It limits how much is done again, and a batch that was published twice is 800 messages.
@pytest.mark.slow
@pytest.mark.parametrize(
    "emulator", [pytest.param({**OFTEN, "published_twice": False}, id="often")], indirect=True
)
def test_soak(jobs, start: Callable[..., Worker], emulator: Emulator, tmp_path: Path) -> None:
    """Thousands of messages, workers killed, the server restarted twice (and with it loses all).

    What the server lost is published again by an audit of what was done.
    """
    rng = random.Random(7)
    workers = [start(pool="solo") for _ in range(3)]
    for n in range(KILLS):
        publish(jobs, range(n * BETWEEN, (n + 1) * BETWEEN))
        least = n * BETWEEN + BETWEEN // 4
        eventually(lambda least=least: len(set(trail(tmp_path, "marks"))) > least)
        if n in (1, 4):
            emulator.restart(down_for=0.5)
            # Between a topic's being made again and its subscription's, what is published is lost.
            eventually(lambda: broker_for(jobs.app).has_queue("celery"))
            marked = set(trail(tmp_path, "marks"))
            publish(jobs, [m for m in range((n + 1) * BETWEEN) if str(m) not in marked])
        workers.pop(rng.randrange(3)).kill()
        workers.append(start(pool="solo"))
    expected = {str(n) for n in range(KILLS * BETWEEN)}
    eventually(lambda: set(trail(tmp_path, "marks")) == expected)
    # One per kill that hit a task between its end and its ack; what the audit republished while a
    # worker had it in hand; never a flood.
    twice = len(trail(tmp_path, "marks")) - len(expected)
    assert twice < 200, f"{twice} were done again"


def publish(jobs, numbers) -> None:
    with publish_batch() as batch:
        for n in numbers:
            jobs.mark.delay(n, 0.004)
    assert batch.published == len(numbers)
