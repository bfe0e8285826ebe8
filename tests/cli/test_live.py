"""Every verb on jobs and locks, ``tail`` and ``workers`` beside a worker: embedded, and in the cloud."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import jsonschema_rs
import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from gwi_celery import ReliableTask, broker_for, jobs, queues, setup
from gwi_celery.brokers.base import QueueSpec
from gwi_celery.cli.frame import SHAPES, Exit
from tests.cli.conftest import Gwi, vanished
from tests.machine import PATIENCE
from tests.threadworker import worker_in_thread
from tests.workers import eventually


class Shop(Gwi):
    """An app whose task does what it is told to, and a worker for it."""

    def __init__(self, app: Celery) -> None:
        super().__init__(app)
        self.release = threading.Event()

        @app.task(shared=False, base=ReliableTask, bind=True, name="shop.audit", max_retries=3)
        def audit(self_: Any, *, tenant_id: str, run_id: str, how: str = "") -> str:
            self_.step("list", lambda: 1)
            if how == "holds":
                assert self.release.wait(PATIENCE)
            if how == "retries":
                raise self_.retry(exc=ValueError("try later"), countdown=1000)
            if how == "fails":
                raise KeyError("sku")
            if how == "calls":
                for n in range(2):
                    audit.delay(tenant_id=tenant_id, run_id=f"{run_id}.{n}")
            return run_id

        @app.task(shared=False, base=ReliableTask, name="shop.invoice")
        def invoice(*, tenant_id: str, run_id: str) -> None: ...

        self.noted: list[str] = []

        @app.task(shared=False, name="shop.note")
        def note(text: str) -> None:
            self.noted.append(text)

    def call(self, run: str, how: str = "", **options: Any) -> str:
        kwargs = {"tenant_id": "acme", "run_id": run, "how": how}
        return str(self.app.tasks["shop.audit"].apply_async(kwargs=kwargs, **options).id)

    def becomes(self, id: str, status: str) -> None:
        def there() -> bool:
            found = jobs.get(id, app=self.app)
            return found is not None and found.record.status.value == status

        eventually(there, what=f"{id} is {status}")

    def explained(self, id: str) -> str:
        return str(self.json("jobs", "explain", id)["explanation"])


@pytest.fixture(scope="module", params=["embedded", "cloud"])
def shop(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Shop]:
    folder: Path = tmp_path_factory.mktemp("shop")
    settings: dict[str, Any] = {"folder": str(folder)}
    if request.param == "cloud":
        emulator = request.getfixturevalue("pubsub_emulator")
        request.getfixturevalue("firestore_emulator")
        project = f"p-{uuid4().hex[:20]}"
        settings["broker_url"] = f"pubsub://{emulator.endpoint}/{project}"
        settings["store_url"] = f"firestore://{project}"
    app = Celery(f"unit-{uuid4().hex}", set_as_current=False)
    setup(app, **settings)
    app.conf.worker_prefetch_multiplier = 1
    shop = Shop(app)
    broker_for(app).declare_queue(QueueSpec("celery"))
    with worker_in_thread(app, pool="threads", concurrency=4, task_events=True):
        yield shop
        shop.release.set()
    broker_for(app).close()
    app.close()


@pytest.mark.emulator
def test_stuck_jobs_are_found_explained_and_mended(shop: Shop) -> None:
    """The page in the night: seven stuck jobs of seven causes, and what is given up."""
    holder = shop.call("r1", "holds")
    shop.becomes(holder, "running")
    invoice = shop.app.tasks["shop.invoice"]
    waits = invoice.delay(tenant_id="acme", run_id="r1").id
    retries, fails = shop.call("r2", "retries"), shop.call("r3", "fails")
    unknown = shop.app.send_task("shop.gone", kwargs={"tenant_id": "acme"}).id
    later = shop.call("r6", countdown=800)
    shop.becomes(waits, "waiting")
    shop.becomes(retries, "pending")
    shop.becomes(fails, "failed")
    eventually(lambda: queues.count(shop.app) == 2, what="two are given up")
    dies = vanished(shop, "r4")

    assert "runs on" in shop.explained(holder)
    assert "waits for the lock run:r1 of acme, held by" in shop.explained(waits)
    sentence = shop.explained(retries)
    assert "ValueError" in sentence
    assert "tried again in" in sentence
    sentence = shop.explained(fails)
    assert "KeyError" in sentence
    assert "dead letter of celery (failed)" in sentence
    assert "dead letter of celery (unregistered)" in shop.explained(unknown)
    assert "dead-host:7 fell silent" in shop.explained(dies)
    shop("jobs", "explain", "nobody", code=Exit.NOTHING)
    assert "no worker has seen it" in shop.err

    def waiting() -> dict[str, float]:
        return {row["task_id"]: row["due_in"] for row in shop.json("delayed", "list")}

    eventually(lambda: later in waiting(), what="a worker has seen what came early")
    assert waiting()[retries] > 900
    assert 0 < waiting()[later] <= 800
    assert "is delayed in queue celery: it is due in" in shop.explained(later)
    [dead] = shop.json("dlq", "list", "--error", "KeyError")
    assert (dead["task_id"], dead["reason"], dead["tenant"]) == (fails, "failed", "acme")
    shown = shop.json("dlq", "show", fails)
    assert (shown["reason"], shown["error"], shown["attempts"]) == ("failed", "KeyError", 1)
    assert 'raise KeyError("sku")' in shown["traceback"]
    fence = shown["fence"]
    shown = shop.json("jobs", "show", fails)
    assert shown["error"].startswith("KeyError")
    assert [a["fence"] for a in shown["attempts"]] == [fence]
    assert [a["how"] for a in shown["attempts"]] == ["failed"]
    assert [s["name"] for s in shown["steps"]] == ["list"]
    assert shown["dead_letters"] == [dead["id"]]
    assert "1.1 failed on" in shop("jobs", "show", fails)
    for wanted in (["--error", "KeyError"], ["--status", "failed"], ["--run", "r3"]):
        assert [row["task_id"] for row in shop.json("jobs", "list", *wanted)] == [fails]
    assert "run/r1" in {row["scope"] for row in shop.json("locks", "list", "--tenant", "acme")}
    assert "run/r1" in {row["scope"] for row in shop.json("locks", "list")}
    eventually(lambda: sum(row["runs"] for row in shop.json("workers")) >= 1)
    [queue] = shop.json("queues", "list")
    assert queue["dead"] == 2
    queues.pause(shop.app, "celery")
    assert "its queue is paused: `gwi queues resume celery`" in shop.explained(waits)
    queues.resume(shop.app, "celery")

    shop("jobs", "cancel", retries, code=Exit.REFUSED)
    assert shop.json("jobs", "cancel", retries, "--yes") == {"cancelled": 1}
    assert "was cancelled" in shop.explained(retries)
    embedded = str(shop.app.conf.broker_url).startswith("embedded:")
    keep = ["--resume"] if embedded else ["--from-step", "list"]
    assert shop.json("jobs", "replay", fails, *keep, "--yes")["replayed"] == 1
    assert shop.json("locks", "release", "acme", "run/r1", "--yes") == {"released": True}
    shop("locks", "release", "acme", "run/r1", "--yes", code=Exit.NOTHING)
    shop("jobs", "cancel", "nobody", "--yes", code=Exit.NOTHING)
    shop("jobs", "cancel", "--yes", code=Exit.USAGE)
    shop("jobs", "show", "nobody", code=Exit.NOTHING)
    forked = shop.json("jobs", "fork", fails, "--run", "r7", "--set", 'how=""')["task_id"]
    shop.becomes(forked, "succeeded")
    for wrong in ("how", f"how={'[' * 100_000}"):
        shop("jobs", "fork", fails, "--run", "r8", "--set", wrong, code=Exit.USAGE)
    assert shop.json("dlq", "redrive", unknown, "--yes") == {"redriven": 1}


@pytest.mark.emulator
def test_a_tree_shows_what_a_job_has_called(shop: Shop) -> None:
    top = shop.call("t", "calls")
    shop.becomes(top, "succeeded")
    eventually(lambda: len(tree(shop, top)) == 3)
    rows = tree(shop, top)
    jsonschema_rs.validate(SHAPES["jobs show --tree"].schema(), rows)
    assert (rows[0]["depth"], rows[0]["run_id"]) == (0, "t")
    assert sorted((row["depth"], row["run_id"]) for row in rows[1:]) == [(1, "t.0"), (1, "t.1")]
    lines = shop("jobs", "show", top, "--tree").splitlines()
    assert lines[1].startswith("shop.audit ")
    assert lines[2].startswith("  shop.audit ")
    shop("jobs", "show", "nobody", "--tree", code=Exit.NOTHING)


def tree(shop: Shop, id: str) -> Any:
    return json.loads(shop("jobs", "show", id, "--tree", "--json"))


@pytest.mark.emulator
def test_tail_shows_what_happens_as_it_happens(shop: Shop) -> None:
    over = threading.Event()

    def work() -> None:
        n = 0
        while not over.wait(0.2):
            shop.call(f"tail{n}")
            n += 1

    busy = threading.Thread(target=work)
    busy.start()
    try:
        lines = shop("tail", "--count", "6").splitlines()
        objects = shop("tail", "--count", "3", "--json").splitlines()
    finally:
        over.set()
        busy.join()
    assert len(lines) == 6
    assert len(objects) == 3
    for line in objects:
        jsonschema_rs.validate(SHAPES["tail"].schema(), json.loads(line))
    kinds = {line.split()[2] for line in lines}
    assert kinds & {"task-received", "task-started", "task-succeeded"}
    assert all(line.split()[1].endswith("Z") for line in lines)


@pytest.mark.emulator
def test_what_is_delayed_can_be_had_now_or_cancelled(shop: Shop) -> None:
    note = shop.app.tasks["shop.note"]
    now, never = shop.call("n1", countdown=800), shop.call("n2", countdown=800)
    holder = shop.call("n3")
    shop.becomes(holder, "succeeded")
    again = shop.call("n3", countdown=800)
    kept, dropped = (note.apply_async([text], countdown=800).id for text in ("now", "never"))
    everything = {now, never, again, kept, dropped}

    def waiting() -> set[str]:
        return {row["task_id"] for row in shop.json("delayed", "list")} & everything

    def settled(verb: str, *ids: str) -> Any:
        """Where the worker didn't answer in time nothing was done."""
        done: list[Any] = []

        def tried() -> bool:
            with contextlib.suppress(AssertionError):
                done.append(shop.json("delayed", verb, *ids, "--yes"))
            return bool(done)

        eventually(tried, what=f"its worker did: delayed {verb}")
        return done[0]

    eventually(lambda: waiting() == everything, what="all are known to wait")
    assert settled("now", now, kept) == {"released": 2}
    shop.becomes(now, "succeeded")
    eventually(lambda: shop.noted == ["now"])
    assert settled("cancel", never, again, dropped) == {"cancelled": 3}
    eventually(lambda: not waiting())
    with pytest.raises(TaskRevokedError):
        AsyncResult(never, app=shop.app).get(timeout=PATIENCE)
    ended = jobs.get(jobs.JobRef("acme", "shop.audit", "run:n2"), app=shop.app)
    assert ended.record.status.value == "cancelled", "so no copy of it will ever begin"
    assert jobs.get(holder, app=shop.app).record.status.value == "succeeded"
    assert shop.noted == ["now"]
