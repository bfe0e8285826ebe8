"""The demo's checker: it accepts a good trail, and each kind of fault makes its own claim fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from examples.repo_insight.invariants import (
    Event,
    Evidence,
    Facts,
    JobName,
    Kill,
    StoredJob,
    Submission,
    check,
    rows,
)
from examples.repo_insight.verify import BadEvidence, parse_audit, verdict

A, B = JobName("acme", "r1"), JobName("globex", "r1")
RESULT = {"commits": 30}


def attempt(job: JobName, fence: int, number: int, task_id: str, *events: str) -> list[Event]:
    """Events in short: "+list" called and recorded, "=list" answered, "-list" called and killed."""
    made = [("attempt started", None)]
    for event in events:
        mark, step = event[0], event[1:]
        if mark in "+-":
            made.append(("step called", step))
        if mark in "+=":
            made.append(("step recorded" if mark == "+" else "step answered", step))
        if mark == ".":
            made.append(("returning", None))
    return [
        Event(name, *job, task_id, fence, number, 1, 100 + number, float(i), step)
        for i, (name, step) in enumerate(made)
    ]


def trail(job: JobName, first: int) -> list[Event]:
    """Killed in batch 1 of 3, and taken over by a duplicate's message."""
    return [
        *attempt(job, first, 1, f"{job.tenant}-1", "+list", "+batch-0", "-batch-1"),
        *attempt(
            job, first + 7, 2, f"{job.tenant}-2",
            "=list", "=batch-0", "+batch-1", "+batch-2", "+report", ".",
        ),
    ]  # fmt: skip


def submission(task_id: str, job: JobName, kind: str, **fields: object) -> Submission:
    made = Submission(task_id, *job, "/repo", 10, kind, "before")
    return replace(made, **({"result": RESULT} | fields))  # type: ignore[arg-type]


@pytest.fixture
def good() -> Evidence:
    facts = Facts(30, 100, 20, {"ada@x": 20, "bob": 10}, {"2024-W01": 30})
    report = {
        "totals": {"commits": 30, "added": 100, "removed": 20},
        "authors": [
            {"name": "Ada", "email": "Ada@x", "commits": 20},
            {"name": "bob", "email": "", "commits": 10},
        ],
        "weeks": [{"week": "2024-W01", "commits": 30}],
    }
    return Evidence(
        events=[*trail(A, 1), *trail(B, 3)],
        submissions=[
            submission("acme-1", A, "job"),
            submission("acme-2", A, "duplicate"),
            submission("acme-3", A, "duplicate"),
            submission("acme-4", A, "mismatch", result=None, error="IdempotencyMismatch"),
            submission("globex-1", B, "job"),
            submission("globex-2", B, "duplicate"),
        ],
        kills=[Kill(*A, 1), Kill(*B, 3)],
        stored={
            A: StoredJob("succeeded", 1, 2, 8),
            B: StoredJob("succeeded", 1, 2, 10),
        },
        reports={A: report, B: report},
        facts={"/repo": facts},
        queued=0,
        dead=1,
        locks=[],
    )


def broken(evidence: Evidence) -> list[str]:
    return [f.claim for f in check(evidence) if not f.held]


def test_a_good_trail_is_accepted(good: Evidence) -> None:
    assert broken(good) == []
    assert verdict(check(good)) == "All 10 invariants held"


def test_the_table_counts_what_the_trail_shows(good: Evidence) -> None:
    row = rows(good)[0]

    assert (row.job, row.commits, row.attempts, row.kills) == (A, 30, 2, 1)
    assert (row.steps_run, row.steps_skipped) == (6, 2)
    assert (row.duplicates, row.answered) == (2, 2)


def without(good: Evidence, drop: Callable[[Event], bool]) -> Evidence:
    return replace(good, events=[e for e in good.events if not drop(e)])


def changed(good: Evidence, at: int, **fields: object) -> Evidence:
    events = list(good.events)
    events[at] = replace(events[at], **fields)  # type: ignore[arg-type]
    return replace(good, events=events)


def added(good: Evidence, *events: Event) -> Evidence:
    """``events`` in front of B's trail."""
    place = len(trail(A, 1))
    return replace(good, events=[*good.events[:place], *events, *good.events[place:]])


def submitted(good: Evidence, which: str, **fields: object) -> Evidence:
    return replace(
        good,
        submissions=[
            replace(s, **fields) if s.task_id == which else s  # type: ignore[arg-type]
            for s in good.submissions
        ],
    )


def reported(good: Evidence, **fields: object) -> Evidence:
    return replace(good, reports={**good.reports, A: {**good.reports[A], **fields}})


TOTALS = {"commits": 30, "added": 100, "removed": 20}

KILLS = "both kills hit a job in mid-walk"
FENCES = "fencing tokens only grew, and no stale holder went on"
AGAIN = "no recorded step ran again"
EVERY = "every step ran and was recorded"
OUTCOME = "one stored outcome per job, and nothing ran after it"
AGREE = "every duplicate got that outcome"
ATTEMPTS = "attempts are one more than kills"
COMMITS = "every commit counts once, as git counts"
MISMATCH = "another payload under the same run never ran"
LEFT = "no message and no lock is left"


