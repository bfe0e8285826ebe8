"""``gwi`` where the broker is Pub/Sub: dead letters are found by their records in the store."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from celery import Celery

from gwi_celery import ReliableTask, audit, broker_for, queues, setup
from gwi_celery.brokers.base import (
    DEATH_ID,
    DEATH_TIME,
    OutgoingMessage,
    QueueSpec,
    dead_letter_queue,
)
from gwi_celery.cli.frame import Exit
from gwi_celery.errors import StoreUnavailable
from gwi_celery.expiry import announce_expiring, archive_expiring
from gwi_celery.integration import integration, settings_for, store_for
from gwi_celery.stores.base import JobStatus, Origin, Wait
from gwi_celery.stores.queues import LetterFilter
from gwi_celery.transport.death import Death
from tests.cli.conftest import FAILED, Gwi, exported_and_imported
from tests.machine import PATIENCE


def app_on(broker_url: str, store_url: str, **settings: object) -> Celery:
    app = Celery(f"unit-{uuid4().hex}", set_as_current=False)
    app.conf.result_backend = "disabled://" if "{" in store_url else None
    setup(app, broker_url=broker_url, store_url=store_url, **settings)

    @app.task(shared=False, base=ReliableTask, bind=True, name="shop.invoice")
    def invoice(self, *, tenant_id: str, run_id: str) -> None: ...

    broker_for(app).declare_queue(QueueSpec("celery"))
    return app


@pytest.fixture(params=["sqlite", "firestore"])
def gwi_(request: pytest.FixtureRequest, tmp_path: Path, pubsub_emulator) -> Iterator[Gwi]:
    store = f"embedded://{tmp_path}/gwi"
    if request.param == "firestore":
        store = f"firestore://p-{uuid4().hex[:20]}"
        request.getfixturevalue("firestore_emulator")
    app = app_on(f"pubsub://{pubsub_emulator.endpoint}/p-{uuid4().hex[:20]}", store)
    yield Gwi(app)
    broker_for(app).close()
    app.close()


def runs(gwi_: Gwi, *arguments: str) -> list[tuple[str, str]]:
    return [(row["tenant"], row["run_id"]) for row in gwi_.json("dlq", "list", *arguments)]


@pytest.mark.emulator
def test_each_filter_finds_its_own_without_a_look(three: Gwi, monkeypatch) -> None:
    monkeypatch.setattr(broker_for(three.app), "looks", None)
    assert runs(three) == [("bolt", "r1"), ("acme", "r2"), ("acme", "r1")], "the latest first"
    assert runs(three, "--reason", "deadline") == [("acme", "r2")]
    assert runs(three, "--tenant", "bolt") == [("bolt", "r1")]
    assert runs(three, "--error", "NoMoney") == [("acme", "r1")]
    assert runs(three, "--error", "shop.errors.NoMoney") == [("acme", "r1")]
    assert runs(three, "--error", "other.NoMoney") == []
    assert runs(three, "--text", "20 times") == [("bolt", "r1")]
    assert runs(three, "--task", "shop.other") == []
    assert runs(three, "--older-than", "1h") == []
    assert len(runs(three, "--within", "1h", "-Q", "celery")) == 3
    assert runs(three, "-Q", "other") == []
    [row] = three.json("dlq", "list", "--reason", "failed")
    shown = three.json("dlq", "show", row["id"])
    assert (shown["text"], shown["error"], shown["traceback"]) == ("NoMoney: no", *_of(FAILED))
    assert (shown["attempts"], shown["deliveries"], shown["size"]) == (1, 1, None)
    assert ":" in shown["worker"]
    assert shown["expires_at"] > shown["died_at"] > shown["published_at"]
    assert three.json("dlq", "show", row["task_id"]) == shown, "by its task's id as well"


def _of(death: Death) -> tuple[str, str]:
    return death.error, death.traceback


@pytest.mark.emulator
def test_what_is_chosen_goes_with_its_record(three: Gwi) -> None:
    [row] = three.json("dlq", "list", "--reason", "failed")
    message = three("dlq", "show", row["id"], "--message")
    assert json.loads(message)["headers"]["task"] == "shop.invoice"
    shown = three.json("dlq", "show", row["id"], "--message")
    assert base64.b64decode(shown["message"]).decode() == message.rstrip("\n")
    assert three.json("dlq", "redrive", "--reason", "deadline", "--yes") == {"redriven": 1}
    assert "1 of 3 dead letters match" in three.err
    [back] = broker_for(three.app).receiver().poll("celery", 5)
    assert back.attributes["run"] == "r2"
    assert runs(three) == [("bolt", "r1"), ("acme", "r1")]
    assert three.json("dlq", "purge", "--error", "NoMoney", "--yes") == {"purged": 1}
    assert runs(three) == [("bolt", "r1")]
    assert runs(three, "--look") == [("bolt", "r1")]
    assert [a.what for a in audit.entries(three.app)] == ["purge", "redrive"]
    three("dlq", "redrive", "--all", "--rate", "0", "--yes", code=Exit.USAGE)


@pytest.mark.emulator
def test_what_has_no_record_gets_one_from_whoever_meets_it(gwi_: Gwi, monkeypatch) -> None:
    """Pub/Sub forwarded it; or the store was unavailable when it died."""

    def unavailable(*args: object) -> None:
        raise StoreUnavailable("it is down")

    records = integration(gwi_.app).store.queues
    with monkeypatch.context() as patch:
        patch.setattr(type(records), "keep", unavailable)
        gwi_.bury(FAILED, "NoMoney: no")
    dead = dead_letter_queue("celery")
    forwarded = {"CloudPubSubDeadLetterSourceDeliveryCount": "100", DEATH_TIME: "soon"}
    forwarded[DEATH_ID] = "a/../b"  # a publisher may have set anything
    broker_for(gwi_.app).publish("", dead, OutgoingMessage(b"{}", forwarded))
    assert gwi_.json("dlq", "list") == []
    met = gwi_.json("dlq", "list", "--look")
    assert sorted(row["reason"] for row in met) == ["deliveries", "failed"]
    assert {row["id"] for row in gwi_.json("dlq", "list")} == {row["id"] for row in met}
    assert gwi_.json("dlq", "redrive", *(row["id"] for row in met), "--yes") == {"redriven": 2}
    assert gwi_.json("dlq", "list", "--look") == []


@pytest.mark.emulator
def test_what_was_left_behind_by_a_crash_is_not_redriven_twice(three: Gwi) -> None:
    """Its record had ended, and its ack was lost."""
    [row] = three.json("dlq", "list", "--reason", "failed")
    records = integration(three.app).store.queues
    records.end([row["id"]])
    assert ("acme", "r1") not in runs(three)
    assert ("acme", "r1") not in runs(three, "--look")
    assert records.known([row["id"]]) == {row["id"]: False}
    broker = broker_for(three.app)
    broker.flush()
    left = {message.message_id for message in broker.browse(dead_letter_queue("celery"))}
    assert left == {each["id"] for each in three.json("dlq", "list")}


@pytest.mark.emulator
def test_a_purge_by_any_other_client_ends_the_records_too(three: Gwi) -> None:
    assert broker_for(three.app).purge(dead_letter_queue("celery")) == 3
    assert three.json("dlq", "list") == []


@pytest.mark.emulator
def test_what_is_exported_can_be_imported_again_and_again(three: Gwi, tmp_path: Path) -> None:
    exported_and_imported(three, tmp_path)
    assert three.json("dlq", "list", "--look") == []
    assert queues.count(three.app) == 0
    assert integration(three.app).store.queues.count(LetterFilter()) == 0


@pytest.mark.emulator
def test_a_line_that_is_too_large_for_pubsub_is_named_and_the_others_are_imported_once(
    three: Gwi, tmp_path: Path
) -> None:
    """It was exported from another broker, say."""
    file = tmp_path / "dead.jsonl"
    three("dlq", "export", str(file))
    three("dlq", "purge", "--all", "--yes")
    first, *others = file.read_text().splitlines()
    data = base64.b64encode(bytes(10_000_001)).decode()
    large = json.dumps({**json.loads(first), "data": data, "id": "1"})
    file.write_text("\n".join([first, large, *others]))
    for imported in (3, 0):
        three("dlq", "import", str(file), code=Exit.USAGE)
        assert f"{file}: line 2 can't be imported: the message" in three.err
        assert "over Pub/Sub's limit of 10000000" in three.err
        assert f"{imported} other lines were imported, and are left out next time" in three.err
        assert len(runs(three)) == len(runs(three, "--look")) == 3
    file.write_text("\n".join([first, *others]))
    assert three.json("dlq", "import", str(file)) == {"imported": 0}


@pytest.mark.emulator
def test_what_will_expire_is_announced_and_archived_by_its_records(
    three: Gwi, tmp_path: Path, monkeypatch, caplog
) -> None:
    announce_expiring(three.app)
    assert not caplog.records
    for name in ("ANNOUNCED", "ARCHIVED"):  # the emulator keeps them for a week
        monkeypatch.setattr(f"gwi_celery.expiry.{name}", 8 * 86_400.0)
    announce_expiring(three.app)
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("3 dead letters of queue 'celery' are dropped within 8 days")
    setup(three.app, **_settings(three.app), dead_letter_archive=str(tmp_path / "archive"))
    assert archive_expiring(three.app) == 3
    [file] = (tmp_path / "archive").rglob("*.jsonl")
    assert three.json("dlq", "list", "--look") == []
    assert three.json("dlq", "import", str(file)) == {"imported": 3}
    assert len(runs(three)) == 3


def _settings(app: Celery) -> dict[str, str]:
    return {"broker_url": app.conf.broker_url, "store_url": settings_for(app).effective_store_url}


@pytest.mark.emulator
def test_a_paused_queue_is_left_alone_until_it_is_resumed(gwi_: Gwi) -> None:
    app, got = gwi_.app, []
    gwi_("queues", "pause", "celery")
    [row] = gwi_.json("queues", "list")
    assert (row["name"], row["ready"], row["consumers"], row["paused"]) == (
        *("celery", None, None, True),
    )
    gwi_("queues", "pause", "nobody", code=Exit.NOTHING)
    pauses = integration(app).authority.pauses
    assert pauses.refresh(), "as a worker does at its start, and then now and then"
    app.tasks["shop.invoice"].apply_async(kwargs={"tenant_id": "acme", "run_id": "r1"})
    with app.connection_for_read() as connection, connection.channel() as channel:
        consumer = app.amqp.TaskConsumer(channel)
        consumer.on_message = got.append
        consumer.qos(prefetch_count=1)
        consumer.consume()
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=1)
        gwi_("queues", "resume", "celery")
        assert pauses.refresh()
        connection.drain_events(timeout=PATIENCE)
        gwi_("queues", "pause", "celery")
        pauses.refresh()
        app.tasks["shop.invoice"].apply_async(kwargs={"tenant_id": "acme", "run_id": "r2"})
        got[0].ack()
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=1)
    assert [message.headers["task"] for message in got] == ["shop.invoice"]
    assert [a.what for a in audit.entries(app)] == ["pause", "resume", "pause"]


@pytest.mark.emulator
def test_without_a_place_for_records_the_dead_letters_are_looked_through(
    pubsub_emulator, firestore_emulator
) -> None:
    """A database for each tenant has none for what is of all."""
    url = f"pubsub://{pubsub_emulator.endpoint}/p-{uuid4().hex[:20]}"
    store = f"firestore://p-{uuid4().hex[:20]}?database=t-{{tenant_hash}}"
    app = app_on(url, store, signing_keys={"k1": "s" * 32})
    gwi_ = Gwi(app)
    gwi_.bury(FAILED, "NoMoney: no", run_id="r1")
    assert runs(gwi_) == [("acme", "r1")]
    [row] = gwi_.json("queues", "list")
    assert (row["dead"], row["paused"]) == (None, False)
    gwi_("queues", "pause", "celery", code=Exit.USAGE)
    assert "cancel_consumer celery" in gwi_.err
    assert not integration(app).authority.pauses.refresh()
    announce_expiring(app)
    assert gwi_.json("dlq", "redrive", "--reason", "failed", "--yes") == {"redriven": 1}
    assert runs(gwi_) == []
    broker_for(app).close()
    app.close()


@pytest.mark.emulator
def test_a_queue_that_is_pushed_can_t_be_paused(gwi_: Gwi) -> None:
    broker_for(gwi_.app).push_to("celery", "http://127.0.0.1:9/push")
    gwi_("queues", "pause", "celery", code=Exit.USAGE)
    assert "gwi push-to '' -Q celery" in gwi_.err


@pytest.mark.emulator
def test_what_waits_is_listed_by_its_record_and_cancelled_by_it(gwi_: Gwi, monkeypatch) -> None:
    """Where no worker that runs has its message parked."""
    monkeypatch.setattr("gwi_celery.queues.held._ANSWER", 0.1)
    monkeypatch.setattr("gwi_celery.queues.parked._ANSWERS", (0.1,))
    app, store = gwi_.app, store_for(gwi_.app)
    task = app.tasks["shop.invoice"]
    kwargs = {"tenant_id": "acme", "run_id": "r1"}
    headers, call = task.addressed((), kwargs, {}, "id1")
    claim = task.claim_request(call, headers, "id1", 1, redelivered=False)
    claim = replace(claim, origin=Origin(task_id="id1", queue="celery"))
    store.wait(claim, Wait("retry", "ValueError: no", until=4e9))
    [row] = gwi_.json("delayed", "list")
    assert (row["task_id"], row["queue"], row["run_id"], row["due"]) == ("id1", "celery", "r1", 4e9)
    assert gwi_.json("delayed", "list", "-Q", "other") == []
    gwi_("delayed", "now", "id1", "--yes", code=Exit.NOTHING)
    assert "no worker answered" in gwi_.err
    assert "gwi jobs cancel" in gwi_.err
    app.conf.worker_enable_remote_control = False
    gwi_("delayed", "now", "id1", "--yes", code=Exit.USAGE)
    assert "no remote control" in gwi_.err
    app.conf.worker_enable_remote_control = True
    assert gwi_.json("delayed", "cancel", "id1", "--yes") == {"cancelled": 1}
    assert "0 workers answered: 1 of 1 done" in gwi_.err
    assert gwi_.json("delayed", "list") == []
    assert store.get_job(call.job).status is JobStatus.CANCELLED
