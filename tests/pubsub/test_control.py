"""Remote control: what a command costs, and that workers answer in time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.machine import PATIENCE
from tests.pubsub.conftest import settled
from tests.pubsub.jobs import trail
from tests.workers import Worker, eventually

pytestmark = [pytest.mark.acceptance, pytest.mark.emulator]


def test_a_ping_is_a_few_rpcs(
    calls: Counter[str], jobs: ModuleType, start: Callable[..., Worker]
) -> None:
    """A queue for the replies, the command, two reads, and nothing is asked for again and again."""
    worker = start(pool="solo")
    jobs.app.control.ping(timeout=PATIENCE, limit=1)  # opens the connections
    settled()
    eventually(lambda: calls["Acknowledge"], what="the reply is acked: that is another thread's")
    calls.clear()
    assert jobs.app.control.ping(timeout=PATIENCE, limit=1) == [{worker.name: {"ok": "pong"}}]
    expected = {
        "CreateSubscription": 2,  # by its own name, and bound to the exchange of replies
        "Publish": 1,
        "reads": 2,
        "Acknowledge": 1,
        "ListTopicSubscriptions": 1,  # whether anybody else reads from it
        "DeleteSubscription": 2,
    }
    # The emulator is streamed from only where there is no limit; the service always.
    calls["reads"] = calls.pop("StreamingPull", 0) + calls.pop("Pull", 0)
    assert calls <= Counter(expected), calls


@pytest.mark.parametrize("pool", ["solo", "gevent"])
def test_a_worker_answers_its_first_command_without_preparations(
    pool: str, jobs: ModuleType, start: Callable[..., Worker]
) -> None:
    """What a reply needs was opened and declared as the worker started: also of a restarted node."""
    worker = start(pool=pool, args=("--without-gossip", "--without-mingle"))
    # So that the caller has its connections, too.
    eventually(lambda: jobs.app.control.ping(timeout=5, limit=1))
    inspect = jobs.app.control.inspect(destination=[worker.name], timeout=PATIENCE)
    assert inspect.ping() == {worker.name: {"ok": "pong"}}
    worker.stop()
    again = start(pool=pool, args=("--without-gossip", "--without-mingle"))
    if pool == "gevent":  # Celery opens its box in a greenlet: maybe after the worker is ready
        eventually(lambda: jobs.app.control.ping(timeout=1, limit=1))
    assert jobs.app.control.ping(timeout=PATIENCE, limit=1) == [{again.name: {"ok": "pong"}}]


def test_two_workers_that_are_named_answer_at_once(
    jobs: ModuleType, start: Callable[..., Worker]
) -> None:
    """The caller stops waiting with the last of them."""
    names = [start(pool="solo").name for _ in range(2)]
    jobs.app.control.ping(timeout=PATIENCE, destination=names)
    began = time.monotonic()
    replies = jobs.app.control.ping(timeout=PATIENCE, destination=names)
    assert time.monotonic() - began < PATIENCE / 2, "it did not wait for a third"
    assert {name for reply in replies for name in reply} == set(names)


def test_a_command_that_waited_for_a_task_is_run_once(
    jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    """A solo worker sees it after its task, by then redelivered again and again."""
    worker = start(pool="solo", args=("--loglevel", "DEBUG"))
    jobs.began.delay("long", 25)
    eventually(lambda: trail(tmp_path, "began"))
    jobs.app.control.broadcast("pool_grow", {"n": 0})
    jobs.app.control.broadcast("time_limit", {"task_name": "mark", "soft": 77, "hard": 99})
    eventually(lambda: trail(tmp_path, "ended"))
    assert jobs.app.control.ping(timeout=PATIENCE, limit=1), "what came before was dealt with"
    time.sleep(1)
    assert worker.log.count("pidbox received method time_limit") == 1, worker.log


def test_countdowns_are_shared_and_run_once(
    jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    """Twelve tasks for the same moment, and each takes longer than a lease leaves for the last."""
    workers = [start(pool="solo") for _ in range(2)]
    for n in range(12):
        jobs.began.apply_async((n, 1.5), countdown=3.5)
    eventually(lambda: len(set(trail(tmp_path, "ended"))) == 12)
    assert Counter(trail(tmp_path, "began")).most_common(1)[0][1] == 1
    for worker in workers:
        assert worker.log.count("succeeded in") >= 3, "neither had them all"


@pytest.mark.parametrize("late", ["0", "1"])
def test_what_a_busy_worker_fetched_ahead_runs_once(
    late: str,
    jobs: ModuleType,
    start: Callable[..., Worker],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Acked early, its place is free while its task runs; what it fetches then is another's soon."""
    monkeypatch.setenv("PUBSUB_ACKS_LATE", late)
    start(pool="solo")
    jobs.held.delay("first")
    eventually(lambda: trail(tmp_path, "began"))
    jobs.began.delay("next", 0)
    time.sleep(1)
    start(pool="solo")
    eventually(lambda: "next" in trail(tmp_path, "ended"), what="not after the first")
    (tmp_path / "go").touch()
    eventually(lambda: "first" in trail(tmp_path, "ended"))
    jobs.began.delay("last", 0)
    eventually(lambda: "last" in trail(tmp_path, "ended"))
    time.sleep(2)
    assert Counter(trail(tmp_path, "began")) == {"first": 1, "next": 1, "last": 1}
