"""``celery -A app gwi push-to``: the command in a process, and what Pub/Sub then has."""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path

import pytest

from gwi_celery.brokers.pubsub.broker import PubSubBroker
from gwi_celery.brokers.pubsub.client import pb
from gwi_celery.brokers.pubsub.options import parse
from gwi_celery.cli.frame import Exit
from gwi_celery.testing.emulators import Emulator
from tests import zygote
from tests.machine import PATIENCE
from tests.workers import Worker
from tests.workers import worker as worker_of


def gwi(folder: Path, broker_url: str, *words: str) -> subprocess.CompletedProcess[str]:
    env = {"JOBS_FOLDER": str(folder), "JOBS_BROKER_URL": broker_url, "JOBS_LEASE_SECONDS": "10"}
    arguments = ("-A", "tests.acceptance.jobs", "gwi", *words)
    return zygote.run_module("celery", *arguments, folder=folder, env=env)


@pytest.mark.emulator
def test_a_queue_is_pushed_and_pulled_again(pubsub_emulator: Emulator, tmp_path: Path) -> None:
    url = f"pubsub://{pubsub_emulator.endpoint}/p-{uuid.uuid4().hex[:20]}"
    endpoint = "http://127.0.0.1:9/push"
    done = gwi(tmp_path, url, "push-to", endpoint, "--service-account", "push@p.example")
    assert done.returncode == 0, done.stdout
    assert done.stdout.strip() == f"queue 'celery' is pushed to {endpoint}"

    broker = PubSubBroker(parse(url))
    path = broker.topology.subscription("celery")
    request = pb["GetSubscriptionRequest"](subscription=path)
    config = broker.client.call("GetSubscription", request, path).push_config
    assert config.push_endpoint == endpoint
    assert config.oidc_token.service_account_email == "push@p.example"

    env = {"JOBS_FOLDER": str(tmp_path), "JOBS_BROKER_URL": url, "JOBS_LEASE_SECONDS": "10"}
    worker = Worker("tests.acceptance.jobs", tmp_path, pool="solo", env=env)
    try:
        worker.wait_for(
            f"queue 'celery' is not pulled: .* posts to {endpoint}.*push-to '' -Q celery"
        )
        assert worker.process.wait(timeout=PATIENCE) == 1
        assert "ready." not in worker.log
    finally:
        worker.close()

    assert gwi(tmp_path, url, "push-to", "").returncode == 0
    with worker_of("tests.acceptance.jobs", tmp_path, pool="solo", env=env):
        pass  # ready
    assert not broker.client.call("GetSubscription", request, path).push_config.push_endpoint
    broker.close()


def test_the_embedded_broker_can_not_push(tmp_path: Path) -> None:
    done = gwi(tmp_path, f"embedded://{tmp_path}", "push-to", "http://127.0.0.1:9/push")
    assert done.returncode == Exit.USAGE
    assert "only pubsub:// queues" in done.stdout
    assert "Traceback" not in done.stdout
