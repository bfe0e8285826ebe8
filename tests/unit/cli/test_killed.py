"""A bulk operation that is killed loses nothing, and doubles nothing when it is begun anew."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from gwi_celery import broker_for
from gwi_celery.transport.death import Death

_APP = """
from celery import Celery
from gwi_celery import ReliableTask, setup

app = Celery("killed")
setup(app, folder={folder!r})


@app.task(base=ReliableTask, bind=True, name="shop.invoice")
def invoice(self, *, tenant_id, run_id, amount=1):
    return amount
"""
_COUNT = 40


@pytest.fixture
def many(gwi_):
    for n in range(_COUNT):
        gwi_.bury(Death("failed"), "no", run_id=f"r{n}")
    return gwi_


def killed(folder: Path, when: str, *arguments: str) -> None:
    """Run ``celery gwi`` in a process of its own, and kill -9 it at the first ``when`` it makes."""
    (folder / "killed_app.py").write_text(_APP.format(folder=str(folder / "gwi")))
    script = f"""
import os, signal, sys
from types import SimpleNamespace
sys.path.insert(0, {str(folder)!r})
from killed_app import app
from gwi_celery.brokers.embedded import EmbeddedBroker
from gwi_celery.cli import gwi
calls = 0
whole = EmbeddedBroker.{when}
def some(self, *args, **kwargs):
    global calls
    calls += 1
    if calls == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, *args, **kwargs)
EmbeddedBroker.{when} = some
gwi({list(arguments)!r}, obj=SimpleNamespace(app=app))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def runs(gwi_, queue: str) -> Counter[str]:
    return Counter(m.attributes["run"] for m in broker_for(gwi_.app).browse(queue))


def test_a_redrive(many, tmp_path):
    killed(tmp_path, "redrive", "dlq", "redrive", "--all", "--yes", "--rate", "15")
    back, left = runs(many, "celery"), runs(many, "celery.dead")
    assert back, "it was killed in the middle"
    assert left
    assert back + left == Counter(f"r{n}" for n in range(_COUNT))
    many("dlq", "redrive", "--all", "--yes")
    assert runs(many, "celery") == Counter(f"r{n}" for n in range(_COUNT))
    assert not runs(many, "celery.dead")


def test_an_import(many, tmp_path, monkeypatch):
    file = str(tmp_path / "dead.jsonl")
    many("dlq", "export", file)
    lines = Path(file).read_text().splitlines(keepends=True)
    wanted = Counter(f"r{n}" for n in range(_COUNT))
    many("dlq", "purge", "--all", "--yes")
    # More than two batches, of deaths that differ.
    more = [line.replace('"id": "', f'"id": "{n}0000') for n in range(1, 8) for line in lines]
    Path(file).write_text("".join(lines + more))
    killed(tmp_path, "publish_many", "dlq", "import", file)
    assert 0 < len(list(broker_for(many.app).browse("celery.dead"))) < 8 * _COUNT
    many("dlq", "import", file)
    assert runs(many, "celery.dead") == Counter(dict.fromkeys(wanted, 8))
