"""An embedded app in a folder of its own, and a way to call ``celery gwi`` on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema_rs
import pytest
from celery import Celery
from click.testing import CliRunner

from gwi_celery import ReliableTask, broker_for, setup
from gwi_celery.cli import gwi
from gwi_celery.cli.frame import SHAPES, Exit
from gwi_celery.transport.death import Death, deceased


class Gwi:
    """``celery gwi`` on an app."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.err = ""

    def __call__(self, *arguments: str, code: Exit = Exit.OK, input: str | None = None) -> str:
        done = CliRunner().invoke(gwi, arguments, obj=SimpleNamespace(app=self.app), input=input)
        self.err = done.stderr
        assert done.exit_code == code, done.output
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """What ``--json`` prints, once it is seen to be as its schema says."""
        found = json.loads(self(*arguments, "--json"))
        [shape] = [SHAPES[name] for n in (2, 1) if (name := " ".join(arguments[:n])) in SHAPES][:1]
        jsonschema_rs.validate(shape.schema(), found)
        return found

    def bury(self, death: Death, text: str, queue: str = "celery", **call: Any) -> None:
        """Have a call of the app's task die as if its worker had given it up."""
        task = self.app.tasks["shop.invoice"]
        sent = task.apply_async(kwargs={"tenant_id": "acme", "run_id": "r1", **call}, queue=queue)
        broker = broker_for(self.app)
        [delivery] = broker.receiver().poll(queue, 1)
        assert delivery.attributes["task_id"] == sent.id
        broker.dead_letter(deceased(delivery, death), text)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Celery]:
    app = Celery(f"unit-{tmp_path.name}", set_as_current=False)
    setup(app, folder=str(tmp_path / "gwi"))

    @app.task(base=ReliableTask, bind=True, name="shop.invoice", shared=False)
    def invoice(self: Any, *, tenant_id: str, run_id: str, amount: int = 1) -> int:
        return amount

    yield app
    app.close()


@pytest.fixture
def gwi_(app: Celery) -> Gwi:
    return Gwi(app)
