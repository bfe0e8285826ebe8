"""What the pages tell people to type: Python runs, commands exist, data can be parsed."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import click
import hcl2
import pytest
import yaml
from celery import _state

import gwi_celery
from gwi_celery import deployment
from gwi_celery.cli import gwi
from gwi_celery.transport.jobformat import to_message
from tests import zygote
from tests.infra.hcl import ONE_PROCESS
from tests.workers import ROOT

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]

#: What a page takes for granted, run before its first block.
GIVEN = {
    "jobs.md": "from celery import Celery\nfrom gwi_celery import ReliableTask, setup\n"
    "app = Celery('shop')\nsetup(app)\n"
    "@app.task(base=ReliableTask, bind=True)\n"
    "def review(self, *, tenant_id, run_id): ...\n"
    "self, files, refund = review, ['a.py'], print\n",
    "operating.md": "from celery import Celery\nfrom gwi_celery import setup\n"
    "app = Celery('shop')\nsetup(app)\n",
    "pubsub.md": "from celery import Celery\nfrom gwi_celery import setup\n",
    "tasks.md": "from concurrent.futures import ThreadPoolExecutor\n"
    "from types import SimpleNamespace\n"
    "from celery.schedules import crontab\n"
    "self = SimpleNamespace(step=lambda name, function, n: function(n))\n"
    "pages, fetch = 3, abs\n",
}
#: Blocks that other tests run, by a word in them.
ELSEWHERE = {
    "put_value": "tests/docs/test_operating.py",
    "import my_tasks": "tests/integration/test_docs.py",
    "from my_tasks": "tests/integration/test_docs.py",
}


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """(the file that the line above names, or "", the block's text) of each block of a page."""
    found = re.finditer(
        rf"(?:^`([\w./-]+)`[^\n]*:\n\n)?^```({'|'.join(languages)})[^\n]*\n(.*?)^```",
        page.read_text(),
        re.DOTALL | re.MULTILINE,
    )
    return [(match[1] or "", match[3]) for match in found]


@pytest.fixture
def in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Apps of the pages keep their jobs in memory, and run them where they are called."""
    setup = gwi_celery.setup

    def eager(app: Any, **settings: Any) -> Any:
        name = f"embedded://:memory:/{uuid4().hex}"
        if not app.conf.broker_url:
            settings.setdefault("broker_url", name)
        if "store_backend" not in settings:
            settings.setdefault("store_url", name)
        done = setup(app, **settings)
        app.conf.task_always_eager = True
        return done

    monkeypatch.setattr(gwi_celery, "setup", eager)
    monkeypatch.setenv(
        "PUBSUB_EMULATOR_HOST", "127.0.0.1:1"
    )  # nobody's: no page may need an answer
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    modules = set(sys.modules)
    # A page's tasks are shared with every app of the process, and its app becomes the current one.
    finalizers, current = set(_state._on_app_finalizers), _state._tls.current_app
    yield
    _state._on_app_finalizers.clear()
    _state._on_app_finalizers.update(finalizers)
    _state._tls.current_app = current
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python_runs(page: Path, in_this_process: None, tmp_path: Path) -> None:
    own: dict[str, Any] = {"__name__": "page"}
    exec(GIVEN.get(page.name, ""), own)
    tests = []
    for name, code in blocks(page, "python"):
        if name.endswith(".py"):
            (tmp_path / name).write_text(code)
        if any(word in code for word in ELSEWHERE):
            continue
        if Path(name).name.startswith("test_"):
            tests.append(name)
        else:
            exec(compile(code, f"{page.name}:{name}", "exec"), own)
    if tests:
        done = zygote.run_pytest(tmp_path, *tests)
        assert done.returncode == 0, done.stdout


def test_the_plain_job_of_the_migration_is_a_call_of_its_task(in_this_process: None) -> None:
    page = ROOT / "docs" / "migrating.md"
    [(_, job)] = blocks(page, "json")
    message = to_message(json.loads(job), "celery")
    [code] = [text for _, text in blocks(page, "python") if message["headers"]["task"] in text]
    own: dict[str, Any] = {"__name__": "page"}
    exec(code, own)
    _, payload, _ = json.loads(message["body"])
    who = {"tenant_id": message["headers"]["gwi_tenant"], "run_id": message["headers"]["gwi_run"]}
    task = own["app"].tasks[message["headers"]["task"]]
    assert task.apply(kwargs={**payload, **who}).get() == {"files": 0}


@pytest.mark.parametrize("path", sorted(set(ELSEWHERE.values())))
def test_what_runs_elsewhere_does(path: str) -> None:
    assert "docs" in (ROOT / path).read_text()


@ONE_PROCESS
@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "json", "yaml", "hcl", "toml")], ids=lambda p: p.name
)
def test_data_can_be_parsed(page: Path) -> None:
    for _, text in blocks(page, "json"):
        json.loads(text)
    for _, text in blocks(page, "yaml"):
        list(yaml.safe_load_all(text))
    for _, text in blocks(page, "hcl"):
        hcl2.loads(text)


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "sh", "console")], ids=lambda p: p.name
)
def test_commands_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for _, text in blocks(page, "sh", "console"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[:1] == ["make"]:
                assert words[1] in targets, line
            for word, following in itertools.pairwise(words):
                if word == "-m":
                    assert importlib.util.find_spec(following), line
                elif word == "gwi" and "celery" in words:
                    options = {
                        option
                        for parameter in gwi.get_command(click.Context(gwi), following).params
                        for option in parameter.opts
                    }
                    given = {w for w in words[words.index("gwi") :] if w.startswith("--")}
                    assert {w.partition("=")[0] for w in given} <= options | {"--help"}, line


def test_the_push_recipe_grants_all_that_pushes_need() -> None:
    text = (ROOT / "docs" / "service.md").read_text()
    recipe = text.partition("## Setting push up")[2].partition("\n### ")[0]
    roles = {grant.role for grant in deployment.GRANTS if grant.only == "push"}
    needed = {*roles, "roles/iam.serviceAccountTokenCreator", "--no-cpu-throttling"}
    assert {each for each in needed if each not in recipe} == set()
