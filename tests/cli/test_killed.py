"""A bulk operation that is killed loses nothing, and doubles nothing when it is begun anew."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, signals

from gwi_celery import ReliableTask, broker_for, jobs, setup
from gwi_celery.brokers.base import REDRIVE, Delivery, QueueSpec
from gwi_celery.cli.frame import Exit
from gwi_celery.stores.base import JobStatus
from gwi_celery.transport.death import Death
from tests import zygote
from tests.cli.conftest import Gwi
from tests.threadworker import worker_in_thread
from tests.workers import eventually

#: What is killed at its third call, of the redrive of one message on Pub/Sub.
_POINTS = {
    "before it is published": ("gwi_celery.brokers.pubsub.dead:DeadLetters", "_put_back"),
    "before its record ends": ("gwi_celery.authority:Authority", "ended"),
    "before its ack": ("gwi_celery.brokers.pubsub.dead:Walk", "done_with"),
}
_APP = """
from celery import Celery
from gwi_celery import ReliableTask, setup

app = Celery("killed", set_as_current=False)
setup(app, **{settings!r})


@app.task(base=ReliableTask, bind=True, name="shop.invoice")
def invoice(self, *, tenant_id, run_id, amount=1):
    return amount
"""
_COUNT = 40


@pytest.fixture
def many(gwi_):
    for n in range(_COUNT):
        gwi_.bury(Death("failed"), "no", run_id=f"r{n}")
    return gwi_


def killed(
    folder: Path,
    when: str,
    *arguments: str,
    of: str = "gwi_celery.brokers.embedded:EmbeddedBroker",
    **settings: str,
) -> str:
    """Run ``celery gwi`` in a process of its own, and kill -9 it at its third call of ``when``;
    what it printed."""
    settings = settings or {"folder": str(folder / "gwi")}
    script = f"""
from types import SimpleNamespace
from gwi_celery.cli import gwi
{killing(of, when, 3)}
gwi({list(arguments)!r}, obj=SimpleNamespace(app=app))
"""
    return run_until_killed(folder, script, settings)


def run_until_killed(folder: Path, script: str, settings: dict[str, Any]) -> str:
    """Run a program with the ``app`` until it kills itself; what it printed."""
    (folder / "killed_app.py").write_text(_APP.format(settings=settings))
    done = zygote.run(f"from killed_app import app\n{script}", folder=folder)
    assert done.returncode == -signal.SIGKILL, done.stdout
    return done.stdout


def killing(of: str, when: str, at: int, since: str = "") -> str:
    """For a program: kill -9 at its call number ``at`` of a function ``when`` of a module or class.

    ``since``: only calls from the first one of that function on count.
    """
    return f"""
import os, signal
from importlib import import_module
module, _, name = {of!r}.partition(":")
of = import_module(module)
of = getattr(of, name) if name else of
calls, counting = 0, {not since}
whole, since = of.{when}, of.{since or when}
def begin(self, *args, **kwargs):
    global counting
    counting = True
    return since(self, *args, **kwargs)
def some(self, *args, **kwargs):
    global calls
    calls += counting
    if calls == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, *args, **kwargs)
