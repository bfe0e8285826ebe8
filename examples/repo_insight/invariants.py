"""What must hold after a demo, checked on evidence. Pure: no store, no broker, no git here.

The evidence comes from three sides that don't know of each other: the audit trail that the job
writes, what the store and the broker say afterwards, and git's own count of the same history.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class JobName(NamedTuple):
    tenant: str
    run: str

    def __str__(self) -> str:
        return f"{self.tenant}/{self.run}"


@dataclass(frozen=True)
class Event:
    """One line of the audit trail."""

    #: "attempt started", "step called", "step recorded", "step answered" or "returning".
    event: str
    tenant: str
    run: str
    task_id: str
    fence: int
    attempt: int
    generation: int
    pid: int
    at: float
    step: str | None = None

    @property
    def job(self) -> JobName:
        return JobName(self.tenant, self.run)


@dataclass(frozen=True)
class Submission:
    """One ``.delay()`` and what its caller got."""

    task_id: str
    tenant: str
    run: str
    repo: str
    batch_size: int
    #: "job", "duplicate" or "mismatch".
    kind: str
    #: When it was made, for people: "before the worker", "during the walk", ...
    when: str
    result: Mapping[str, Any] | None = None
    #: Class of the exception, if that is what the caller got.
    error: str | None = None

    @property
    def job(self) -> JobName:
        return JobName(self.tenant, self.run)


@dataclass(frozen=True)
class Kill:
    """One SIGKILL of the worker's whole process group."""

    tenant: str
    run: str
    #: Of the attempt that it hit.
    fence: int

    @property
    def job(self) -> JobName:
        return JobName(self.tenant, self.run)


@dataclass(frozen=True)
class StoredJob:
    """What the store says of a job."""

    status: str
    generation: int
    attempt: int
    fence: int


@dataclass(frozen=True)
class Facts:
    """What git says of a history, asked in another way than the job asks."""

    commits: int
    added: int
    removed: int
    #: Commits by author's address in lower case.
    authors: Mapping[str, int]
    #: Commits by ISO week.
    weeks: Mapping[str, int]


@dataclass(frozen=True)
class Evidence:
    events: Sequence[Event]
    submissions: Sequence[Submission]
    kills: Sequence[Kill]
    stored: Mapping[JobName, StoredJob]
    #: ``report.json`` by job.
    reports: Mapping[JobName, Mapping[str, Any]]
    #: By repository.
    facts: Mapping[str, Facts]
    #: Messages in the task queue, in any state.
    queued: int
    #: Messages in its dead letter.
    dead: int
    #: Locks that are still there.
    locks: Sequence[str]

    @property
    def jobs(self) -> list[Submission]:
        """The first submission of each job."""
        return [s for s in self.submissions if s.kind == "job"]

    def of(self, job: JobName) -> list[Event]:
        return [e for e in self.events if e.job == job]


@dataclass(frozen=True)
class Finding:
    claim: str
    #: Where the evidence contradicts it; empty: it held.
    problems: tuple[str, ...]

    @property
    def held(self) -> bool:
        return not self.problems


def check(evidence: Evidence) -> list[Finding]:
    """Every claim, in the order to show them."""
    return [Finding(claim, tuple(look(evidence))) for claim, look in _CLAIMS.items()]


@dataclass(frozen=True)
class Row:
    """One job's numbers, counted in the evidence."""

    job: JobName
    commits: int
    attempts: int
    kills: int
    steps_run: int
    steps_skipped: int
    duplicates: int
    answered: int


def rows(evidence: Evidence) -> list[Row]:
    return [_row(evidence, job.job) for job in evidence.jobs]


