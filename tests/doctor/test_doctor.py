"""The doctor on what stands in for a project: the twin, the emulators."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from click.testing import CliRunner

from gwi_celery import setup
from gwi_celery.brokers.pubsub.client import Client, pb
from gwi_celery.brokers.pubsub.options import parse
from gwi_celery.cli import gwi
from gwi_celery.doctor import Finding, examine, main
from gwi_celery.doctor.pubsub import Trial
from gwi_celery.testing.emulators import Emulator
from gwi_celery.testing.twin import Twin, start_twin
from gwi_celery.testing.twin.cloudrun import start_cloud_run

ACCOUNT = "pusher@p.example"


@pytest.fixture(scope="module")
def twin() -> Iterator[Twin]:
    with start_twin(pull_hold=4, settle=1, name_rest=1, faults=0) as started:
        yield started


def _url(endpoint: str) -> str:
    return f"pubsub://{endpoint}/p-{uuid4().hex[:20]}"


def _left(url: str) -> list[str]:
    options = parse(url)
    client = Client(options)
    project = f"projects/{options.project}"
    found = client.call("ListTopics", pb["ListTopicsRequest"](project=project), project).topics
    listed = pb["ListSubscriptionsRequest"](project=project)
    found = [*found, *client.call("ListSubscriptions", listed, project).subscriptions]
    client.close()
    return [each.name for each in found]


@pytest.mark.slow
def test_on_the_twin_all_holds_and_nothing_is_left(
    twin: Twin, capsys: pytest.CaptureFixture[str]
) -> None:
    url = _url(twin.endpoint) + "?emulator=strict"
    with start_cloud_run(
        [sys.executable, "-m", "gwi_celery.doctor.echo"],
        invoker=ACCOUNT,
        certificates=twin.certificates,
    ) as service:
        asked = ["--seconds", "8", "--echo", service.url, "--echo-account", ACCOUNT]
        assert main([url, "--json", *asked]) == 0
    found = {line["what"]: line for line in json.loads(capsys.readouterr().out)}
    assert not [line for line in found.values() if line["holds"] is False]
    untold = [w for w, line in found.items() if not (line["expected"] and line["twin"])]
    assert untold == ["who asks"], "documented, the twin's and measured, each"
    assert all(line["measured"] for line in found.values())
    iam = found["a push through Cloud Run's IAM"]
    assert iam["measured"] == iam["twin"] == "let in, signature removed"
    assert iam["change"] == "push_auth=iam"
    assert found["permissions on topics"]["measured"] == "all"
    assert found["a lease of 600 s"]["measured"] == "kept for 30 s"
    assert float(found["a lease of 10 s"]["measured"].split()[2]) >= 9
    assert 3.5 < float(found["an empty pull is held"]["measured"].split()[0]) < 7
    assert found["two ordering keys in one request"]["measured"] == "FAILED_PRECONDITION"
    assert found["the filter of a topic binding"]["measured"] == "hit"
    late = "messages late by a lease after {} was ended by its client"
    assert found[late.format("a pull of 1 s")]["measured"] != "0 of 3"
    assert "priority_levels" in found[late.format("a pull of 1 s")]["change"]
    assert found[late.format("a pull of 5 s")]["measured"] == "0 of 3", "this one holds it for 4 s"
    assert found[late.format("a stream")]["measured"] == "0 of 3"
    assert _left(url) == []


@pytest.mark.slow
@pytest.mark.emulator
def test_on_the_emulator_what_it_ignores_is_told(pubsub_emulator: Emulator, tmp_path: Path) -> None:
    url = _url(pubsub_emulator.endpoint)
    app = Celery("shop", broker=url, set_as_current=False)
    setup(app, folder=str(tmp_path))
    asked = ["doctor", "--live", "--json", "--seconds", "8"]
    done = CliRunner().invoke(gwi, asked, obj=SimpleNamespace(app=app))
    app.close()
    assert done.exit_code == 0, done.output
    found = {row["what"]: Finding(**row) for row in json.loads(done.stdout)}
    assert found["workers answer to a ping"].measured == "0 of them"
    assert not [str(finding) for finding in found.values() if finding.holds is False]
    assert found["the filter of a direct binding"].measured == "hit, miss"
    assert "billed" in found["the filter of a direct binding"].change
    assert found["permissions on topics"].measured == "an emulator: there is no IAM to ask"
    assert not [name for name in _left(url) if "gwi-doctor" in name]


def test_what_is_refused_is_told_with_its_reason(twin: Twin) -> None:
    twin.deny("pubsub.topics.create")
    try:
        found: list[Finding] = []
        examine([_url(twin.endpoint) + "?emulator=strict"], 1, found.append)
    finally:
        twin.allow("pubsub.topics.create")
    assert found[0].what == "who asks"
    assert all(finding.holds is False for finding in found[1:])
    assert "PERMISSION_DENIED: User not authorized" in str(found[1])


def test_where_nothing_arrives_that_is_told_and_nothing_is_acked(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trial, "look", lambda *args: [])
    called: list[str] = []
    original = Trial.rpc

    def rpc(self: Trial, rpc: str, *args: Any, **fields: Any) -> Any:
        called.append(rpc)
        return original(self, rpc, *args, **fields)

    monkeypatch.setattr(Trial, "rpc", rpc)
    # Waits for a dead letter for 20 seconds more than that.
    trial = Trial(parse(_url(twin.endpoint) + "?emulator=strict"), -19.9)
    try:
        for check in (trial._late_acks, partial(trial._lease, 10), trial._dead_letter):
            [finding] = check()
            assert finding.holds is False
            assert finding.measured.startswith("nothing arrived"), finding
            assert finding.change == "run it again"
    finally:
        trial.clean_up()
    assert "CreateSubscription" in called
    assert "Acknowledge" not in called


def test_another_url_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["redis://localhost"]) == 2
    assert "write pubsub://my-project" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["firestore://p", "--seconds", "0"])
    assert "write a number from 1 to 3600" in capsys.readouterr().err