of.{since or when} = begin
of.{when} = some
"""


def test_a_replay_of_many_is_begun_anew_where_it_was_cut_short(gwi_, tmp_path):
    app, task = gwi_.app, gwi_.app.tasks["shop.invoice"]
    ids = [task.delay(tenant_id="acme", run_id=f"r{n}").id for n in range(6)]

    def generations() -> list[int]:
        found = [jobs.get(id, app=app) for id in ids]
        ended = [job.record for job in found if job and job.record.status.terminal]
        return [record.generation for record in ended]

    with worker_in_thread(app):
        eventually(lambda: len(generations()) == len(ids))
    call = ("jobs", "replay", "--task", "shop.invoice", "--yes")
    said = killed(tmp_path, "replay", *call, of="gwi_celery.jobs")
    [until] = re.findall(r"--until ([\d.]+)", said)
    broker = broker_for(app)
    assert broker.size("celery").ready == 2
    # What was replayed and has not begun is a duplicate then.
    assert gwi_.json(*call, "--until", until)["replayed"] == 6
    with worker_in_thread(app):
        eventually(lambda: sorted(generations()) == [2] * 6 and broker.size("celery").total == 0)
    gwi_(*call, "--until", until, code=Exit.NOTHING)
    assert generations() == [2] * 6


def runs(gwi_, queue: str) -> Counter[str]:
    return Counter(m.attributes["run"] for m in broker_for(gwi_.app).browse(queue))


def test_a_redrive(many, tmp_path):
    killed(tmp_path, "redrive", "dlq", "redrive", "--all", "--yes", "--rate", "15")
    back, left = runs(many, "celery"), runs(many, "celery.dead")
    assert back, "it was killed in the middle"
    assert left
    assert back + left == Counter(f"r{n}" for n in range(_COUNT))
    many("dlq", "redrive", "--all", "--yes")
    assert runs(many, "celery") == Counter(f"r{n}" for n in range(_COUNT))
    assert not runs(many, "celery.dead")


def test_an_import(many, tmp_path, monkeypatch):
    file = str(tmp_path / "dead.jsonl")
    many("dlq", "export", file)
    lines = Path(file).read_text().splitlines(keepends=True)
    wanted = Counter(f"r{n}" for n in range(_COUNT))
    many("dlq", "purge", "--all", "--yes")
    # More than two batches, of deaths that differ.
    more = [line.replace('"id": "', f'"id": "{n}0000') for n in range(1, 8) for line in lines]
    Path(file).write_text("".join(lines + more))
    killed(tmp_path, "publish_many", "dlq", "import", file)
    assert 0 < len(list(broker_for(many.app).browse("celery.dead"))) < 8 * _COUNT
    many("dlq", "import", file)
    assert runs(many, "celery.dead") == Counter(dict.fromkeys(wanted, 8))


class OnPubSub(Gwi):
    """Six dead letters there, of runs r0 to r5."""

    wanted = frozenset(f"r{n}" for n in range(6))

    def __init__(self, app: Celery, folder: Path, settings: dict[str, Any]) -> None:
        super().__init__(app)
        self._folder, self._settings = folder, settings
        self.broker = broker_for(app)
        self.broker.declare_queue(QueueSpec("celery"))
        for run in self.wanted:
            self.bury(Death("failed"), "no", run_id=run)

    def killed(self, point: tuple[str, str], *arguments: str) -> None:
        of, when = point
        killed(self._folder, when, *arguments, of=of, **self._settings)

    def worker_killed(self, of: str, when: str, since: str) -> None:
        """Run a worker until it is killed at that point."""
        script = killing(of, when, 1, since) + 'app.worker_main(["worker", "--pool", "solo"])'
        run_until_killed(self._folder, script, self._settings)

    def redriven(self) -> list[tuple[str, str]]:
        """(run, submission) of each message, once none is dead any more."""

        def none_is_dead() -> bool:
            if self.json("dlq", "list"):
                self("dlq", "redrive", "--all", "--yes")
            return not self.json("dlq", "list", "--look") and self.is_empty()

        eventually(none_is_dead)
        back: list[Delivery] = []
        receiver = self.broker.receiver()
        eventually(
            lambda: back.extend(receiver.poll("celery", 20)) or len(back) >= len(self.wanted)
        )
        return [(d.attributes["run"], d.attributes[REDRIVE]) for d in back]

    def is_empty(self) -> bool:
        return not list(self.broker.browse("celery.dead"))


@pytest.fixture
def on_pubsub(tmp_path: Path, pubsub_emulator: Any) -> Iterator[OnPubSub]:
    url = f"pubsub://{pubsub_emulator.endpoint}/p-{uuid4().hex[:20]}"
    settings = {"broker_url": url, "store_url": f"embedded://{tmp_path}/gwi", "lease_seconds": 10}
    app = Celery("killed", set_as_current=False)
    setup(app, **settings)

    @app.task(base=ReliableTask, bind=True, name="shop.invoice", shared=False)
    def invoice(self: Any, *, tenant_id: str, run_id: str) -> None: ...

    made = OnPubSub(app, tmp_path, settings)
    yield made
    made.broker.close()
    app.close()


@pytest.mark.slow  # what a killed one holds comes back when its lease of 10 s is over
@pytest.mark.emulator
@pytest.mark.parametrize("point", _POINTS)
def test_a_redrive_on_pubsub(point: str, on_pubsub: OnPubSub) -> None:
    """What is in both places then is one submission: the job of it runs once."""
    on_pubsub.killed(_POINTS[point], "dlq", "redrive", "--all", "--yes")
    left = on_pubsub.json("dlq", "list")
    assert len(left) == (3 if point == "before its ack" else 4)
    back = on_pubsub.redriven()
    assert sorted(run for run, _ in set(back)) == sorted(on_pubsub.wanted)
    assert len(back) == 6 + (point == "before its record ends")


@pytest.mark.emulator
def test_an_import_on_pubsub(on_pubsub: OnPubSub, tmp_path: Path) -> None:
    """What was published twice is one death, and redriven it is one submission."""
    file = str(tmp_path / "dead.jsonl")
    on_pubsub("dlq", "export", file)
    assert on_pubsub.json("dlq", "purge", "--all", "--yes") == {"purged": 6}
    on_pubsub.killed(("gwi_celery.authority:Authority", "died"), "dlq", "import", file)
    assert len(on_pubsub.json("dlq", "list")) == 2, "all are published, and two recorded"
    assert on_pubsub.json("dlq", "import", file) == {"imported": 4}
    assert on_pubsub.json("dlq", "import", file) == {"imported": 0}
    assert len(on_pubsub.json("dlq", "list")) == 6
    back = on_pubsub.redriven()
    assert len(set(back)) == 6
    assert {run for run, _ in back} == on_pubsub.wanted


@pytest.mark.slow  # as the redrive
@pytest.mark.emulator
def test_a_purge_on_pubsub(on_pubsub: OnPubSub) -> None:
    """What it had not taken away yet is known to be done with: a look deletes it, and lists none."""
    on_pubsub.killed(_POINTS["before its ack"], "dlq", "purge", "--all", "--yes")
    assert on_pubsub.json("dlq", "list") == []
    on_pubsub("dlq", "redrive", "--all", "--yes", code=Exit.NOTHING)
    seen: list[Any] = []
    eventually(lambda: seen.extend(on_pubsub.broker.browse("celery.dead")) or seen)
    eventually(lambda: on_pubsub.json("dlq", "list", "--look") == [] and on_pubsub.is_empty())
    assert on_pubsub.broker.receiver().poll("celery", 10) == []


@pytest.mark.slow  # two workers, and what is parked is redelivered when it is due
@pytest.mark.emulator
def test_a_delayed_call_that_is_to_run_now(
    on_pubsub: OnPubSub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the ack of what it had parked: that is a duplicate of the copy once it is due."""
    monkeypatch.setattr("gwi_celery.queues.parked._ACT", 1.0)  # nobody will answer
    app, broker = on_pubsub.app, on_pubsub.broker
    handled: list[tuple[str, str]] = []

    def note(task_id: str, state: str, **_: Any) -> None:
        handled.append((task_id, state))

    with ThreadPoolExecutor(1) as threads:
        point = "gwi_celery.brokers.pubsub.deliveries:Deliveries", "ack", "publish_now"
        worker = threads.submit(on_pubsub.worker_killed, *point)
        eventually(lambda: worker.done() or app.control.ping(timeout=0.5), "it is ready")
        kwargs = {"tenant_id": "acme", "run_id": "late"}
        id = app.tasks["shop.invoice"].apply_async(kwargs=kwargs, countdown=20).id

        def told() -> bool:
            if not worker.done():
                on_pubsub("delayed", "now", id, "--yes", code=Exit.NOTHING)
            return worker.done()

        eventually(told, "its worker is killed")
        worker.result()
    [copy] = eventually(lambda: broker.peek("celery", 5))
    assert copy.attributes["task_id"] == id
    assert b'"eta": null' in copy.data, "it is the copy"
    signals.task_postrun.connect(note)
    try:
        with worker_in_thread(app):
            eventually(lambda: len(handled) == 2, "both messages are handled")
    finally:
        signals.task_postrun.disconnect(note)
    assert handled == [(id, "SUCCESS")] * 2
    record = jobs.get(id, app=app).record
    assert (record.status, record.attempt, record.crashes) == (JobStatus.SUCCEEDED, 1, 0)
    assert broker.peek("celery", 5) == []
