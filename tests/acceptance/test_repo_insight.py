"""The example through a real worker and its own command line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.repo_insight.synthetic import make_repository
from tests import zygote
from tests.workers import worker

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a repository, and a worker that works for it."""
    path = tmp_path_factory.mktemp("insight")
    make_repository(path / "repo.git", commits=120, seed=5, weeks=30)
    make_repository(path / "another.git", commits=3, seed=6, weeks=1)
    with worker("examples.repo_insight.app", path, env={"GWI_FOLDER": str(path / "gwi")}):
        yield path


def submit(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {"GWI_FOLDER": str(folder / "gwi")}
    return zygote.run_module("examples.repo_insight.submit", *args, folder=folder, env=env)


def test_a_submitted_repository_is_analysed_and_a_duplicate_is_answered(folder: Path) -> None:
    first = submit(folder, "repo.git", "--tenant", "acme/../x", "--run", "r 1", "--wait")
    again = submit(folder, "repo.git", "--tenant", "acme/../x", "--run", "r 1", "--wait")

    assert first.returncode == 0, first.stdout
    html, report = (Path(line.strip()) for line in first.stdout.splitlines()[-2:])
    assert json.loads(report.read_text("utf-8"))["totals"]["commits"] == 120
    assert html.read_text("utf-8").startswith("<!doctype html>")
    assert folder / "insight-reports" in html.parents
    assert again.returncode == 0
    assert again.stdout.splitlines()[-3:] == first.stdout.splitlines()[-3:]


def test_another_repository_under_the_same_run_is_a_mismatch(folder: Path) -> None:
    submit(folder, "repo.git", "--tenant", "acme", "--run", "r2", "--wait")
    other = submit(folder, ".", "--tenant", "acme", "--run", "r2", "--wait")
    there = submit(folder, "another.git", "--tenant", "acme", "--run", "r2", "--wait")

    assert (other.returncode, there.returncode) == (2, 1)
    assert "IdempotencyMismatch" in there.stdout


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("nowhere", "--tenant", "a", "--run", "r"), "nowhere is not a folder"),
        ((".", "--tenant", "a", "--run", "r"), "is not a git repository"),
        (("repo.git", "--tenant", " ", "--run", "r"), "tenant"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_sent(
    folder: Path, args: tuple[str, ...], reason: str
) -> None:
    done = submit(folder, *args)

    assert done.returncode == 2
    assert done.stdout.startswith("not submitted: ")
    assert reason in done.stdout


def test_a_ref_that_only_the_worker_finds_missing_fails_the_job(folder: Path) -> None:
    done = submit(folder, "repo.git", "--tenant", "a", "--run", "r3", "--ref", "no-such", "--wait")

    assert done.returncode == 1
    assert "RepositoryError" in done.stdout
    assert "there is main" in done.stdout


def test_waiting_ends_with_the_timeout_and_the_job_stays(folder: Path) -> None:
    done = submit(folder, "repo.git", "--tenant", "a", "--run", "r4", "--wait", "--timeout", "0")

    assert done.returncode == 3
    assert "the job goes on" in done.stdout
    endless = submit(folder, "repo.git", "--tenant", "a", "--run", "r4", "--timeout", "nan")
    assert endless.returncode == 2
    assert "'nan': write a number of seconds from 0 to" in endless.stdout
    later = submit(folder, "repo.git", "--tenant", "a", "--run", "r4", "--wait")
    assert later.returncode == 0, later.stdout
