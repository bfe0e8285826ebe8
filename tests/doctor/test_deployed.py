"""``gwi doctor`` asks for what ``gwi_celery.deployment`` lists: on the twins, which can tell."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner
from google.cloud.firestore_admin_v1 import types

from gwi_celery import broker_for, deployment, setup
from gwi_celery.brokers.base import QueueSpec
from gwi_celery.brokers.pubsub.client import Client, pb
from gwi_celery.brokers.pubsub.options import parse
from gwi_celery.cli import gwi
from gwi_celery.doctor import Finding, deployed
from gwi_celery.firestore import indexes
from gwi_celery.firestore.url import parse as parse_store
from gwi_celery.testing.emulators import FIRESTORE_HOST, Emulator
from gwi_celery.testing.twin import FirestoreTwin, Twin, start_firestore_twin, start_twin


@pytest.fixture(scope="module")
def twin() -> Iterator[Twin]:
    with start_twin(faults=0, settle=0, early_expiry=0) as started:
        yield started


@pytest.fixture
def app(twin: Twin, tmp_path: Path) -> Iterator[Celery]:
    twin.reset()
    made = Celery("shop", set_as_current=False)
    project = f"p-{uuid.uuid4().hex[:20]}"
    setup(
        made,
        folder=str(tmp_path),
        broker_url=f"pubsub://{twin.endpoint}/{project}?emulator=strict",
        store_url=f"embedded://{tmp_path}",
    )
    broker_for(made).declare_queue(QueueSpec("celery"))
    yield made
    made.close()


def needs(app: Celery) -> dict[str, Finding]:
    plan = deployment.plan(parse(app.conf.broker_url), [QueueSpec("celery")], None)
    return {finding.what: finding for finding in deployed.needs(plan)}


def test_managed_mode_makes_what_the_list_has(app: Celery) -> None:
    found = needs(app)
    assert not [str(each) for each in found.values() if not each.holds]
    on = {"topic", "dead topic", "subscription", "dead subscription"}
    wanted = {(g.role, g.who) for g in deployment.GRANTS if g.on in on and g.who != "caller"}
    assert {tuple(what.split()[0:4:3]) for what in found if "of the" in what} == wanted


def test_each_thing_that_is_missing_is_told_with_its_command(app: Celery, twin: Twin) -> None:
    options = parse(app.conf.broker_url)
    client = Client(options)
    path = f"projects/{options.project}/subscriptions/gwi-celery"
    client.call("DeleteSubscription", pb["DeleteSubscriptionRequest"](subscription=path), path)
    client.close()
    twin.deny("pubsub.topics.publish", f"projects/{options.project}/topics/gwi-celery")
    dead = f"projects/{options.project}/topics/gwi-celery.dead"
    twin.deny("pubsub.topics.publish", dead, who="agent")
    found = {what: finding for what, finding in needs(app).items() if not finding.holds}
    assert found.pop("subscription gwi-celery").change == "celery -A APP gwi init"
    ours = found.pop("roles/pubsub.publisher of the worker on gwi-celery")
    assert (ours.holds, ours.measured) == (False, "not pubsub.topics.publish, as whoever asks here")
    assert "gcloud pubsub topics add-iam-policy-binding gwi-celery --project=" in ours.change
    assert "--role=roles/pubsub.publisher" in ours.change
    agents = found.pop("roles/pubsub.publisher of the agent on gwi-celery.dead")
    assert agents.holds is None, "a folder's policy may grant it"
    assert agents.change.endswith("serviceAccount:service-1@gcp-sa-pubsub.iam.gserviceaccount.com")
    assert not found, "on what doesn't exist nothing is granted"


def test_where_nothing_answers_that_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployed, "TIMEOUT", 0.3)
    queues = [QueueSpec("celery"), QueueSpec("other")]
    plan = deployment.plan(parse("pubsub://127.0.0.1:9/p"), queues, None)
    [found] = deployed.needs(plan)
    assert (found.what, found.holds) == ("topics and subscriptions", False)
    assert "the Pub/Sub emulator at 127.0.0.1:9 does not answer" in found.measured


def test_what_differs_from_the_list_is_told(app: Celery) -> None:
    options = parse(app.conf.broker_url)
    client = Client(options)
    path = f"projects/{options.project}/subscriptions/gwi-celery.dead"
    request = pb["UpdateSubscriptionRequest"](
        subscription={"name": path, "message_retention_duration": {"seconds": 7 * 86_400}},
        update_mask={"paths": ["message_retention_duration", "expiration_policy"]},
    )
    client.call("UpdateSubscription", request, path)
    client.close()
    [wrong] = [finding for finding in needs(app).values() if finding.holds is False]
    assert wrong.what == "subscription gwi-celery.dead"
    assert wrong.measured == (
        "keeps messages for 7 days and not for 31, expires when it is not used"
    )


def test_the_command_has_all_of_it(app: Celery) -> None:

    @app.task(shared=False)
    def work() -> None: ...

    done = CliRunner().invoke(gwi, ["doctor", "--json"], obj=SimpleNamespace(app=app))
    assert done.exit_code == 0, (done.output, done.exception)
    rows = {row["what"]: row for row in json.loads(done.stdout)}
    assert needs(app).keys() <= rows.keys()
    assert rows["topic gwi-celery.dead"]["holds"] is True


# --- Firestore ------------------------------------------------------------------------------------


def test_indexes_of_other_applications_are_passed_over() -> None:
    """Such as one for vectors, whose field has no order."""
    config = types.Index.IndexField.VectorConfig(
        dimension=3, flat=types.Index.IndexField.VectorConfig.FlatIndex()
    )
    theirs = types.Index(
        name="projects/p/databases/d/collectionGroups/theirs/indexes/1",
        query_scope="COLLECTION",
        fields=[types.Index.IndexField(field_path="embedding", vector_config=config)],
    )
    listed = types.ListIndexesResponse.pb(types.ListIndexesResponse(indexes=[theirs]))
    found = deployed._indexes(lambda *args, **fields: listed, "projects/p/databases/d", "gcloud")
    assert found.holds is False
    assert found.measured.startswith("missing: gwi_jobs (")


@pytest.fixture(scope="module")
def firestore(firestore_emulator: Emulator) -> Iterator[FirestoreTwin]:
    with start_firestore_twin(firestore_emulator.endpoint, lenient=True) as started:
        yield started


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Finding]]:
    def found(endpoint: str) -> dict[str, Finding]:
        monkeypatch.setenv(FIRESTORE_HOST, endpoint)
        return {
            finding.what: finding for finding in deployed.firestore(parse_store("firestore://p"))
        }

    return found


@pytest.mark.emulator
def test_a_database_as_the_list_has_it(
    firestore: FirestoreTwin, firestore_emulator: Emulator, ask: Any
) -> None:
    found = ask(firestore.endpoint)
    assert [finding.holds for finding in found.values()] == [True] * 3, found
    content = indexes.load()
    assert found["Firestore's indexes"].measured == f"{len(content['indexes'])} are READY"
    assert found["Firestore's edition and mode"].measured.startswith("FIRESTORE_NATIVE, STANDARD")
    # The emulator has no such API, and that is no fault of the project.
    asked = ask(firestore_emulator.endpoint)
    assert {f.holds for f in asked.values()} == {None}
    assert {f.measured for f in asked.values()} == {"an emulator: there is no admin API to ask"}


@pytest.mark.emulator
def test_indexes_in_the_making_are_told(firestore: FirestoreTwin, ask: Any) -> None:
    firestore.switch(ready=False)
    try:
        found = ask(firestore.endpoint)
    finally:
        firestore.switch(ready=True)
    making = found["Firestore's indexes"]
    assert making.holds is False
    assert (
        "gwi_jobs (status ascending, updated descending; collection) is CREATING" in making.measured
    )
    assert making.change == "wait: it may take an hour"
    assert "gwi_jobs.gc_at is CREATING" in found["Firestore's TTL policies"].measured


@pytest.mark.emulator
def test_an_index_that_is_missing_is_told_with_the_command(
    firestore: FirestoreTwin, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = indexes.load()
    more = {**content["indexes"][0], "collectionGroup": "gwi_more"}
    monkeypatch.setattr(
        indexes, "load", lambda: {**content, "indexes": [*content["indexes"], more]}
    )
    missing = ask(firestore.endpoint)["Firestore's indexes"]
    assert missing.measured == (
        "missing: gwi_more (status ascending, updated descending; collection)"
    )
    assert "--collection-group gwi_more" in missing.change
