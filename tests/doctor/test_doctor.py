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
from gwi_celery.cli.frame import Exit
from gwi_celery.doctor import Finding, echo, examine, main
from gwi_celery.doctor.pubsub import Trial
from gwi_celery.testing.emulators import Emulator
from gwi_celery.testing.twin import Twin, start_twin
from gwi_celery.testing.twin.cloudrun import start_cloud_run
from tests.machine import Stopwatch

ACCOUNT = "pusher@p.example"
#: How the lines of a report begin, in their order.
ORDER = (
    "who asks",
    "permissions on topics",
    "permissions on subscriptions",
    "roles/pubsub.publisher of Pub/Sub's service agent",
    "roles/pubsub.subscriber of Pub/Sub's service agent",
    "Firestore",
    "Firestore's edition and mode",
    "Firestore's indexes",
    "Firestore's TTL policies",
    "names with",
    "publishing right after creating",
    "a deleted name is free again",
    "an empty pull is held",
    "messages late by a lease after a pull of 1 s",
    "messages late by a lease after a pull of 5 s",
    "messages late by a lease after a stream",
    "immediate pulls of one from a backlog",
    "a lease of 10 s",
    "a lease of 30 s",
    "a lease of 600 s",
    "the dead letter after 5 deliveries",
    "the filter of a direct binding",
    "two ordering keys in one request",
    "exactly_once: an ack after the lease",
    "an idle stream with heartbeats",
    "workers answer to a ping",
    "tokens grow",
    "jobs under one lock",
    "a push through Cloud Run's IAM",
)


@pytest.fixture(scope="module")
def twin() -> Iterator[Twin]:
    with start_twin(pull_hold=4, settle=1, name_rest=1, faults=0) as started:
        yield started


def _url(endpoint: str) -> str:
    return f"pubsub://{endpoint}/p-{uuid4().hex[:20]}"


def _complete(found: list[dict[str, Any]], *left_out: str) -> dict[str, dict[str, Any]]:
    """The report's lines by what they are about: in their order, and each with all three values."""
    assert [
        line for line in found if not (line["expected"] and line["twin"] and line["measured"])
    ] == []
    whats = [line["what"] for line in found]
    assert len(set(whats)) == len(whats)
    wanted = [each for each in ORDER if not each.startswith(left_out)]
    places = [next(n for n, what in enumerate(whats) if what.startswith(each)) for each in wanted]
    assert places == sorted(places), whats
    return {line["what"]: line for line in found}


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
    of_store = ("Firestore", "tokens", "jobs under", "workers answer")
    found = _complete(json.loads(capsys.readouterr().out), *of_store)
    assert not [line for line in found.values() if line["holds"] is False]
    assert twin.cost()["usd"] < 0.01, "a cent"
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
def test_on_the_emulators_what_they_ignore_is_told(
    pubsub_emulator: Emulator, firestore_emulator: Emulator, tmp_path: Path
) -> None:
    url = _url(pubsub_emulator.endpoint)
    app = Celery("shop", broker=url, set_as_current=False)
    setup(app, folder=str(tmp_path), store_url=f"firestore://p-{uuid4().hex[:20]}")
    asked = ["doctor", "--live", "--json", "--seconds", "8"]
    done = CliRunner().invoke(gwi, asked, obj=SimpleNamespace(app=app))
    app.close()
    assert done.exit_code == 0, done.output
    told = _complete(json.loads(done.stdout), "a push through")
    found = {what: Finding(**row) for what, row in told.items()}
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


def test_the_apps_own_options_count(
    twin: Twin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nowhere.json"))
    app = Celery("shop", broker=_url(twin.endpoint), set_as_current=False)
    app.conf.broker_transport_options = {"emulator": False, "timeout": 1}
    setup(app, folder=str(tmp_path))
    asked = ["doctor", "--live", "--json", "--seconds", "1"]
    done = CliRunner().invoke(gwi, asked, obj=SimpleNamespace(app=app))
    app.close()
    assert done.exit_code == Exit.PROBLEMS, done.output
    told = {row["what"]: Finding(**row) for row in json.loads(done.stdout)}
    assert told["who asks"].holds is False
    assert "nowhere.json" in told["who asks"].measured


def test_what_is_interrupted_ends_soon_and_leaves_nothing(twin: Twin) -> None:
    """By Ctrl-C, for one: most checks would go on for minutes."""
    url = _url(twin.endpoint) + "?emulator=strict"

    def report(finding: Finding) -> None:
        if finding.what.startswith("names with"):
            raise KeyboardInterrupt

    with Stopwatch() as watch, pytest.raises(KeyboardInterrupt):
        examine([url], 300, report)
    assert watch.seconds < 30
    assert _left(url) == []


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
        pushed = partial(echo.behind_iam, trial, "https://echo.example", ACCOUNT, 1.0)
        for check in (trial._late_acks, partial(trial._lease, 10), trial._dead_letter, pushed):
            [finding] = check()
            assert finding.holds is False
            assert finding.measured.startswith("nothing arrived"), finding
            assert finding.change == "run it again"
    finally:
        trial.clean_up()
    assert "CreateSubscription" in called
    assert "Acknowledge" not in called


def test_a_service_that_acks_whatever_it_gets_is_not_the_echo(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(echo, "_acked", lambda *args: True)
    unused: Any = None
    [finding] = echo.behind_iam(unused, "https://echo.example", ACCOUNT, 1.0)
    assert finding.holds is False
    assert "so it is not the echo service" in finding.measured
    assert "push_auth" not in finding.change


def test_another_url_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["redis://localhost"]) == 2
    assert "write pubsub://my-project" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["firestore://p", "--seconds", "0"])
    assert "write a number from 1 to 3600" in capsys.readouterr().err
