"""The Celery app, and the job. Start a worker, in the folder that holds ``examples/``, with

celery -A examples.repo_insight.app worker --concurrency 1
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from celery import Celery

from examples.repo_insight.analysis import Tally, summary, tally
from examples.repo_insight.audit import Trail
from examples.repo_insight.history import History, Listing, RepositoryError, list_commits
from examples.repo_insight.report import folder_name, write_report
from gwi_celery import ReliableTask, setup

app = Celery("repo_insight")
setup(app)


@app.task(base=ReliableTask, bind=True)
def analyse(
    self: Any,
    *,
    tenant_id: str,
    run_id: str,
    repo: str,
    ref: str = "HEAD",
    out: str = "insight-reports",
    batch_size: int = 200,
) -> dict[str, Any]:
    """Analyse a git repository; the result names the report's files.

    Args:
        tenant_id: Whose job it is.
        run_id: Names the run; the same one again is a duplicate and gets this one's result.
        repo: Absolute path of a working tree or bare repository.
        ref: Branch, tag or commit.
        out: Folder for reports; each run gets a folder of its own in it.
        batch_size: Commits per recorded step: the most that a kill loses.

    Raises:
        RepositoryError: There is no such repository or ref, or its history changed in mid-run.
    """
    if not Path(repo).is_absolute():
        raise RepositoryError(f"{repo} is a relative path: give an absolute one")
    trail = Trail(self, tenant_id, run_id)
    trail.note("attempt started")
    listing = Listing.from_json(
        trail.step("list", lambda: list_commits(repo, ref, batch_size).to_json())
    )
    # Each batch is a step whose result is the batch's own tally, so no commit counts twice: a kill
    # loses the batch in flight, with its tally, and nothing else. A sum carried along from batch
    # to batch could be saved before or after the place it belongs to; tallies per batch can't.
    # The cursor tells onlookers where the walk is. It is saved once a second and may lag behind
    # the steps after a kill; then the steps it hasn't seen are answered from their records.
    total = Tally()
    with History(listing) as history, self.cursor("walk", start=0) as walk:
        for number in range(len(listing.batches)):
            part = trail.step(f"batch-{number}", _tally_batch, history, number)
            total.add(Tally.from_json(part))
            walk.advance(max(walk.value, number + 1))
    content = summary(listing, total)
    # Written to a place of the run's own, with content that depends on the run alone: writing it
    # twice, even by a stale worker, changes nothing, so no fencing token has to be checked.
    files = trail.step(
        "report", write_report, str(Path(out).absolute() / folder_name(tenant_id, run_id)), content
    )
    trail.note("returning")
    return {
        **files,
        "repository": listing.git_dir,
        "head": listing.head,
        "commits": listing.commits,
    }


def _tally_batch(history: History, number: int) -> dict[str, Any]:
    return tally(history.batch(number))
