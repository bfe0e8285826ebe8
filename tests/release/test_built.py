"""The wheel and the sdist: what is in them, and that what is installed from them works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from benchmarks import newcomer
from gwi_celery import __version__
from tests.workers import ROOT

pytestmark = [pytest.mark.acceptance, pytest.mark.slow, pytest.mark.xdist_group("built")]


def run(
    command: list[object], folder: Path, env: dict[str, str] | None = None, timeout: float = 110
) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=env or dict(os.environ),
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path, target: Path, kind: str) -> Path:
    run([sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", target], source)
    [made] = target.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel is installed; its dependencies are this environment's."""
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    run([*pip, "--target", site, wheel], site)
    return site


@pytest.fixture
def installed(site: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a process that has the wheel, and not this checkout."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("GWI_", "GCP_"))}
    return {**keep, "PYTHONPATH": f"{site}:{tmp_path}"}


def test_the_wheel_has_all_that_is_needed_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"gwi_celery-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(f"gwi_celery-{__version__}.dist-info/METADATA").decode()
    tracked = run(["git", "ls-files", "gwi_celery"], ROOT).splitlines()
    assert {n for n in names if n.startswith("gwi_celery/")} == set(tracked)
    rest = {n.partition("/")[2] for n in names if not n.startswith("gwi_celery/")}
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE"} <= rest
    assert {n.partition("/")[0] for n in names} == {
        "gwi_celery",
        f"gwi_celery-{__version__}.dist-info",
    }
    assert "License-Expression: Apache-2.0" in metadata


def test_the_sdist_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    sdist = build(ROOT, tmp_path / "sdist", "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    [source] = (tmp_path / "source").iterdir()
    again = build(source, tmp_path / "again", "wheel")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as two:
        assert sorted(one.namelist()) == sorted(two.namelist())


@pytest.mark.parametrize("dockerfile", ["Dockerfile", "examples/repo_insight/Dockerfile"])
def test_what_the_dockerfile_copies_is_enough_to_build(dockerfile: str, tmp_path: Path) -> None:
    text = (ROOT / dockerfile).read_text()
    before = text[: text.index("pip install")]
    source = tmp_path / "source"
    for line in re.findall(r"^COPY (?!--)(.+)$", before, re.MULTILINE):
        *copied, _ = line.split()
        for name in copied:
            source.mkdir(exist_ok=True)
            path = ROOT / name
            if path.is_dir():
                shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, source)
    build(source, tmp_path / "wheel", "wheel")


def test_the_quickstart_works_with_the_wheel(installed: dict[str, str], tmp_path: Path) -> None:
    place = run(
        [sys.executable, "-c", "import gwi_celery; print(gwi_celery.__file__)"], tmp_path, installed
    )
    assert not place.startswith(str(ROOT)), "it is the wheel's"
    newcomer.write_files(tmp_path)
    python = Path(sys.executable)
    assert newcomer.first_job(python, tmp_path, installed) == "{'order': 7, 'total': 700}"
    assert "1 passed" in newcomer.first_test(python, tmp_path, installed)
    command = [sys.executable, "-m", "celery", "-A", "shop", "gwi", "--help"]
    assert "serve" in run(command, tmp_path, installed), "the entry point is found"


@pytest.mark.timeout(300)
def test_the_demo_works_with_the_wheel(installed: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__")
    )
    demo = [sys.executable, "-m", "examples.repo_insight.demo"]
    output = run(demo, tmp_path, installed, timeout=280)
    assert re.search(r"All \d+ invariants held\.$", output.strip()), output
