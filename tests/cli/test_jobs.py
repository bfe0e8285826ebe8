"""``gwi jobs`` without a worker; test_live has one."""

from __future__ import annotations

from typing import Any

from gwi_celery import broker_for
from gwi_celery.cli.frame import Exit
from tests.cli.conftest import vanished


def test_a_message_in_a_paused_queue_is_explained(gwi_):
    paused = gwi_.app.tasks["shop.invoice"].apply_async(
        kwargs={"tenant_id": "acme", "run_id": "r6"}, queue="slow"
    )
    gwi_("queues", "pause", "slow")
    sentence = gwi_.json("jobs", "explain", paused.id)["explanation"]
    assert "queue slow, which is paused: `gwi queues resume slow`" in sentence


def test_a_table_of_jobs(gwi_, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    id = vanished(gwi_, "r1")
    assert gwi_("jobs", "list", "--status", "running").splitlines() == [
        "STATUS   TASK        TENANT  RUN  AGE  ID   ",
        f"running  shop.audit  acme    r1    0s  {id}",
    ]


def test_config_doctor_and_cleanup(gwi_, monkeypatch):
    monkeypatch.setenv("GWI_SERVICE_TOKEN", "")
    monkeypatch.setenv("GWI_FOLDER", "another")
    gwi_.app.config_from_object({"GWI_LOCK_TTL": 12})
    rows = {row["name"]: row for row in gwi_.json("config")}
    assert rows["folder"]["source"] == "setup()"
    assert (rows["lock_ttl"]["value"], rows["lock_ttl"]["source"]) == (
        "12.0",
        "app.conf.gwi_lock_ttl",
    )
    assert rows["broker"]["value"].startswith("embedded://")
    assert {row["name"] for row in gwi_.json("config", "--all")} > set(rows)
    assert gwi_.json("cleanup") == {"deleted": 0}
    problems = {r["what"]: r for r in _doctor(gwi_, Exit.PROBLEMS) if not r["holds"]}
    assert problems["queues"]["change"] == "celery -A APP gwi init"
    gwi_("init")
    assert all(row["holds"] for row in _doctor(gwi_, Exit.OK))
    gwi_("queues", "pause", "celery")
    problems = {r["what"]: r for r in _doctor(gwi_, Exit.PROBLEMS) if not r["holds"]}
    assert problems["queues"]["change"] == "celery -A APP gwi queues resume celery"
    assert broker_for(gwi_.app).state("celery").paused


def _doctor(gwi_, code: Exit) -> Any:
    import json

    return json.loads(gwi_("doctor", "--json", code=code))