def _row(evidence: Evidence, job: JobName) -> Row:
    events = evidence.of(job)
    same = [s for s in evidence.submissions if s.job == job and s.kind != "mismatch"]
    finishers = {e.task_id for e in events if e.event == "returning"}
    return Row(
        job=job,
        commits=evidence.reports.get(job, {}).get("totals", {}).get("commits", 0),
        attempts=sum(e.event == "attempt started" for e in events),
        kills=sum(k.job == job for k in evidence.kills),
        steps_run=sum(e.event == "step called" for e in events),
        steps_skipped=sum(e.event == "step answered" for e in events),
        duplicates=len(same) - 1,
        # Whoever got the result without having come to its end must have got it from the store.
        answered=sum(s.result is not None and s.task_id not in finishers for s in same),
    )


# --- the claims: each yields what contradicts it --------------------------------------------------


def _kills_hit_jobs_in_mid_walk(evidence: Evidence) -> Iterator[str]:
    if len(evidence.kills) < 2:
        yield f"{len(evidence.kills)} kills happened instead of two"
    for kill in evidence.kills:
        events = evidence.of(kill.job)
        hit = [e for e in events if e.fence == kill.fence]
        recorded = [e for e in hit if e.event == "step recorded" and _is_batch(e.step)]
        if not recorded:
            yield f"{kill.job}: the kill came before its walk"
        if any(e.event == "returning" for e in hit):
            yield f"{kill.job}: the kill came after its end"
        if not any(e.fence > kill.fence for e in events):
            yield f"{kill.job}: no attempt followed the kill"


def _fences_grow(evidence: Evidence) -> Iterator[str]:
    for job in evidence.jobs:
        last: Event | None = None
        for event in evidence.of(job.job):
            if event.event == "attempt started":
                if last is not None and event.fence <= last.fence:
                    yield f"{job.job}: fence {event.fence} came after {last.fence}"
                if last is not None and event.attempt <= last.attempt:
                    yield f"{job.job}: attempt {event.attempt} came after {last.attempt}"
                last = event
            elif last is None or event.fence != last.fence:
                yield f"{job.job}: {event.event} by a stale holder, fence {event.fence}"


def _no_recorded_step_runs_again(evidence: Evidence) -> Iterator[str]:
    for job in evidence.jobs:
        events = evidence.of(job.job)
        kills = sum(k.job == job.job for k in evidence.kills)
        last_of = {e.fence: e for e in events}  # later lines win: an attempt's last event
        calls: dict[str | None, list[Event]] = defaultdict(list)
        for event in events:
            if event.event == "step called":
                calls[event.step].append(event)
        again = 0
        for step, called in calls.items():
            for earlier in called[:-1]:
                again += 1
                # In flight when the kill came: then it was the last thing its attempt did.
                if last_of[earlier.fence] != earlier:
                    yield f"{job.job}: {step} ran again although attempt {earlier.attempt} ended it"
        if again > kills:
            yield f"{job.job}: {again} steps ran again after {kills} kills"


