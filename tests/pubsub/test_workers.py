"""Real workers on the Pub/Sub emulator: what gcpubsub's users lose, kept."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest

from gwi_celery.brokers.base import OutgoingMessage
from gwi_celery.brokers.pubsub.broker import PubSubBroker
from tests import machine, zygote
from tests.contract.brokers import wait_for
from tests.machine import PATIENCE
from tests.pubsub.jobs import trail
from tests.workers import Worker, eventually

pytestmark = [pytest.mark.acceptance, pytest.mark.emulator]


def test_a_producer_that_calls_once_and_exits_has_delivered(
    jobs: ModuleType, connect: Callable[..., PubSubBroker]
) -> None:
    """Many processes, each with one call and a normal exit: all calls arrive."""
    broker = connect()
    broker.declare_queue(_celery())
    number = machine.examples(100)
    for n in range(number):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                jobs.mark.delay(n)
                code = 0
            finally:
                os._exit(code)  # without pytest's own end; nothing of ours is waited for
        assert os.waitpid(pid, 0)[1] == 0
    found = broker.looks.in_turn("celery", 200)
    assert len(found) == number


def test_unconfirmed_calls_are_flushed_at_exit(
    jobs: ModuleType, connect: Callable[..., PubSubBroker], tmp_path: Path
) -> None:
    script = (
        "from tests.pubsub.jobs import app, mark\n"
        "app.conf.broker_transport_options = {'publisher_confirms': False}\n"
        "for n in range(200): mark.delay(n)\n"
    )
    done = zygote.run(script, folder=tmp_path)
    assert done.returncode == 0, done.stdout
    broker = connect(lease_seconds=30)  # as the script's
    broker.declare_queue(_celery())
    assert len(broker.looks.in_turn("celery", 500)) == 200


def test_a_worker_with_one_process_holds_one_message(
    jobs: ModuleType, start: Callable[..., Worker], connect: Callable[..., PubSubBroker], tmp_path
) -> None:
    start()
    jobs.began.delay("long", 30)
    eventually(lambda: trail(tmp_path, "began"))
    for n in range(3):
        jobs.mark.delay(n)
    broker = connect()
    broker.declare_queue(_celery())  # which another connection may not find at once
    found = broker.looks.in_turn("celery", 10)
    assert len(found) == 3, "the rest is left to others"
    assert [d.deliveries for d in found] == [1, 1, 1], "and was never in that worker's hands"


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_task_longer_than_the_lease_is_not_delivered_again(
    pool: str, jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    """Also one that keeps the interpreter busy, under prefork. The lease is 10 s."""
    worker = start(pool=pool)
    (jobs.busy if pool == "prefork" else jobs.began).delay("long", 14)
    eventually(lambda: trail(tmp_path, "ended"))
    jobs.mark.delay("after")
    eventually(lambda: trail(tmp_path, "marks"))
    assert trail(tmp_path, "began") == ["long"]
    assert worker.stop() < 10


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_task_can_see_that_its_message_is_no_longer_its_workers(
    pool: str,
    jobs: ModuleType,
    start: Callable[..., Worker],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PUBSUB_MAX_LEASE", "1")
    worker = start(pool=pool)
    jobs.watchful.delay(30)
    eventually(lambda: trail(tmp_path, "ended"))
    assert trail(tmp_path, "ended")[0] == "True"
    worker.wait_for("its lease is no longer extended")


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_every_pool_works_and_stops_at_once_when_idle(
    pool: str, jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    worker = start(pool=pool)
    for n in range(20):
        jobs.mark.delay(n)
    eventually(lambda: len(trail(tmp_path, "marks")) == 20)
    took = worker.stop()
    assert worker.process.returncode == 0
    assert took < 10, "Cloud Run's patience"
    assert Counter(trail(tmp_path, "marks")).most_common(1)[0][1] == 1


def test_a_busy_worker_that_stops_hands_back_what_it_has_not_started(
    jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUBSUB_LEASE", "600")
    jobs.app.conf.broker_transport_options["lease_seconds"] = 600
    worker = start(concurrency=1, args=("--prefetch-multiplier", "4"))
    jobs.began.delay("first", 3)
    eventually(lambda: trail(tmp_path, "began"))
    for n in range(3):
        jobs.began.delay(n, 0)
    time.sleep(0.5)  # they are in its hands by now, or soon
    worker.stop()
    start()
    eventually(lambda: len(trail(tmp_path, "ended")) == 4, "and not when their leases are over")


@pytest.mark.slow
def test_remote_control_stays_alive(
    jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 pings in a row from short-lived processes, while pool children are replaced."""
    monkeypatch.setenv("PUBSUB_TASKS_PER_CHILD", "1")
    worker = start(concurrency=2)
    # A process and no thread: a thread may hold a lock of Kombu's, which would stay held in a fork.
    loader = os.fork()
    if loader == 0:
        with suppress(BaseException):
            for n in itertools.count():
                jobs.relay.delay(n)
                jobs.audit("sent", n)
                time.sleep(1)  # replacing a child takes Celery half a second
        os._exit(1)
    try:
        answered = [_pings(jobs, worker.name) for _ in range(100)]
    finally:
        os.kill(loader, signal.SIGKILL)
        os.waitpid(loader, 0)
    assert answered == [True] * 100
    sent = set(trail(tmp_path, "sent"))
    eventually(lambda: set(trail(tmp_path, "marks")) >= sent)


@pytest.mark.slow
def test_children_that_are_replaced_can_publish(
    jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 forks of a parent that pulls and extends leases: no child hangs or dies."""
    monkeypatch.setenv("PUBSUB_TASKS_PER_CHILD", "1")
    worker = start(concurrency=2)
    for n in range(100):
        jobs.relay.delay(n)  # and the mark that it publishes: two children for each
    eventually(lambda: len(set(trail(tmp_path, "marks"))) == 100)
    for sign in ("WorkerLostError", "SIGSEGV", "Traceback", "forking with"):
        assert sign not in worker.log
    assert len(trail(tmp_path, "marks")) == 100


def _pings(jobs: ModuleType, name: str) -> bool:
    """Whether a process made for it gets an answer."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with jobs.app.connection() as connection:
                replies = jobs.app.control.ping(timeout=PATIENCE, limit=1, connection=connection)
            code = 0 if [name for reply in replies for name in reply] == [name] else 2
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def _celery():
    from gwi_celery.brokers.base import QueueSpec

    return QueueSpec("celery")


def test_a_worker_learns_of_a_binding_that_another_process_makes(
    connect: Callable[..., PubSubBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gwi_celery.brokers.pubsub.arrivals._REDISCOVER", 0.5)
    worker, other = connect(), connect()
    worker.declare_queue(_celery())
    receiver = worker.receiver()
    receiver.subscribe("celery")
    other.declare_exchange("news", "fanout")
    other.declare_queue(_celery())
    other.bind("celery", "news", "")
    other.publish("news", "", OutgoingMessage(b"late"))
    assert wait_for(receiver, "celery").data == b"late"
