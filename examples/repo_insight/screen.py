"""What the demo shows: live tables on a terminal, plain lines elsewhere or without rich."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from examples.repo_insight.invariants import Finding, Row, Submission

if TYPE_CHECKING:
    from examples.repo_insight.demo import Progress

_HEAD = ("job", "commits", "attempts", "kills", "steps run", "skipped", "duplicates", "answered")


class Screen:
    """Plain lines. A job gets one whenever a quarter more of it is done."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._quarters: dict[Any, tuple[int, int, bool]] = {}

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def say(self, text: str) -> None:
        print(f"{self._clock()}  {text}", flush=True)

    def show(self, jobs: Iterable[Progress], submissions: Collection[Submission]) -> None:
        for job in jobs:
            now = (job.attempts, 4 * job.done // max(job.plan.batches, 1), job.finished)
            if job.attempts and self._quarters.get(job.plan.job) != now:
                self._quarters[job.plan.job] = now
                self.say(f"{job.plan.job}: {_state(job)}, {job.done} of {job.plan.batches} batches")

    def summary(self, rows: Sequence[Row], findings: Sequence[Finding]) -> None:
        cells = [_HEAD, *map(_cells, rows), _totals(rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(_HEAD))]
        print()
        for row in cells:
            first, *rest = (cell.rjust(w) for cell, w in zip(row, widths, strict=True))
            print("  ".join([row[0].ljust(len(first)), *rest]))
        print()
        for finding in findings:
            print(("held    " if finding.held else "BROKEN  ") + finding.claim)
            for problem in finding.problems:
                print(f"        {problem}")
        print()

    def _clock(self) -> str:
        return f"{time.monotonic() - self._began:5.1f} s"


class LiveScreen(Screen):
    """The same with rich: a table that is redrawn, and events scrolling by above it."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.live import Live

        self._console = Console(highlight=False)
        self._live = Live(console=self._console, refresh_per_second=10)

    def __enter__(self) -> Screen:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        from rich.text import Text

        style = "bold red" if "SIGKILL" in text else ""
        self._console.print(Text.assemble((f"{self._clock()}  ", "dim"), (text, style)))

    def show(self, jobs: Iterable[Progress], submissions: Collection[Submission]) -> None:
        from rich.markup import escape
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table(
            "job", "", "batches", "attempts", "kills", "state", box=None, padding=(0, 2, 0, 0)
        )
        for job in jobs:
            table.add_row(
                escape(str(job.plan.job)),
                ProgressBar(total=max(job.plan.batches, 1), completed=job.done, width=36),
                f"{job.done} of {job.plan.batches}",
                str(job.attempts),
                str(job.kills),
                _state(job),
            )
        answered = sum(s.result is not None or s.error is not None for s in submissions)
        table.caption = f"{answered} of {len(submissions)} submissions answered"
        self._live.update(table)

    def summary(self, rows: Sequence[Row], findings: Sequence[Finding]) -> None:
        from rich.box import SIMPLE_HEAD
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD, show_footer=True)
        for title, total in zip(_HEAD, _totals(rows), strict=True):
            table.add_column(title, footer=total, justify="left" if title == "job" else "right")
        for row in rows:
            table.add_row(*map(escape, _cells(row)))
        self._console.print(table)
        for finding in findings:
            mark = "[green]held  [/]" if finding.held else "[bold red]BROKEN[/]"
            self._console.print(mark, end="  ")
            self._console.print(finding.claim, markup=False)
            for problem in finding.problems:
                self._console.print(f"        {problem}", markup=False, style="red")
        self._console.print()


def open_screen() -> Screen:
    """A live one where that can work."""
    if sys.stdout.isatty():
        try:
            return LiveScreen()
        except ImportError:
            pass
    return Screen()


def _state(job: Progress) -> str:
    if job.finished:
        return "done"
    if not job.attempts:
        return "waiting"
    if job.kills == job.attempts:
        return "killed, lease runs out"
    return "walking" if job.attempts == 1 else f"resumed, attempt {job.attempts}"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        str(row.job),
        f"{row.commits:,}",
        str(row.attempts),
        str(row.kills),
        str(row.steps_run),
        str(row.steps_skipped),
        str(row.duplicates),
        str(row.answered),
    )


def _totals(rows: Sequence[Row]) -> tuple[str, ...]:
    return (
        "all",
        f"{sum(r.commits for r in rows):,}",
        str(sum(r.attempts for r in rows)),
        str(sum(r.kills for r in rows)),
        str(sum(r.steps_run for r in rows)),
        str(sum(r.steps_skipped for r in rows)),
        str(sum(r.duplicates for r in rows)),
        str(sum(r.answered for r in rows)),
    )