def _every_step_ran_and_was_recorded(evidence: Evidence) -> Iterator[str]:
    for job in evidence.jobs:
        events = evidence.of(job.job)
        batches = -(-evidence.facts[job.repo].commits // job.batch_size)
        expected = {"list", "report", *(f"batch-{n}" for n in range(batches))}
        called = {e.step for e in events if e.event == "step called"}
        kept = {e.step for e in events if e.event in ("step recorded", "step answered")}
        for name, missing in (("called", expected - called), ("recorded", expected - kept)):
            if missing:
                yield f"{job.job}: {len(missing)} steps were never {name}, {min(missing)} among them"
        if called - expected:
            yield f"{job.job}: unknown steps {sorted(map(str, called - expected))}"


def _one_outcome(evidence: Evidence) -> Iterator[str]:
    for job in evidence.jobs:
        stored = evidence.stored.get(job.job)
        if stored is None:
            yield f"{job.job}: the store has no record of it"
            continue
        if (stored.status, stored.generation) != ("succeeded", 1):
            yield f"{job.job}: {stored.status} in generation {stored.generation}"
        events = evidence.of(job.job)
        ends = [i for i, e in enumerate(events) if e.event == "returning"]
        if len(ends) != 1 or ends[0] != len(events) - 1:
            yield f"{job.job}: came to its end {len(ends)} times, or ran on after it"
        elif stored.fence != events[-1].fence:
            yield f"{job.job}: the outcome is of fence {stored.fence}, not {events[-1].fence}"


def _duplicates_agree(evidence: Evidence) -> Iterator[str]:
    for job in evidence.jobs:
        if job.result is None:
            yield f"{job.job}: got {job.error or 'nothing'} instead of a result"
    first = {job.job: job for job in evidence.jobs}
    for other in evidence.submissions:
        if other.kind == "duplicate" and other.result != first[other.job].result:
            yield f"{other.job}: a duplicate ({other.when}) got {other.error or other.result}"


def _attempts_are_accounted_for(evidence: Evidence) -> Iterator[str]:
    for job in evidence.jobs:
        stored = evidence.stored.get(job.job)
        kills = sum(k.job == job.job for k in evidence.kills)
        started = sum(e.event == "attempt started" for e in evidence.of(job.job))
        if started != kills + 1:
            yield f"{job.job}: {started} attempts with {kills} kills"
        if stored is not None and stored.attempt != started:
            yield f"{job.job}: the store counts {stored.attempt} attempts, the trail {started}"


def _commits_count_once(evidence: Evidence) -> Iterator[str]:
    for job in evidence.jobs:
        report = evidence.reports.get(job.job)
        if report is None:
            yield f"{job.job}: there is no report"
            continue
        facts = evidence.facts[job.repo]
        totals = report["totals"]
        for name in ("commits", "added", "removed"):
            if totals[name] != getattr(facts, name):
                yield f"{job.job}: {name} is {totals[name]}, git says {getattr(facts, name)}"
        authors = {(a["email"] or a["name"]).lower(): a["commits"] for a in report["authors"]}
        if authors != facts.authors:
            yield f"{job.job}: commits by author are not git's"
        if {w["week"]: w["commits"] for w in report["weeks"]} != facts.weeks:
            yield f"{job.job}: commits by week are not git's"


def _mismatch_never_runs(evidence: Evidence) -> Iterator[str]:
    mismatches = [s for s in evidence.submissions if s.kind == "mismatch"]
    if not mismatches:
        yield "none was submitted"
    for mismatch in mismatches:
        if mismatch.error != "IdempotencyMismatch":
            yield f"{mismatch.job}: got {mismatch.error or mismatch.result}"
        if any(e.task_id == mismatch.task_id for e in evidence.events):
            yield f"{mismatch.job}: it ran"
    if evidence.dead != len(mismatches):
        yield f"the dead letter holds {evidence.dead} messages, not {len(mismatches)}"


def _nothing_is_left(evidence: Evidence) -> Iterator[str]:
    if evidence.queued:
        yield f"{evidence.queued} messages are left in the queue"
    for lock in evidence.locks:
        yield f"{lock} is still there"


def _is_batch(step: str | None) -> bool:
    return step is not None and step.startswith("batch-")


_CLAIMS: dict[str, Callable[[Evidence], Iterator[str]]] = {
    "both kills hit a job in mid-walk": _kills_hit_jobs_in_mid_walk,
    "fencing tokens only grew, and no stale holder went on": _fences_grow,
    "no recorded step ran again": _no_recorded_step_runs_again,
    "every step ran and was recorded": _every_step_ran_and_was_recorded,
    "one stored outcome per job, and nothing ran after it": _one_outcome,
    "every duplicate got that outcome": _duplicates_agree,
    "attempts are one more than kills": _attempts_are_accounted_for,
    "every commit counts once, as git counts": _commits_count_once,
    "another payload under the same run never ran": _mismatch_never_runs,
    "no message and no lock is left": _nothing_is_left,
}
