"""The newcomer's path, timed: from a checkout to the first reliable job and the first own test.

It does what ``docs/quickstart.md`` says, with the files and calls that stand there, in a new virtual
environment. Needs a package index for the dependencies.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "quickstart.md"


def write_files(folder: Path) -> None:
    """The page's files."""
    found = re.findall(r"^`(\w+\.py)`:\n\n```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert [name for name, _ in found] == ["shop.py", "test_shop.py"], found
    for name, code in found:
        (folder / name).write_text(code)


def commands(program: str) -> list[list[str]]:
    """The page's commands that begin with a program."""
    found = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    lines = [shlex.split(line, comments=True) for block in found for line in block.splitlines()]
    return [line for line in lines if line[:1] == [program]]


@contextmanager
def worker(python: Path, folder: Path, environment: Mapping[str, str]) -> Any:
    [[_, *arguments]] = commands("celery")
    running = subprocess.Popen(
        [python, "-m", "celery", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    ready, lines = threading.Event(), []

    def read() -> None:
        for line in running.stdout or ():
            lines.append(line)
            if "ready." in line:
                ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        if not ready.wait(100):
            raise RuntimeError("the worker does not start:\n" + "".join(lines))
        yield
    finally:
        running.terminate()
        running.wait(timeout=60)
        reader.join()
        if running.stdout is not None:
            running.stdout.close()


def first_job(python: Path, folder: Path, environment: Mapping[str, str]) -> str:
    """What the page's call prints, with its worker running."""
    [[_, *arguments]] = commands("python")
    with worker(python, folder, environment):
        return _run([python, *arguments], folder, environment).strip()


def first_test(python: Path, folder: Path, environment: Mapping[str, str]) -> str:
    [[_, *arguments]] = commands("pytest")
    return _run([python, "-m", "pytest", "-q", *arguments], folder, environment)


def _run(command: list[Any], folder: Path, environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{command} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def main(quick: bool = False) -> int:
    folder = Path(tempfile.mkdtemp(prefix="newcomer-"))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GWI_", "PYTHON"))}
    began = time.monotonic()

    def tell(what: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {what}", flush=True)

    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    _run([python, "-m", "pip", "install", "--quiet", str(ROOT)], folder, environment)
    tell("installed, with its dependencies")
    write_files(folder)
    tell(f"the first reliable job: {first_job(python, folder, environment)}")
    _run([python, "-m", "pip", "install", "--quiet", "pytest"], folder, environment)
    tell(f"the first test: {first_test(python, folder, environment).splitlines()[-1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
