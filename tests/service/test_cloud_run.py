"""The push service as Cloud Run runs it: behind its IAM, stopped between requests, scaled in, killed."""

from __future__ import annotations

import os
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from gwi_celery import broker_for
from gwi_celery.brokers.pubsub.broker import PubSubBroker
from gwi_celery.testing.twin import Twin, start_twin
from gwi_celery.testing.twin.cloudrun import CloudRun, Instance, start_cloud_run
from tests.machine import PATIENCE
from tests.service.pushing import APP, fifty_are_counted, jobs_in, numbers
from tests.service.tokens import ACCOUNT, AUDIENCE, Issuer, published
from tests.workers import ROOT, dead_letters, eventually, read_audit

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="module")
def twin() -> Iterator[Twin]:
    with start_twin(faults=0, early_expiry=0, settle=0) as started:
        yield started


@pytest.fixture
def jobs(tmp_path: Path, twin: Twin, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    project = f"run-{uuid.uuid4().hex[:12]}"
    monkeypatch.setenv("JOBS_BROKER_URL", f"pubsub://{twin.endpoint}/{project}?emulator=strict")
    monkeypatch.setenv("JOBS_LEASE_SECONDS", "10")
    with jobs_in(tmp_path) as module:
        yield module


Deploy = Callable[..., CloudRun]


@pytest.fixture
def deploy(jobs: ModuleType, twin: Twin, tmp_path: Path) -> Iterator[Deploy]:
    """Puts a service on Cloud Run, and has the queue pushed to it."""
    with ExitStack() as stack:

        def make(auth: str, *, env: dict[str, str] | None = None, **switches: object) -> CloudRun:
            own = {
                "JOBS_FOLDER": str(tmp_path),
                "PYTHONPATH": str(ROOT),
                "GWI_HOST": "127.0.0.1",
                "GWI_PUSH_AUTH": auth,
                "GWI_PUSH_AUDIENCE": AUDIENCE,
                "GWI_PUSH_SERVICE_ACCOUNT": ACCOUNT,
                "GWI_WORKER_GRACE": "8",
            }
            # On a busy machine ten seconds are few: test_emulator.py times the stop.
            switches = {"grace": PATIENCE, "queue_wait": PATIENCE, **switches}
            service = stack.enter_context(
                start_cloud_run(
                    [sys.executable, "-m", "celery", "-A", APP, "gwi", "serve"],
                    invoker=ACCOUNT,
                    audience=AUDIENCE,
                    certificates=twin.certificates,
                    env={**os.environ, **own, **(env or {})},
                    folder=tmp_path,
                    **switches,
                )
            )
            broker = broker_for(jobs.app)
            assert isinstance(broker, PubSubBroker)
            broker.push_to(
                "celery", f"{service.url}/push", service_account=ACCOUNT, audience=AUDIENCE
            )
            return service

        yield make


def is_stopped(instance: Instance) -> bool:
    return psutil.Process(instance.process.pid).status() == psutil.STATUS_STOPPED


def test_jobs_go_through_iam_and_outlive_the_instances(
    jobs: ModuleType, deploy: Deploy, tmp_path: Path
) -> None:
    service = deploy("iam", max_instances=1)
    results = [jobs.plain_add.delay(n, 1) for n in range(3)]
    assert [result.get(timeout=PATIENCE) for result in results] == [1, 2, 3]
    # Its CPU is taken away after the answer, and given back with the next request.
    [first] = service.instances
    eventually(lambda: is_stopped(first))
    result = jobs.counted.delay(tenant_id="acme", run_id="r1", to=50, pause=0.05)
    eventually(lambda: len(numbers(tmp_path)) > 5)
    service.shut_down(first)  # SIGTERM: the job is handed back at its next step
    first.process.wait(timeout=PATIENCE)
    assert first.process.returncode == 0, "it needed no SIGKILL"
    eventually(lambda: len(numbers(tmp_path)) > 25)
    [second] = service.instances
    service.shut_down(second, kill=True)
    fifty_are_counted(jobs, result, tmp_path)
    assert set(service.answers) & {401, 403} == set()


@pytest.mark.slow
def test_a_service_that_checks_signatures_itself_refuses_all_that_iam_lets_in(
    jobs: ModuleType, deploy: Deploy
) -> None:
    with published(Issuer().certificates) as url:
        service = deploy("oidc", env={"GWI_PUSH_CERTS_URL": url})
        result = jobs.plain_add.delay(1, 1)
        eventually(lambda: 401 in service.answers)
        assert set(service.answers) == {401}
        deploy("iam")
        assert result.get(timeout=PATIENCE) == 2


@pytest.mark.slow
def test_a_job_that_is_stopped_in_mid_step_after_a_503_is_done_all_the_same(
    jobs: ModuleType, deploy: Deploy, tmp_path: Path
) -> None:
    """Its request ran out of time, so it was answered, and the CPU taken away in the middle of a step."""
    service = deploy("iam", env={"GWI_PUSH_DEADLINE": "10"}, max_instances=1)
    result = jobs.deaf.delay(tenant_id="acme", run_id="r1", seconds=14.0)
    eventually(lambda: 503 in service.answers)
    assert not result.ready()
    assert result.get(timeout=PATIENCE) == "done"
    events = Counter(e["event"] for e in read_audit(tmp_path))
    assert events["first"] == 1, "what was recorded is not done again"
    assert dead_letters(broker_for(jobs.app)) == []
