"""The doctor on what stands in for a project: the twin, the emulators."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import grpc
import pytest
from celery import Celery
from click.testing import CliRunner
from google.cloud.firestore_admin_v1 import types

from benchmarks.scale import DELETE, READ, WRITE
from gwi_celery import setup
from gwi_celery.brokers.pubsub.client import Client, pb
from gwi_celery.brokers.pubsub.options import PubSubOptions, parse
from gwi_celery.cli import gwi
from gwi_celery.cli.frame import Exit
from gwi_celery.doctor import Finding, echo, examine, firestore, leftovers, main, pubsub, sandbox
from gwi_celery.doctor.pubsub import Trial
from gwi_celery.gcp import emulators
from gwi_celery.testing.emulators import Emulator
from gwi_celery.testing.twin import Twin, start_twin
from gwi_celery.testing.twin.cloudrun import start_cloud_run
from tests.machine import Stopwatch
from tests.pubsub.features.answering import serving

Code = grpc.StatusCode

ACCOUNT = "pusher@p.example"
#: How the lines of a report begin, in their order.
ORDER = (
    "who asks",
    "permissions on topics",
    "permissions on subscriptions",
    "roles/pubsub.publisher of Pub/Sub's service agent",
    "roles/pubsub.subscriber of Pub/Sub's service agent",
    "leftovers of earlier runs",
    "Firestore",
    "Firestore's edition and mode",
    "Firestore's indexes",
    "Firestore's TTL policies",
    "names with",
    "publishing right after creating",
    "a deleted name is free again",
    "an empty pull is held",
    "messages late by a lease after a pull of 1 s",
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
    "leftovers of earlier runs in Firestore",
    "tokens grow",
    "jobs under one lock",
    "a push through Cloud Run's IAM",
)


@pytest.fixture(scope="module")
def twin() -> Iterator[Twin]:
    with start_twin(pull_hold=8, settle=1, name_rest=1, faults=0) as started:
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


def _of(options: PubSubOptions) -> str:
    return f"pubsub://{options.endpoint}/{options.project}"


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
    twin: Twin, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pubsub, "_PULL_DEADLINES", (1.0, 10.0))
    url = _url(twin.endpoint) + "?emulator=strict"
    with start_cloud_run(
        [sys.executable, "-m", "gwi_celery.doctor.echo"],
        invoker=ACCOUNT,
        certificates=twin.certificates,
    ) as service:
        asked = ["--seconds", "12", "--echo", service.url, "--echo-account", ACCOUNT]
        assert main([url, "--json", *asked]) == 0
    of_store = (
        "Firestore",
        "leftovers of earlier runs in",
        "tokens",
        "jobs under",
        "workers answer",
    )
    found = _complete(json.loads(capsys.readouterr().out), *of_store)
    assert not [line for line in found.values() if line["holds"] is False]
    assert twin.cost()["usd"] < 0.01, "a cent"
    iam = found["a push through Cloud Run's IAM"]
    assert iam["measured"] == iam["twin"] == "let in, signature removed"
    assert iam["change"] == "push_auth=iam"
    assert found["permissions on topics"]["measured"] == "all"
    assert found["a lease of 600 s"]["measured"] == "kept for 30 s"
    assert float(found["a lease of 10 s"]["measured"].split()[2]) >= 9
    assert 7.5 < float(found["an empty pull is held"]["measured"].split()[0]) < 11
    assert found["two ordering keys in one request"]["measured"] == "FAILED_PRECONDITION"
    assert found["the filter of a topic binding"]["measured"] == "hit"
    late = "messages late by a lease after {} was ended by its client"
    assert found[late.format("a pull of 1 s")]["measured"] != "0 of 3"
    assert "priority_levels" in found[late.format("a pull of 1 s")]["change"]
    assert found[late.format("a pull of 10 s")]["measured"] == "0 of 3", "this one holds it for 8 s"
    assert found[late.format("a stream")]["measured"] == "0 of 3"
    assert _left(url) == []


@pytest.mark.slow
@pytest.mark.emulator
def test_on_the_emulators_what_they_ignore_is_told(
    pubsub_emulator: Emulator,
    firestore_emulator: Emulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    billed = _billed(monkeypatch)
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
    prices = {"read": READ, "write": WRITE, "delete": DELETE}
    assert 0.001 < sum(prices[kind] * count for kind, count in billed.items()) < 0.009, billed


def _billed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What a trial's operations on Firestore are, by their price."""
    billed: Counter[str] = Counter()
    original = firestore.Trial.count

    def count(self: firestore.Trial, method: str, request: Any, call: Any) -> Any:
        answer = original(self, method, request, call)
        if method == "Commit":
            billed.update("delete" if write.delete else "write" for write in request.writes)
        elif method == "BatchGetDocuments":
            billed["read"] += len(request.documents)
        else:  # a query is billed for one document at least
            billed["read"] += max(1, sum(each.HasField("document") for each in answer))
        return answer

    monkeypatch.setattr(firestore.Trial, "count", count)
    return billed


