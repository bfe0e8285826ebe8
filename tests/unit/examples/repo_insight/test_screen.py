"""What the demo shows, live or as plain lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.repo_insight.demo import Plan, Progress
from examples.repo_insight.invariants import Event, Finding, JobName, Row, Submission
from examples.repo_insight.screen import LiveScreen, Screen, open_screen

JOB = JobName("acme", "[bold]r/1")


def event(name: str, attempt: int = 1, step: str | None = None) -> Event:
    return Event(name, *JOB, "id", 40 + attempt, attempt, 1, 7, 0.0, step)


@pytest.fixture
def progress() -> Progress:
    return Progress(Plan(JOB, Path("/repo"), commits=400, batch_size=10))


def walk(progress: Progress, first: int, past: int) -> None:
    for number in range(first, past):
        progress.see(event("step called", step=f"batch-{number}"))
        progress.see(event("step recorded", step=f"batch-{number}"))


def test_a_walk_may_be_killed_between_its_first_third_and_its_end(progress: Progress) -> None:
    assert not progress.in_mid_walk
    progress.see(event("attempt started"))
    walk(progress, 0, 12)
    assert not progress.in_mid_walk
    walk(progress, 12, 13)
    assert progress.in_mid_walk
    walk(progress, 13, 35)
    assert not progress.in_mid_walk


def test_a_resumed_job_counts_on(progress: Progress) -> None:
    progress.see(event("attempt started"))
    walk(progress, 0, 5)
    progress.see(event("attempt started", 2))
    assert (progress.attempts, progress.fence, progress.done, progress.done_now) == (2, 42, 5, 0)
    progress.see(event("step answered", 2, "batch-4"))
    walk(progress, 5, 6)
    assert (progress.done, progress.done_now) == (6, 1)
    progress.see(event("returning", 2))
    assert progress.finished


@pytest.mark.parametrize("kind", [Screen, LiveScreen])
def test_names_progress_and_verdict_are_shown(
    kind: type[Screen], progress: Progress, capsys: pytest.CaptureFixture[str]
) -> None:
    progress.see(event("attempt started"))
    walk(progress, 0, 20)
    waiting = Submission("id", *JOB, "/repo", 10, "job", "before")
    with kind() as screen:
        screen.say("[red]said")
        screen.show([progress], [waiting])
    row = Row(
        JOB, 400, attempts=2, kills=1, steps_run=42, steps_skipped=21, duplicates=3, answered=3
    )
    screen.summary([row], [Finding("it holds", ()), Finding("it does not", ("because [x]",))])

    shown = capsys.readouterr().out
    for text in ("[red]said", "acme/[bold]r/1", "20 of 40", "walking", "held", "because [x]"):
        assert text in shown
    assert "BROKEN" in shown


def test_lines_tell_a_job_once_per_quarter(
    progress: Progress, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Screen()
    progress.see(event("attempt started"))
    for number in range(40):
        walk(progress, number, number + 1)
        screen.show([progress], [])

    assert len(capsys.readouterr().out.splitlines()) == 5


def test_a_killed_job_is_not_shown_as_walking(
    progress: Progress, capsys: pytest.CaptureFixture[str]
) -> None:
    progress.see(event("attempt started"))
    progress.kills = 1
    with LiveScreen() as screen:
        screen.show([progress], [])

    assert "killed" in capsys.readouterr().out


def test_without_a_terminal_there_are_plain_lines() -> None:
    assert type(open_screen()) is Screen
