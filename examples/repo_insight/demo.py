"""``make demo``: real jobs, duplicates, and two kills with SIGKILL in mid-job; then the proof.

Makes a new folder under ``demo-output/`` and keeps it. Everything it starts, it ends: one worker at
a time, in a process group of its own. Exits with 0 only if every invariant held.

``make demo-emulator`` is the same with ``--project``: on Pub/Sub and Firestore, whose emulators the
environment names, instead of the folder.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from examples.repo_insight import audit, verify
from examples.repo_insight.history import RepositoryError, find_git_dir
from examples.repo_insight.invariants import (
    Event,
    JobName,
    Kill,
    Submission,
    check,
    rows,
)
from examples.repo_insight.report import folder_name
from examples.repo_insight.screen import Screen, open_screen
from examples.repo_insight.synthetic import make_repository

ROOT = Path(__file__).resolve().parents[2]

#: Seconds until a killed worker's message is delivered again, and until its lock may be taken over.
#: Short, so that the demo is; see the settings of the same names for what that costs.
_LEASE = "5"

#: Pub/Sub takes no less.
_PUBSUB_LEASE = "10"

#: Seconds until the demo gives up.
_TIMEOUT = 150.0

#: Seconds between two looks at the audit trail and the results.
_LOOK_EVERY = 0.05

_KILLS = 2

#: Each ends the demo, and the worker with it.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DemoFailed(RuntimeError):
    """The demo could not come to its end; the message says why."""


@dataclass(frozen=True)
class Plan:
    """One job to submit."""

    job: JobName
    repo: Path
    commits: int
    batch_size: int
    #: A duplicate goes in right behind it.
    twice: bool = False

    @property
    def batches(self) -> int:
        return -(-self.commits // self.batch_size)


@dataclass
class Progress:
    """What the audit trail has shown of one job so far."""

    plan: Plan
    attempts: int = 0
    fence: int = 0
    #: Batches recorded, in all attempts.
    done: int = 0
    #: Batches recorded in the running attempt.
    done_now: int = 0
    kills: int = 0
    finished: bool = False

    def see(self, event: Event) -> None:
        if event.event == "attempt started":
            self.attempts, self.fence, self.done_now = event.attempt, event.fence, 0
        elif event.event == "returning":
            self.finished = True
        elif event.event == "step recorded" and (event.step or "").startswith("batch-"):
            self.done += 1
            self.done_now += 1

    @property
    def in_mid_walk(self) -> bool:
        """Past a third of a walk that is worth interrupting, and with some of it to come."""
        batches = self.plan.batches
        return (
            batches >= 30
            and not self.finished
            and self.done_now > 0
            and batches // 3 <= self.done < batches - 5
        )


@dataclass
class Demo:
    """One run of the demo."""

    folder: Path
    screen: Screen
    plans: list[Plan]
    progress: dict[JobName, Progress] = field(default_factory=dict)
    submissions: list[Submission] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    worker: subprocess.Popen[bytes] | None = None
    _audit_offset: int = 0
    _nudged: set[JobName] = field(default_factory=set)

    def run(self) -> None:
        """From the first submission to the last result. Raises DemoFailed."""
        self.progress = {plan.job: Progress(plan) for plan in self.plans}
        for plan in self.plans:
            self.submit(plan, "job", "before the worker started")
            if plan.twice:
                self.submit(plan, "duplicate", "before the worker started")
        self.start_worker()
        self._wait(self._all_answered, self._act)
        if len(self.kills) < _KILLS:
            raise DemoFailed("the jobs were over before the worker could be killed twice")
        for plan in self.plans:
            self.submit(plan, "duplicate", "after it was done")
        self._wait(self._all_answered)
        self.stop_worker()

    # --- submitting ---------------------------------------------------------------------------

    def submit(self, plan: Plan, kind: str, when: str, repo: Path | None = None) -> None:
        from examples.repo_insight.app import analyse

        target = str(repo or plan.repo)
        result = analyse.delay(
            tenant_id=plan.job.tenant,
            run_id=plan.job.run,
            repo=target,
            out=str(self.folder / verify.REPORTS),
            batch_size=plan.batch_size,
        )
        self.results[result.id] = result
        self.submissions.append(
            Submission(result.id, *plan.job, target, plan.batch_size, kind, when)
        )
        if kind != "job":
            self.screen.say(f"{plan.job}: {kind} submitted {when}")

    def _all_answered(self) -> bool:
        """Whether every submission has its result. Fetches each once."""
        for i, submission in enumerate(self.submissions):
            if submission.result is None and submission.error is None:
                result = self.results[submission.task_id]
                if not result.ready():
                    continue
                value = result.get(propagate=False)
                self.submissions[i] = (
                    replace(submission, error=type(value).__name__)
                    if isinstance(value, BaseException)
                    else replace(submission, result=value)
                )
        return all(s.result is not None or s.error is not None for s in self.submissions)

    # --- while jobs run -----------------------------------------------------------------------

    def _act(self) -> None:
        """Duplicates while a job walks, and a kill when it is well under way."""
        for job, progress in self.progress.items():
            if progress.done_now > 2 and not progress.finished and job not in self._nudged:
                self._nudged.add(job)
                self.submit(progress.plan, "duplicate", "during its walk")
            if progress.in_mid_walk and not progress.kills and len(self.kills) < _KILLS:
                self._kill(progress)

    def _kill(self, progress: Progress) -> None:
        plan = progress.plan
        self.end_worker()
        self._read_audit()  # what the job still managed to do
        progress.kills += 1
        self.kills.append(Kill(*plan.job, progress.fence))
        self.screen.say(
            f"{plan.job}: SIGKILL to the worker's process group, "
            f"{progress.done} of {plan.batches} batches recorded"
        )
        self.submit(plan, "duplicate", "while the worker was dead")
        if len(self.kills) == 1:
            other = next(p.repo for p in self.plans if p.repo != plan.repo)
            self.submit(plan, "mismatch", "under the same run, for another repository", other)
        self.start_worker()

    def _wait(self, done: Callable[[], bool], act: Callable[[], None] = lambda: None) -> None:
        deadline = time.monotonic() + _TIMEOUT
        while True:
            self._read_audit()
            act()
            over = done()
            self.screen.show(self.progress.values(), self.submissions)
            if over:
                return
            if self.worker is None or self.worker.poll() is not None:
                raise DemoFailed("the worker ended by itself")
            if time.monotonic() > deadline:
                raise DemoFailed(f"not done after {_TIMEOUT:g} s")
            time.sleep(_LOOK_EVERY)

    def _read_audit(self) -> None:
        path = self.folder / verify.AUDIT
        if not path.exists():
            return
        with path.open("rb") as f:
            f.seek(self._audit_offset)
            fresh = f.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._audit_offset += len(whole)
        for event in verify.parse_audit(whole.decode()):
            if event.job in self.progress:
                self.progress[event.job].see(event)

    # --- the worker ---------------------------------------------------------------------------

    def start_worker(self) -> None:
        with (self.folder / "worker.log").open("ab") as log, _uninterrupted():
            self.worker = subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "-A", "examples.repo_insight.app", "worker"),
                    *("--pool", "prefork", "--concurrency", "1", "--loglevel", "INFO"),
                    *("--hostname", f"demo{len(self.kills)}@%h"),
                ],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that a kill takes all of it, and nothing else
            )
        self.screen.say(f"worker started, pid {self.worker.pid}")

    def stop_worker(self) -> None:
        """Warm shutdown."""
        assert self.worker is not None
        began = time.monotonic()
        self.worker.terminate()
        try:
            code = self.worker.wait(timeout=20)
        except subprocess.TimeoutExpired:
            raise DemoFailed("the worker did not stop within 20 s of SIGTERM") from None
        self.screen.say(f"worker stopped in {time.monotonic() - began:.1f} s, code {code}")
        self.end_worker()

    def end_worker(self) -> None:
        """SIGKILL for what is left of the worker's process group, as if the machine went away."""
        if self.worker is None:
            return
        # The group's id stays ours as long as its leader isn't waited for; afterwards it lives on
        # only with its members, and no new process gets it.
        with suppress(ProcessLookupError):
            os.killpg(self.worker.pid, signal.SIGKILL)
        self.worker.wait()
        self.worker = None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.repo_insight.demo")
    parser.add_argument("--project", default="", help="run on Google Cloud, or its emulators")
    project = parser.parse_args(argv).project
    for number in _SIGNALS:
        signal.signal(number, _as_interrupt)
    began = time.monotonic()
    base = ROOT / "demo-output"
    base.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=time.strftime("run-%H%M%S-"), dir=base))
    _configure(folder, project)
    screen = open_screen()
    try:
        with screen:
            screen.say(f"everything goes to {_relative(folder)}/")
            demo = Demo(folder, screen, _plans(folder, screen))
            with _ending(demo):
                demo.run()
            verify.save_ledger(folder, demo.submissions, demo.kills)
            screen.say("checking what is left against git and the audit trail")
        evidence = verify.gather(folder, project)
        findings = check(evidence)
    except KeyboardInterrupt:
        print("\ninterrupted; the worker is ended")
        return 130
    except (DemoFailed, verify.BadEvidence) as exc:
        print(f"\nDEMO FAILED: {exc}\nSee {_relative(folder)}/worker.log, which ends with:")
        print("".join(f"  {line}\n" for line in _tail(folder / "worker.log")))
        return 1
    screen.summary(rows(evidence), findings)
    for job in evidence.jobs:
        print(f"  {job.job}: {_relative(_report(folder, job.job))}")
    print(f"Took {time.monotonic() - began:.0f} s. {verify.verdict(findings)}.")
    return 0 if all(f.held for f in findings) else 1