def test_what_is_refused_is_told_with_its_reason(twin: Twin) -> None:
    twin.deny("pubsub.topics.create")
    try:
        found: list[Finding] = []
        examine([_url(twin.endpoint) + "?emulator=strict"], 1, found.append)
    finally:
        twin.allow("pubsub.topics.create")
    who, made, others = found
    assert who.what == "who asks"
    assert made.holds is False
    assert "PERMISSION_DENIED: User not authorized" in made.measured
    assert "--role=roles/pubsub.editor" in made.change
    assert (others.what, others.measured) == ("all other checks of Pub/Sub", "not made")


@pytest.mark.parametrize(
    ("broken", "change"),
    [
        ("disabled", "gcloud services enable pubsub.googleapis.com"),
        ("missing", "check GCP_PROJECT_ID, or the project in the broker's URL"),
        ("revoked", "gcloud auth application-default login"),
        ("unreachable", "does not answer"),
    ],
)
def test_what_makes_all_else_fail_is_told_once_and_soon(
    twin: Twin, monkeypatch: pytest.MonkeyPatch, broken: str, change: str
) -> None:
    monkeypatch.setattr(sandbox, "SETTLES", 0.5)
    url = _url("127.0.0.1:9" if broken == "unreachable" else twin.endpoint)
    found: list[Finding] = []
    twin.disable(broken == "disabled")
    twin.without_project(broken == "missing")
    twin.switch(revoked=broken == "revoked")
    try:
        with Stopwatch() as watch:
            examine([url + "?emulator=strict"], 300, found.append)
    finally:
        twin.disable(False)
        twin.without_project(False)
        twin.switch(revoked=False)
    assert watch.seconds < 30
    told = [(finding.what, finding.holds) for finding in found]
    made, others = "making a topic and a subscription", "all other checks of Pub/Sub"
    assert told[:3] == [("who asks", None), (made, False), (others, None)]
    assert change in found[1].change
    unsure = [("topics left behind, perhaps", None)]
    assert told[3:] == (unsure if broken == "unreachable" else [])


@pytest.mark.parametrize(
    ("status", "details", "change"),
    [
        (
            Code.NOT_FOUND,
            "The database (default) does not exist",
            "gcloud firestore databases create",
        ),
        (Code.PERMISSION_DENIED, "This API method requires billing to be enabled.", "link p "),
        (Code.UNAVAILABLE, "failed to connect to all addresses", "check that this machine reaches"),
    ],
)
def test_a_database_that_can_t_be_used_is_told_with_what_mends_it(
    status: grpc.StatusCode, details: str, change: str
) -> None:
    """The error of a commit alone would mean that documents have changed."""
    answers: dict[str, Any] = dict.fromkeys(
        ("GetDatabase", "ListIndexes", "BatchGetDocuments", "Commit", "RunQuery"),
        (status, details),
    )
    found: list[Finding] = []
    with serving(answers) as server:
        url = f"firestore://p?endpoint={server.endpoint}&emulator=true"
        examine([url], 1, found.append)
        assert (server.calls["ListIndexes"], server.calls["Commit"]) == (0, 0)
    told = {finding.what: finding for finding in found if finding.holds is False}
    assert told.keys() == {"Firestore's edition and mode", "the check ended early"}
    assert change in told["Firestore's edition and mode"].change
    assert details in told["the check ended early"].measured
    assert not [finding for finding in found if "left behind" in finding.what]


def test_a_database_in_datastore_mode_is_told() -> None:
    mode = types.Database.DatabaseType.DATASTORE_MODE
    database = types.Database(type_=mode, database_edition="STANDARD", location_id="nam5")
    refused = "The Cloud Firestore API is not available for Firestore in Datastore Mode database"
    answers: dict[str, Any] = {
        "GetDatabase": types.Database.serialize(database),
        "ListIndexes": b"",
        "ListFields": b"",
        **dict.fromkeys(("BatchGetDocuments", "Commit"), (Code.FAILED_PRECONDITION, refused)),
    }
    found: list[Finding] = []
    with serving(answers) as server:
        examine([f"firestore://p?endpoint={server.endpoint}&emulator=true"], 1, found.append)
    told = {finding.what: finding for finding in found if finding.holds is False}
    assert told["Firestore's edition and mode"].measured == "DATASTORE_MODE, STANDARD, in nam5"
    assert "make one in native mode" in told["the check ended early"].measured


def test_a_database_for_each_tenant_is_not_tried(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["firestore://p?database=t-{tenant_hash}"]) == 1
    only, change, end = capsys.readouterr().out.splitlines()
    assert "Firestore: not tried: each tenant has a database, t-{tenant_hash}" in only
    assert change.endswith("'firestore://p?database=NAME'")
    assert end == "nothing was tried"