@pytest.mark.parametrize(
    ("claim", "fault"),
    [
        pytest.param(KILLS, lambda e: replace(e, kills=e.kills[:1]), id="one kill only"),
        pytest.param(
            KILLS, lambda e: replace(e, kills=[Kill(*A, 8), e.kills[1]]), id="a kill at the end"
        ),
        pytest.param(
            FENCES,
            lambda e: replace(e, events=[*trail(A, 1)[:6], *attempt(A, 1, 2, "acme-2", "=list")]),
            id="a fence used twice",
        ),
        pytest.param(
            FENCES,
            lambda e: added(e, replace(e.events[3], event="step recorded")),
            id="a stale holder recorded a step",
        ),
        pytest.param(
            FENCES, lambda e: changed(e, 6, attempt=1), id="the attempt count did not grow"
        ),
        pytest.param(
            AGAIN,
            lambda e: replace(
                e,
                events=[
                    *attempt(A, 1, 1, "acme-1", "+list", "+batch-0", "-batch-1"),
                    *attempt(A, 8, 2, "acme-2", "=list", "+batch-0", "+batch-1", "."),
                ],
            ),
            id="a recorded step called by a later attempt",
        ),
        pytest.param(
            AGAIN, lambda e: replace(e, kills=e.kills[1:]), id="a step ran again without a kill"
        ),
        pytest.param(EVERY, lambda e: replace(e, events=[]), id="an empty trail"),
        pytest.param(
            EVERY,
            lambda e: without(e, lambda x: x.step == "batch-2" and x.event == "step called"),
            id="a batch never called",
        ),
        pytest.param(
            EVERY,
            lambda e: without(e, lambda x: x.step == "report" and x.event == "step recorded"),
            id="the report never recorded",
        ),
        pytest.param(
            EVERY,
            lambda e: added(e, replace(e.events[-2], step="batch-3", event="step called")),
            id="a batch too many",
        ),
        pytest.param(
            OUTCOME,
            lambda e: replace(e, stored={B: e.stored[B]}),
            id="no record in the store",
        ),
        pytest.param(
            OUTCOME,
            lambda e: replace(e, stored={**e.stored, A: replace(e.stored[A], status="running")}),
            id="not finished",
        ),
        pytest.param(
            OUTCOME,
            lambda e: replace(e, stored={**e.stored, A: replace(e.stored[A], generation=2)}),
            id="a second generation",
        ),
        pytest.param(
            OUTCOME,
            lambda e: replace(e, stored={**e.stored, A: replace(e.stored[A], fence=1)}),
            id="the outcome of a stale fence",
        ),
        pytest.param(
            OUTCOME,
            lambda e: added(e, *attempt(A, 9, 3, "acme-3", "=list", ".")),
            id="a duplicate ran after the end",
        ),
        pytest.param(
            AGREE, lambda e: submitted(e, "acme-3", result={"commits": 1}), id="another result"
        ),
        pytest.param(
            AGREE,
            lambda e: submitted(e, "acme-3", result=None, error="JobFailed"),
            id="a duplicate failed",
        ),
        pytest.param(
            AGREE,
            lambda e: replace(e, submissions=[replace(s, result=None) for s in e.submissions]),
            id="nobody got a result",
        ),
        pytest.param(
            ATTEMPTS,
            lambda e: replace(e, stored={**e.stored, A: replace(e.stored[A], attempt=3)}),
            id="contention counted as an attempt",
        ),
        pytest.param(
            ATTEMPTS,
            lambda e: without(e, lambda x: x.task_id == "acme-1" and x.step is None),
            id="an attempt missing",
        ),
        pytest.param(
            COMMITS, lambda e: reported(e, totals={**TOTALS, "commits": 31}), id="counted twice"
        ),
        pytest.param(
            COMMITS, lambda e: reported(e, totals={**TOTALS, "added": 99}), id="a line lost"
        ),
        pytest.param(COMMITS, lambda e: reported(e, authors=[]), id="authors lost"),
        pytest.param(COMMITS, lambda e: reported(e, weeks=[]), id="weeks lost"),
        pytest.param(COMMITS, lambda e: replace(e, reports={}), id="no report"),
        pytest.param(
            MISMATCH, lambda e: submitted(e, "acme-4", result=RESULT, error=None), id="answered"
        ),
        pytest.param(MISMATCH, lambda e: submitted(e, "acme-4", task_id="acme-2"), id="it ran"),
        pytest.param(MISMATCH, lambda e: replace(e, dead=0), id="not in the dead letter"),
        pytest.param(
            MISMATCH,
            lambda e: replace(e, submissions=[s for s in e.submissions if s.kind != "mismatch"]),
            id="none submitted",
        ),
        pytest.param(LEFT, lambda e: replace(e, queued=1), id="a message is left"),
        pytest.param(LEFT, lambda e: replace(e, locks=["the lock of r1"]), id="a lock is left"),
    ],
)
def test_a_fault_is_found(
    good: Evidence, claim: str, fault: Callable[[Evidence], Evidence]
) -> None:
    faulty = fault(good)

    assert claim in broken(faulty)
    assert verdict(check(faulty)).startswith("INVARIANTS BROKEN")


@pytest.mark.parametrize("line", ["{", "[]", '{"event": "x"}', '{"event": "x", "who": 1}'])
def test_a_line_that_is_no_event_is_an_error(line: str) -> None:
    with pytest.raises(BadEvidence, match=r"audit.jsonl, line 1"):
        parse_audit(line)
