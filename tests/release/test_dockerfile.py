"""The Dockerfile's steps in a bare root: two virtualenvs stand for its two stages.

There is no container engine here. What is left out: the account that the image makes (``useradd``), and
so that the app runs as it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import venv
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from gwi_celery.testing.emulators import free_port
from tests.machine import PATIENCE
from tests.workers import ROOT, eventually

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

APP = """
from celery import Celery
from gwi_celery import setup
app = Celery("shop")
setup(app)
@app.task
def ship(): ...
"""


@dataclass
class Stage:
    """A root of its own: the Dockerfile's absolute paths are below it, ``/usr/local`` is its Python's."""

    root: Path
    workdir: str = "/"
    env: dict[str, str] = field(default_factory=dict)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        venv.create(self.at("/usr/local"), with_pip=True)

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def under(self, text: str) -> str:
        """A shell's line, or a value, with the Dockerfile's paths below this root."""
        return re.sub(r"(?<![\w.])/(install|src|app|var|usr/local)\b", rf"{self.root}/\1", text)

    def environment(self, **more: str) -> dict[str, str]:
        own = {name: self.under(value) for name, value in self.env.items()}
        path = f"{self.at('/usr/local/bin')}:/usr/bin:/bin"
        kept = {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "SSL_", "HOME"))}
        return {**kept, "PATH": path, **own, **more}


def instructions() -> list[tuple[str, str]]:
    text = (ROOT / "Dockerfile").read_text()
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def built(folder: Path) -> Stage:
    """What the last stage is after all instructions."""
    stages: dict[str, Stage] = {}
    stage = None
    for number, (name, rest) in enumerate(instructions()):
        if name == "FROM":
            stage = Stage(folder / f"stage{number}")
            stages[rest.partition(" AS ")[2] or str(number)] = stage
        if name in ("ARG", "FROM", "EXPOSE", "USER"):
            continue
        assert stage is not None
        if name == "WORKDIR":
            stage.workdir = rest
            stage.at(rest).mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            copy(stage, stages, shlex.split(rest))
        elif name == "ENV":
            stage.env.update(pair.split("=", 1) for pair in shlex.split(rest))
        elif name == "RUN":
            # The account would be this machine's; the folder that is made for it is not.
            line = re.sub(r"^useradd [^&]*&&", "", rest).replace("-o app -g app", "")
            run(stage, stage.under(line))
        elif name == "ENTRYPOINT":
            stage.entrypoint = json.loads(rest)
        elif name == "CMD":
            stage.command = json.loads(rest)
        else:
            raise AssertionError(f"this test knows no {name}")
    assert stage is not None
    return stage


def copy(stage: Stage, stages: dict[str, Stage], words: list[str]) -> None:
    source = ROOT
    if words[0].startswith("--from="):
        source = stages[words.pop(0).removeprefix("--from=")].root
    *names, target = words
    for name in names:
        found = source / name.lstrip("/")
        to = stage.at(target if target.startswith("/") else f"{stage.workdir}/{target}")
        if found.is_dir():
            shutil.copytree(found, to, dirs_exist_ok=True, symlinks=True)
        else:
            shutil.copy(found, to)


def run(stage: Stage, line: str) -> None:
    done = subprocess.run(
        ["/bin/sh", "-ec", line],
        cwd=stage.at(stage.workdir),
        env=stage.environment(),
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    stage = built(tmp_path_factory.mktemp("image"))
    stage.at("/app/shop").mkdir()
    stage.at("/app/shop/tasks.py").write_text(APP)
    # What pip wrote for the first stage's Python is found by the same name in the image's.
    for script in stage.at("/usr/local/bin").iterdir():
        if script.is_file() and not script.is_symlink() and script.read_bytes()[:2] == b"#!":
            text = script.read_text()
            if "python" in text.splitlines()[0]:
                python = stage.at("/usr/local/bin/python")
                script.write_text(f"#!{python}\n" + text.partition("\n")[2])
    return stage


@pytest.mark.parametrize("arguments", [[], ["worker", "--concurrency", "1"]], ids=["push", "pull"])
def test_the_image_starts_is_healthy_and_stops(image: Stage, arguments: list[str]) -> None:
    port = free_port()
    env = image.environment(APP="shop.tasks", GWI_PUSH_AUTH="none", PORT=str(port))
    assert env["GWI_FOLDER"] == str(image.at("/var/lib/gwi"))
    process = subprocess.Popen(
        [*image.entrypoint, *(arguments or image.command)],
        executable=str(image.at("/usr/local/bin/celery")),
        cwd=image.at(image.workdir),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        eventually(lambda: process.poll() is not None or healthy(port), "GET /health is 200")
        assert process.poll() is None, process.communicate()[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert process.stdout is not None
        process.stdout.close()
    assert str(image.root) in installed(image)


def healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    except httpx.HTTPError:
        return False


def installed(image: Stage) -> str:
    """Where the image's Python has the package from."""
    program = "import gwi_celery; print(gwi_celery.__file__)"
    python = image.at("/usr/local/bin/python")
    done = subprocess.run(
        [python, "-c", program], cwd="/", env=image.environment(), check=True, capture_output=True
    )
    return done.stdout.decode()