def test_without_credentials_each_service_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(emulators.PUBSUB_HOST, raising=False)
    monkeypatch.delenv(emulators.FIRESTORE_HOST, raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nowhere.json"))
    found: list[Finding] = []
    examine(["pubsub://p", "firestore://p"], 1, found.append)
    assert [(finding.what, finding.holds) for finding in found] == [
        ("who asks", False),
        ("Firestore", None),
        ("Firestore's edition and mode", False),
        ("all other checks of Pub/Sub", None),
        ("the check ended early", False),
    ]
    assert all("nowhere.json" in finding.measured for finding in found if finding.holds is False)


def test_what_a_killed_run_left_is_deleted_by_a_later_one(twin: Twin) -> None:
    options = parse(_url(twin.endpoint) + "?emulator=strict", {"labels": {"team": "x"}})
    killed, running, later = (Trial(options, 1) for _ in range(3))
    killed._labels[sandbox.SINCE] = str(int(time.time() - leftovers.OLD - 60))
    twin.switch(settle=0)
    try:
        killed.pair("made")
        kept = [running.topic("made"), later.topic("made")]
        found = leftovers.swept(later)
        assert found.measured.startswith(
            "2 topics and subscriptions, deleted now; 1 of a run that began 0 minutes ago"
        )
        assert sorted(_left(_of(options))) == sorted(kept)
        twin.deny("pubsub.topics.list")
        assert "can't be listed (PERMISSION_DENIED" in leftovers.swept(later).measured
    finally:
        twin.allow("pubsub.topics.list")
        twin.switch(settle=1)
        killed.client.close()
        for trial in (running, later):
            trial.clean_up()
    assert _left(_of(options)) == []


def test_what_can_t_be_deleted_is_told_with_the_command(twin: Twin) -> None:
    url = _url(twin.endpoint) + "?emulator=strict"
    found: list[Finding] = []

    def report(finding: Finding) -> None:
        found.append(finding)
        if finding.what == "who asks":
            twin.deny("pubsub.topics.delete")
        if finding.what.startswith("leftovers"):
            raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            examine([url], 1, report)
    finally:
        twin.allow("pubsub.topics.delete")
    [topic] = _left(url)
    [left] = [finding for finding in found if "left behind" in finding.what]
    id = topic.split("/")[3]
    assert (left.what, left.measured) == ("topics left behind", id)
    assert left.change.startswith(f"gcloud pubsub topics delete {id} --project=p-")


def test_a_quota_that_is_used_up_is_waited_for(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_QUOTA_PAUSE", 0.05)
    trial = Trial(parse(_url(twin.endpoint) + "?emulator=strict"), 1)
    trial.topic("first")
    twin.switch(admin_quota=1)
    tried = twin.cost()["rpcs"]["CreateTopic"] + 2
    try:
        with ThreadPoolExecutor(1) as threads:
            making = threads.submit(trial.topic, "second")
            while twin.cost()["rpcs"]["CreateTopic"] < tried:
                assert not making.done()
            twin.switch(admin_quota=0)
            assert making.result(timeout=30).endswith("-second")
    finally:
        twin.switch(admin_quota=0)
        trial.clean_up()
    assert trial.left("topic") == {}


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


def test_signals_end_it_and_it_cleans_up(twin: Twin, capsys: pytest.CaptureFixture[str]) -> None:
    """Soon, although most checks would go on for minutes; also if more of them arrive meanwhile."""
    url = _url(twin.endpoint) + "?emulator=strict"
    ended = threading.Event()

    def stop() -> None:
        while not any("-ones" in path for path in _left(url)):
            ended.wait(0.2)
        while not ended.wait(0.05):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *_: None)
    stopping = threading.Thread(target=stop)
    stopping.start()
    try:
        with Stopwatch() as watch, pytest.raises(SystemExit) as caught:
            main([url, "--json", "--seconds", "300"])
    finally:
        ended.set()
        stopping.join()
        signal.signal(signal.SIGTERM, before)
    assert watch.seconds < 30
    assert caught.value.code == 143
    *_, last = json.loads(capsys.readouterr().out)
    assert (last["what"], last["holds"]) == ("this run", False)
    assert last["measured"] == "stopped by SIGTERM"
    assert _left(url) == []


def test_a_reader_that_goes_away_ends_it_and_it_cleans_up(twin: Twin) -> None:
    url = _url(twin.endpoint) + "?emulator=strict"
    command = [sys.executable, "-m", "gwi_celery.doctor", url, "--seconds", "300"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().lstrip().startswith(b"who asks")
        process.stdout.close()
        told = process.stderr.read()
    assert (process.returncode, told) == (141, b"")
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
