"""``gwi queues`` and ``gwi delayed`` on the embedded broker."""

from __future__ import annotations

from gwi_celery import audit, broker_for, store_for
from gwi_celery.brokers.base import QueueSpec
from gwi_celery.cli.frame import Exit
from gwi_celery.stores.base import JobRef, JobStatus
from gwi_celery.transport.death import Death


def invoice(gwi_, run: str, **options):
    return gwi_.app.tasks["shop.invoice"].apply_async(
        kwargs={"tenant_id": "acme", "run_id": run}, **options
    )


def test_queues_at_a_glance(gwi_):
    [row] = gwi_.json("queues", "list")
    assert (row["name"], row["ready"], row["dead"]) == ("celery", 0, 0), "nobody has used it yet"
    gwi_.bury(Death("failed"), "no")
    invoice(gwi_, "r2")
    invoice(gwi_, "r3", countdown=1000)
    broker_for(gwi_.app).declare_queue(QueueSpec("reply.celery.pidbox", expires=60))
    [row] = gwi_.json("queues", "list")
    counted = {k: row[k] for k in ("ready", "delayed", "leased", "dead", "paused", "consumers")}
    assert counted == {
        **{"ready": 1, "delayed": 1, "leased": 0, "dead": 1, "paused": False, "consumers": 0}
    }
    assert 0 <= row["oldest"] < 60


def test_a_table_of_queues(gwi_, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    invoice(gwi_, "r1", countdown=1000)
    assert gwi_("queues", "list").splitlines() == [
        "QUEUE   READY  DELAYED  LEASED  OLDEST  CONSUMERS  DEAD  PAUSED",
        "celery      0        1       0      0s          0     0  no    ",
    ]


def test_pause_and_resume(gwi_):
    invoice(gwi_, "r1")
    gwi_("queues", "pause", "celery")
    assert gwi_.json("queues", "list")[0]["paused"] is True
    receiver = broker_for(gwi_.app).receiver()
    assert receiver.poll("celery", 1) == []
    gwi_("queues", "resume", "celery")
    assert len(receiver.poll("celery", 1)) == 1
    assert [a.what for a in audit.entries(gwi_.app)] == ["resume", "pause"]
    gwi_("queues", "pause", "nobody", code=Exit.NOTHING)


def test_what_is_delayed_can_be_had_now_or_cancelled(gwi_):
    first, second, third = (invoice(gwi_, f"r{n}", countdown=1000 * n) for n in (1, 2, 3))
    rows = gwi_.json("delayed", "list")
    assert [row["task_id"] for row in rows] == [first.id, second.id, third.id]
    assert 900 < rows[0]["due_in"] <= 1000
    gwi_("delayed", "now", code=Exit.USAGE)
    gwi_("delayed", "now", "nobody", "--yes", code=Exit.NOTHING)
    assert gwi_.json("delayed", "now", second.id, "--yes") == {"released": 1}
    [delivery] = broker_for(gwi_.app).receiver().poll("celery", 5)
    assert delivery.attributes["task_id"] == second.id
    assert gwi_.json("delayed", "cancel", "--all", "--yes") == {"cancelled": 2}
    assert gwi_.json("delayed", "list") == []
    cancelled = [JobRef("acme", "shop.invoice", f"run:r{n}") for n in (1, 3)]
    records = [store_for(gwi_.app).get_job(job) for job in cancelled]
    assert [record.status for record in records] == [JobStatus.CANCELLED] * 2


def test_exit_codes_and_schemas_are_published(gwi_):
    import json

    published = json.loads(gwi_("schema"))
    assert {"dlq list", "dlq redrive", "queues list", "delayed list"} <= set(published)
    assert json.loads(gwi_("schema", "dlq", "list")) == published["dlq list"]
    gwi_("schema", "nothing", code=Exit.USAGE)
