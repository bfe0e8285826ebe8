"""Checks what a demo left behind: ``python -m examples.repo_insight.verify demo-output/run-...``

Exits with 1 if an invariant did not hold, so that the check itself can be tried: change a line of
``audit.jsonl``, and run it again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from celery import Celery

from examples.repo_insight.invariants import (
    Event,
    Evidence,
    Facts,
    Finding,
    JobName,
    Kill,
    StoredJob,
    Submission,
    check,
)
from examples.repo_insight.report import folder_name
from gwi_celery import broker_for, setup, store_for
from gwi_celery.brokers.base import dead_letter_queue

#: The job's name. Not imported with its app, which would be set up here, before the demo has said
#: where its files are.
TASK = "examples.repo_insight.app.analyse"

AUDIT, LEDGER, REPORTS, STATE = "audit.jsonl", "submissions.json", "reports", "gwi"


class BadEvidence(ValueError):
    """The folder doesn't hold what a demo leaves, or a line of it can't be read."""


def save_ledger(folder: Path, submissions: Sequence[Submission], kills: Sequence[Kill]) -> None:
    """Keep what the demo did. Paths are kept relative, so that the folder can be moved."""
    data = {
        "submissions": [
            {**asdict(s), "repo": os.path.relpath(s.repo, folder)} for s in submissions
        ],
        "kills": [asdict(k) for k in kills],
    }
    (folder / LEDGER).write_text(json.dumps(data, indent=1) + "\n")


def gather(folder: Path, project: str = "") -> Evidence:
    """Read everything that a finished demo left in ``folder``, and in ``project`` if it ran there.

    Raises BadEvidence.
    """
    submissions, kills = _ledger(folder)
    app = Celery("verify")
    # All that could name another place is named here, whatever the environment says.
    setup(
        app,
        folder=str(folder / STATE),
        project=project,
        broker_url="",
        store_url="",
        store_backend="",
    )
    store, broker = store_for(app), broker_for(app)
    queue = app.conf.task_default_queue
    jobs = {s.job for s in submissions}
    stored = {
        JobName(tenant, record.run_id): StoredJob(
            record.status.value, record.generation, record.attempt, record.fence
        )
        for tenant in {job.tenant for job in jobs}
        for record in store.list_jobs(tenant).jobs
        if record.run_id is not None and record.job.task == TASK
    }
    dead = dead_letter_queue(queue)
    return Evidence(
        events=parse_audit((folder / AUDIT).read_text()),
        submissions=submissions,
        kills=kills,
        stored=stored,
        reports={job: _report(folder, job) for job in stored},
        facts={repo: facts_of(repo) for repo in {s.repo for s in submissions}},
        queued=_total(broker, queue),
        dead=_total(broker, dead) if broker.has_queue(dead) else 0,
        locks=[
            f"the lock {lock.scope} of {tenant}"
            for tenant in {job.tenant for job in jobs}
            for lock in store.list_locks(tenant)
        ],
    )


def parse_audit(text: str) -> list[Event]:
    """The events of an audit trail. Raises BadEvidence for a line that is no event."""
    events = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            events.append(Event(**json.loads(line)))
        except (TypeError, ValueError) as exc:
            raise BadEvidence(f"{AUDIT}, line {number}: {exc}") from exc
    return events


def facts_of(repo: str) -> Facts:
    """What git counts: one process per question, no batches, none of the example's own code."""
    numstat = _git(repo, "log", "--numstat", "-M50%", "-l1000", "--format=", "HEAD").splitlines()
    lines = [line.split(b"\t", 2)[:2] for line in numstat if line]
    return Facts(
        commits=int(_git(repo, "rev-list", "--count", "HEAD")),
        added=sum(int(added) for added, _ in lines if added != b"-"),
        removed=sum(int(removed) for _, removed in lines if removed != b"-"),
        authors=_count(
            repo, "%aE%x09%aN", lambda line: (line.split("\t")[0] or line).strip().lower()
        ),
        weeks=_count(repo, "%ad", str, "--date=format:%G-W%V"),
    )


def _count(repo: str, what: str, key: Callable[[str], str], *options: str) -> dict[str, int]:
    answer = _git(repo, "log", f"--format={what}", *options, "HEAD").decode("utf-8", "replace")
    return dict(Counter(key(line) for line in answer.splitlines()))


def _git(repo: str, *args: str) -> bytes:
    return subprocess.run(["git", "-C", repo, *args], check=True, capture_output=True).stdout


def _ledger(folder: Path) -> tuple[list[Submission], list[Kill]]:
    try:
        data = json.loads((folder / LEDGER).read_text())
    except OSError as exc:
        raise BadEvidence(f"{folder} holds no finished demo: {exc}") from exc
    submissions = [Submission(**s) for s in data["submissions"]]
    return (
        [replace(s, repo=str((folder / s.repo).resolve())) for s in submissions],
        [Kill(**k) for k in data["kills"]],
    )


def _report(folder: Path, job: JobName) -> dict[str, Any]:
    path = folder / REPORTS / folder_name(job.tenant, job.run) / "report.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def _total(broker: Any, queue: str) -> int:
    size = broker.size(queue)
    if size is not None:
        return int(size.total)
    return len(broker.peek(queue))  # Pub/Sub doesn't count: look


def verdict(findings: Sequence[Finding]) -> str:
    """The one line that says it."""
    failed = sum(not f.held for f in findings)
    if failed:
        return f"INVARIANTS BROKEN: {failed} of {len(findings)} did not hold"
    return f"All {len(findings)} invariants held"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.repo_insight.verify")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--project", default="", help="where a demo on Google Cloud has run")
    options = parser.parse_args(argv)
    try:
        findings = check(gather(options.folder, options.project))
    except BadEvidence as exc:
        print(f"INVARIANTS BROKEN: the evidence can't be read: {exc}")
        return 1
    for finding in findings:
        print(("held    " if finding.held else "BROKEN  ") + finding.claim)
        for problem in finding.problems:
            print(f"        {problem}")
    print(verdict(findings))
    return 0 if all(f.held for f in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
