"""``gwi init``: what it prints is what managed mode would make, and providers and gcloud take it."""

from __future__ import annotations

import math
import shlex
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner
from kombu import Queue

from gwi_celery import broker_for, deployment, setup
from gwi_celery.brokers.pubsub import naming
from gwi_celery.cli import gwi
from gwi_celery.cli.frame import Exit
from gwi_celery.cli.plan import plan_of
from tests.infra.hcl import ONE_PROCESS, faults, load

URL = (
    "pubsub://p-1?priority_levels=0,5&retry_policy=10,60&exactly_once=true&ordering=true"
    "&storage_regions=europe-west1&labels={%22team%22:%22a%22}"
    "&kms_key=projects/p/locations/l/keyRings/r/cryptoKeys/k"
)


def app_on(url: str, **settings: Any) -> Celery:
    app = Celery(f"unit-{id(url)}", broker=url, set_as_current=False)
    app.conf.task_queues = [Queue("celery"), Queue("a.b"), Queue("a_b"), Queue("gone", expires=60)]
    setup(app, **settings)
    return app


def run(app: Celery, *arguments: str) -> Any:
    return CliRunner().invoke(gwi, ["init", *arguments], obj=SimpleNamespace(app=app))


@pytest.fixture
def app() -> Any:
    app = app_on(URL, project="p-1")
    yield app
    app.close()


@ONE_PROCESS
def test_terraform_is_as_the_provider_documents(app: Celery) -> None:
    printed = run(app, "--print", "terraform")
    assert printed.exit_code == 0, printed.output
    module = load([printed.output])
    assert not list(faults(module))
    assert len(module.of("google_pubsub_topic")) == 6, "three queues and their dead letters"
    subscriptions = module.of("google_pubsub_subscription")
    assert len(subscriptions) == 9, "two levels of priority, and the dead letter"
    own = subscriptions["gwi-celery"]
    assert own["enable_exactly_once_delivery"] == "${true}" or own["enable_exactly_once_delivery"]
    assert own["retry_policy"] == [{"minimum_backoff": "10s", "maximum_backoff": "60s"}]
    assert subscriptions["gwi-celery_dead"]["message_retention_duration"] == "2678400s"
    assert module.of("google_pubsub_topic")["gwi-celery"]["message_storage_policy"]
    fields = module.of("google_firestore_field")
    assert fields["gwi_5fjobs-gc_5fat"]["ttl_config"] == [{}]
    roles = {body["role"] for (kind, _), body in module.resources.items() if "iam" in kind}
    assert roles == {g.role for g in deployment.GRANTS if not g.only}


def test_gcloud_says_the_same(app: Celery) -> None:
    printed = run(app, "--print", "gcloud")
    assert printed.exit_code == 0, printed.output
    commands = [shlex.split(line, comments=True) for line in printed.output.splitlines()]
    made = [c for c in commands if c[:2] == ["gcloud", "pubsub"] and c[3] == "create"]
    assert len([c for c in made if c[2] == "topics"]) == 6
    own = next(c for c in made if c[2:5] == ["subscriptions", "create", "gwi-celery"])
    assert {
        "--ack-deadline=30",
        "--expiration-period=never",
        "--min-retry-delay=10s",
        "--max-retry-delay=60s",
        "--enable-exactly-once-delivery",
        "--enable-message-ordering",
        "--labels=team=a",
        "--max-delivery-attempts=100",
    } <= set(own)
    roles = {w.removeprefix("--role=") for c in commands for w in c if w.startswith("--role=")}
    assert roles == {g.role for g in deployment.GRANTS if not g.only}


def test_without_a_project_there_is_nothing_to_print() -> None:
    app = app_on("embedded://:memory:/init", store_backend="memory")
    printed = run(app, "--print", "terraform")
    assert printed.exit_code == 2
    assert "GCP_PROJECT_ID" in printed.output
    app.close()


def test_it_makes_the_queues() -> None:
    app = app_on("embedded://:memory:/init-makes", store_backend="memory")
    done = run(app)
    assert done.exit_code == 0, done.output
    assert "queue 'a.b' is there" in done.output
    assert broker_for(app).has_queue("a.b")
    app.close()


def test_queues_are_planned_and_made_as_a_worker_declares_them(app: Celery) -> None:
    own = {"x-lease-seconds": 45, "x-message-ttl": 5000}
    app.amqp.queues.clear()
    app.amqp.queues.add(Queue("celery", queue_arguments=own, message_ttl=60))
    [planned] = plan_of(app).queues
    for subscription in planned.subscriptions:
        assert subscription.ack_deadline_seconds == 45
        assert subscription.labels[naming.TTL_LABEL] == "60000"
    app.amqp.queues.add(Queue("wrong", message_ttl=math.nan))
    for arguments in (["--print", "terraform"], []):
        refused = run(app, *arguments)
        assert refused.exit_code == Exit.USAGE
        assert "x-message-ttl of queue 'wrong' is nan, not a number" in refused.output