def _configure(folder: Path, project: str) -> None:
    """For this process and the worker alike: they share the folder, or the project, and no more."""
    for name in [n for n in os.environ if n.startswith("GWI_") or n == "GCP_PROJECT_ID"]:
        del os.environ[name]  # the demo runs where it says, whatever is set here
    os.environ.update(
        {
            "GWI_FOLDER": str(folder / verify.STATE),
            "GWI_LEASE_SECONDS": _PUBSUB_LEASE if project else _LEASE,
            "GWI_LOCK_TTL": _LEASE,
            "GWI_CONTENTION_DELAY": "0.5",
            audit.FILE: str(folder / verify.AUDIT),
        }
    )
    if project:
        os.environ["GCP_PROJECT_ID"] = project


def _plans(folder: Path, screen: Screen) -> list[Plan]:
    """The repositories, made while the reader reads, and the jobs on them."""
    repos = folder / "repos"
    repos.mkdir()
    atlas, beacon, checkout = (repos / f"{n}.git" for n in ("atlas", "beacon", "checkout"))
    screen.say("making two repositories with git fast-import, and a clone of this checkout")
    with ThreadPoolExecutor(2) as pool:
        made = [
            pool.submit(make_repository, atlas, commits=8000, seed=11),
            pool.submit(make_repository, beacon, commits=4000, seed=23, weeks=90),
        ]
        for future in made:
            future.result()
    plans = [
        Plan(JobName("acme", "nightly"), atlas, 8000, 40, twice=True),
        Plan(JobName("globex", "nightly"), atlas, 8000, 80),
        Plan(JobName("initech", "weekly"), beacon, 4000, 30),
    ]
    try:
        find_git_dir(str(ROOT))
    except RepositoryError as exc:  # an unpacked archive, say
        screen.say(f"no analysis of this checkout: {exc}")
    else:
        subprocess.run(["git", "clone", "--quiet", "--bare", str(ROOT), str(checkout)], check=True)
        commits = verify.facts_of(str(checkout)).commits
        plans.insert(1, Plan(JobName("acme", "release/1.0"), checkout, commits, 5, twice=True))
    return plans


@contextmanager
def _ending(demo: Demo) -> Iterator[None]:
    try:
        yield
    finally:
        with _uninterrupted():
            demo.end_worker()


def _as_interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """An interrupt waits until the block is over: no worker is started and then not known."""
    came: list[int] = []
    for number in _SIGNALS:
        signal.signal(number, lambda signum, _: came.append(signum))
    try:
        yield
    finally:
        for number in _SIGNALS:
            signal.signal(number, _as_interrupt)
    if came:
        raise KeyboardInterrupt


def _report(folder: Path, job: JobName) -> Path:
    return folder / verify.REPORTS / folder_name(*job) / "report.html"


def _relative(path: Path) -> str:
    return os.path.relpath(path, ROOT)


def _tail(path: Path, lines: int = 25) -> list[str]:
    return path.read_text("utf-8", "replace").splitlines()[-lines:] if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
