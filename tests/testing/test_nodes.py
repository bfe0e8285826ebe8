"""Nodes that are processes: they behave as pytest-celery expects of a container."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pytest_celery import CeleryTestBackend, CeleryTestBroker, CeleryTestContainer, CeleryTestNode

from gwi_celery.gcp.emulators import PUBSUB_HOST
from gwi_celery.testing import emulators
from gwi_celery.testing.emulators import Emulator
from gwi_celery.testing.process import Machine, WorkerProcess
from gwi_celery.testing.vendors.embedded.container import EmbeddedContainer
from gwi_celery.testing.vendors.firestore.container import FirestoreContainer, FirestoreProcess
from gwi_celery.testing.vendors.pubsub.container import PubSubContainer, PubSubProcess
from tests.machine import PATIENCE
from tests.workers import eventually

#: Starts a child, says both are there, and ends on SIGTERM with code 7.
PROGRAM = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
signal.signal(signal.SIGTERM, lambda *a: sys.exit(7))
print("child", child.pid, sys.argv[1:], flush=True)
print("ready.", flush=True)
while True:
    time.sleep(600)
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(
        ["python", "program.py", "name@%h"],
        tmp_path / "node",
        env={"COLOUR": "green", "PYTHONPATH": "/app"},
        content={"program.py": PROGRAM.encode(), "deep/er/file.txt": b"text"},
    )
    yield machine
    machine.stop()


def child_of(machine: Machine) -> int:
    eventually(lambda: b"ready." in machine.logs_since_start())
    return int(machine.logs_since_start().split()[1])


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_kill_takes_the_whole_node_and_a_restart_brings_it_back(machine: Machine) -> None:
    node = CeleryTestNode(WorkerProcess(machine))
    assert node.container.status == "created"
    machine.start()
    assert node.ready()
    child, pid = child_of(machine), machine.pid
    assert f"['name@{node.hostname()}']" in node.logs()
    node.kill()
    assert node.container.status == "exited"
    eventually(lambda: gone(child), what="its children are gone too")
    node.kill()  # nothing to do
    node.restart()
    assert node.container.status == "running"
    assert machine.pid != pid
    assert node.logs().count("ready.") == 2, "the log goes on"
    assert machine.logs_since_start().count(b"ready.") == 1


def test_another_signal_reaches_the_main_process_alone(machine: Machine) -> None:
    machine.start()
    child = child_of(machine)
    machine.kill(signal="SIGTERM")
    assert machine.wait(timeout=PATIENCE) == 7
    eventually(lambda: gone(child), what="what outlived it")


def test_commands_run_in_the_node_and_its_files_can_be_read(machine: Machine) -> None:
    machine.start()
    container = CeleryTestContainer(machine)
    code, output = container.exec_run("python -c \"import os; print(os.environ['COLOUR'])\"")
    assert (code, output) == (0, b"green\n")
    assert container.exec_run(["python", "-c", "raise SystemExit(3)"])[0] == 3
    assert container.env["COLOUR"] == "green"
    assert container.get_text("/deep/er/file.txt") == {"file.txt": "text"}


def test_a_worker_that_ends_is_no_worker_that_is_ready(tmp_path: Path) -> None:
    machine = Machine(["python", "-c", "print('it broke')"], tmp_path)
    machine.start()
    with pytest.raises(AssertionError, match="it broke"):
        WorkerProcess(machine).ready()


def test_a_folder_is_a_node_that_can_not_be_killed(tmp_path: Path) -> None:
    container = EmbeddedContainer(tmp_path / "a b")
    broker, backend = CeleryTestBroker(container), CeleryTestBackend(container)
    assert broker.ready()
    assert backend.config()["url"] == f"embedded://{tmp_path}/a b"
    with pytest.raises(RuntimeError, match="no process to kill"):
        broker.kill()
    broker.restart()


@pytest.mark.emulator
def test_an_emulator_is_a_node_with_a_project_of_its_own() -> None:
    with emulators.start_pubsub(fresh=True) as emulator:
        one, other = PubSubProcess(emulator), PubSubProcess(emulator)
        assert one.celeryconfig["host_url"] == f"pubsub://{emulator.endpoint}/{one.project}"
        assert one.project != other.project
        broker = CeleryTestBroker(one)
        assert broker.ready()
        topic = f"projects/{one.project}/topics/topic"
        with one.client as client:
            client.create_topic(name=topic, timeout=20)
        broker.kill()
        assert broker.container.status == "exited"
        broker.restart()
        assert broker.ready()
        with one.client as client:
            client.create_topic(name=topic, timeout=20)  # it was empty again
        assert "Server started" in broker.logs()


def test_an_emulator_that_was_there_before_is_not_killed() -> None:
    broker = CeleryTestBroker(PubSubProcess(Emulator("pubsub", "127.0.0.1:1", None)))
    with pytest.raises(RuntimeError, match="was there before"):
        broker.kill()
    backend = FirestoreProcess(Emulator("firestore", "127.0.0.1:1", None))
    assert backend.environment == {"FIRESTORE_EMULATOR_HOST": "127.0.0.1:1"}
    assert backend.celeryconfig["url"] == f"firestore://{backend.project}"


@pytest.mark.parametrize("cls", [PubSubContainer, FirestoreContainer])
def test_docker_vendors_start_googles_image_on_the_port_they_publish(
    cls: type[PubSubContainer] | type[FirestoreContainer],
) -> None:
    port = cls.inner_port.partition("/")[0]
    assert cls.ports() == {f"{port}/tcp": None}
    assert cls.command() == [
        *("gcloud", "beta", "emulators", cls.kind, "start"),
        f"--host-port=0.0.0.0:{port}",
    ]
    assert cls.version() == "emulators"
    assert cls.initial_env() == {}


@pytest.mark.emulator
def test_the_command_prints_what_to_export_and_ends_on_a_signal(
    firestore_emulator: Emulator,
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "gwi_celery.testing.emulators", "--project", "a b"],
        stdout=subprocess.PIPE,
        text=True,
        # Firestore's runs already: the command takes what the environment names.
        env={k: v for k, v in os.environ.items() if k != PUBSUB_HOST},
    )
    assert process.stdout is not None
    try:
        lines = [process.stdout.readline() for _ in range(4)]
        assert lines[0] == "export GCP_PROJECT_ID='a b'\n"
        assert lines[1].startswith("export PUBSUB_EMULATOR_HOST=127.0.0.1:")
        assert lines[2] == f"export FIRESTORE_EMULATOR_HOST={firestore_emulator.endpoint}\n"
        java = psutil.Process(process.pid).children(recursive=True)
        assert java
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE) == 0
        eventually(lambda: all(gone(p.pid) for p in java), "an emulator outlived the command")
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)
        process.stdout.close()


_STARTS = """
import signal, sys
from gwi_celery.testing.emulators import Emulator, free_port
port = free_port()
command = [sys.executable, "-m", "http.server", str(port)]
emulator = Emulator("python", f"127.0.0.1:{port}", command)
emulator.start()
print(emulator.pid, flush=True)
signal.pause()
"""


def test_an_emulator_ends_with_the_process_that_started_it_even_a_killed_one() -> None:
    with subprocess.Popen([sys.executable, "-c", _STARTS], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert not gone(pid)
        process.kill()
    eventually(lambda: gone(pid))


#: Once it runs, whoever started it is told to stop.
_STOPPED = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
print(os.environ['PUBSUB_EMULATOR_HOST'], flush=True)
time.sleep(0.3)
os.kill(os.getppid(), signal.SIGTERM)
signal.pause()
"""


@pytest.mark.emulator
def test_the_command_runs_another_on_the_emulators_and_ends_as_it_does(
    capfd: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--only", "pubsub", "--", sys.executable, "-c", _STOPPED]
    assert emulators.main(arguments) == 3
    assert capfd.readouterr().out.startswith("127.0.0.1:")
