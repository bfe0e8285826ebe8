"""docker-compose.yml: read, not run, as there may be no Docker."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import yaml

from gwi_celery.config import SETTINGS
from gwi_celery.testing import emulators
from gwi_celery.testing.vendors.firestore.defaults import FIRESTORE_PORT
from gwi_celery.testing.vendors.pubsub.defaults import PUBSUB_PORT
from tests.workers import ROOT

FILE = ROOT / "docker-compose.yml"


def test_the_worker_is_told_where_both_emulators_listen() -> None:
    services = yaml.safe_load(FILE.read_text())["services"]
    worker = services["worker"]
    known = {f.metadata["env"] for f in SETTINGS.values()}
    for name, port, variable in [
        ("pubsub", PUBSUB_PORT, emulators.PUBSUB_HOST),
        ("firestore", FIRESTORE_PORT, emulators.FIRESTORE_HOST),
    ]:
        number = port.partition("/")[0]
        service = services[name]
        assert service["image"] == emulators.DOCKER_IMAGE
        assert service["command"].endswith(f"{name} start --host-port=0.0.0.0:{number}")
        assert service["ports"] == [f"127.0.0.1:{number}:{number}"], "loopback only"
        assert service["healthcheck"]["test"][-1].endswith(f"/{number}")
        assert worker["environment"][variable] == f"{name}:{number}"
        assert worker["depends_on"][name] == {"condition": "service_healthy"}
        known.add(variable)
    assert set(worker["environment"]) <= known
    dockerfile = (ROOT / worker["build"]["dockerfile"]).read_text()
    for line in dockerfile.splitlines():
        if line.startswith("COPY"):
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), f"it copies {source}"


@pytest.mark.skipif(not shutil.which("docker-compose"), reason="no docker-compose to ask")
def test_docker_compose_accepts_it() -> None:
    done = subprocess.run(
        ["docker-compose", "-f", str(FILE), "config", "-q"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
