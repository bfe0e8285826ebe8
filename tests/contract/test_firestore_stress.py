"""Eight processes, crashes, zombies, wrong clocks, lost calls: the trail keeps every invariant."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from gwi_celery.firestore.url import parse
from gwi_celery.stores.base import Claimed, Completed, Held, JobRef, LockRef
from gwi_celery.stores.firestore import FirestoreStore
from tests.contract import stress
from tests.contract.contender import request
from tests.contract.stores import success

ROOT = Path(__file__).parents[2]

Line = dict[str, Any]


@pytest.mark.slow
@pytest.mark.emulator
@pytest.mark.timeout(300)
def test_the_trail_of_eight_processes_keeps_every_invariant(
    firestore_emulator: Any, tmp_path: Path
) -> None:
    lines, project = run(tmp_path)
    # First that the trail is worth looking at.
    all_that_can_go_wrong_did(lines)
    tokens_of_a_lock_strictly_grow_1(lines)
    no_write_of_an_older_token_is_accepted_2(lines)
    nothing_is_accepted_after_a_lock_was_freed_by_force_2(lines)
    there_is_one_outcome_for_each_generation_3(lines)
    a_recorded_step_never_changes_and_every_later_attempt_has_it_5_6(lines)
    nothing_is_stuck_9(lines, project)


def run(folder: Path) -> tuple[list[Line], str]:
    """The trail of one run, and the project it was in."""
    project = f"stress-{uuid4().hex[:16]}"
    subprocess.run(
        [sys.executable, "-m", "tests.contract.stress", str(folder), project],
        cwd=ROOT,
        check=True,
        timeout=240,
    )
    lines: list[Line] = []
    for trail in sorted(folder.glob("*.jsonl")):
        # The last line of one that was killed may be cut.
        lines += [
            json.loads(line)
            for line in trail.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        ]
    return lines, project


def did(lines: list[Line], what: str, answer: str | None = None) -> list[Line]:
    return [line for line in lines if line["did"] == what and answer in (None, line.get("answer"))]


def by(lines: list[Line], *keys: str) -> dict[tuple[Any, ...], list[Line]]:
    grouped = defaultdict(list)
    for line in lines:
        grouped[tuple(line[key] for key in keys)].append(line)
    return grouped


def all_that_can_go_wrong_did(lines: list[Line]) -> None:
    claims = did(lines, "claim")
    assert len(claims) == stress.PROCESSES * stress.CLAIMS
    for answer in ("claimed", "held", "completed"):
        assert len(did(lines, "claim", answer)) > 50, answer
    assert len(did(lines, "claim", "unknown")) < 40
    for what in ("save", "finish"):
        assert len(did(lines, what, "accepted")) > 50, what
        assert len(did(lines, what, "refused")) > 10, what
    assert len(did(lines, "force")) > 10
    assert {line["taken"] for line in did(lines, "effect")} == {True, False}
    attempts = by(did(lines, "claim", "claimed"), "job", "generation")
    assert any(len(grants) > 1 for grants in attempts.values()), "takeovers"


def tokens_of_a_lock_strictly_grow_1(lines: list[Line]) -> None:
    for grants in by(did(lines, "claim", "claimed"), "lock").values():
        fences = [line["fence"] for line in grants]
        assert len(set(fences)) == len(fences)
        for one in grants:
            for other in grants:
                if one["at"][1] < other["at"][0]:
                    assert one["fence"] < other["fence"]


def no_write_of_an_older_token_is_accepted_2(lines: list[Line]) -> None:
    for key in ("lock", "job"):
        grants = by(did(lines, "claim", "claimed"), key)
        for what in ("save", "finish"):
            for write in did(lines, what, "accepted"):
                later = [g for g in grants[(write[key],)] if g["fence"] > write["fence"]]
                if what == "finish" and _said_again(lines, write):
                    continue
                assert all(g["at"][1] >= write["at"][0] for g in later), write


def nothing_is_accepted_after_a_lock_was_freed_by_force_2(lines: list[Line]) -> None:
    granted = {line["fence"]: line for line in did(lines, "claim", "claimed")}
    forced = by(did(lines, "force"), "lock")
    for write in did(lines, "save", "accepted"):
        grant = granted[write["fence"]]
        for force in forced[(write["lock"],)]:
            assert not (grant["at"][1] < force["at"][0] and force["at"][1] < write["at"][0])


def _said_again(lines: list[Line], write: Line) -> bool:
    """Whether this lease had finished before: saying it again is no error, and changes nothing."""
    return any(
        line["fence"] == write["fence"] and line["at"][1] <= write["at"][0]
        for line in did(lines, "finish", "accepted")
    )


def there_is_one_outcome_for_each_generation_3(lines: list[Line]) -> None:
    for finishes in by(did(lines, "finish", "accepted"), "job", "generation").values():
        assert len({line["fence"] for line in finishes}) == 1
    meant = {(line["job"], line["generation"], line["blob"]) for line in did(lines, "finish")}
    told = by(did(lines, "claim", "completed"), "job", "generation")
    for (job, generation), answers in told.items():
        (outcome,) = {line["outcome"] for line in answers}
        assert (job, generation, outcome) in meant
        for line in did(lines, "finish", "accepted"):
            if (line["job"], line["generation"]) == (job, generation):
                assert line["blob"] == outcome


def a_recorded_step_never_changes_and_every_later_attempt_has_it_5_6(lines: list[Line]) -> None:
    saves = by(did(lines, "save", "accepted"), "job", "step")
    loads = by(did(lines, "load"), "job")
    grants = {line["fence"]: line for line in did(lines, "claim", "claimed")}
    meant = {(line["job"], line["step"], line["blob"]) for line in did(lines, "save")}
    for (job, name), accepted in saves.items():
        (blob,) = {line["blob"] for line in accepted}
        saved_at = min(line["at"][1] for line in accepted)
        for load in loads[(job,)]:
            if name in load["steps"]:
                assert load["steps"][name] == blob
            else:
                assert grants[load["fence"]]["at"][0] < saved_at, "it would be called again"
    for (job,), each in loads.items():
        for load in each:
            assert {(job, name, blob) for name, blob in load["steps"].items()} <= meant


def nothing_is_stuck_9(lines: list[Line], project: str) -> None:
    """Every job can be finished now, one after the other; and no lock is left."""
    store = FirestoreStore(parse(f"firestore://{project}"))
    granted: dict[str, int] = {}
    for line in did(lines, "claim", "claimed"):
        granted[line["lock"]] = max(line["fence"], granted.get(line["lock"], 0))
    for (lock, job), _ in by(did(lines, "claim"), "lock", "job").items():
        claim = request(job, "last")
        claim = type(claim)(
            **{
                **vars(claim),
                "job": JobRef("acme", "task", job),
                "lock": LockRef("acme", (lock,)),
                "submission": "last",
            }
        )
        answer = store.claim(claim)
        if isinstance(answer, Held):
            time.sleep(answer.retry_after)  # the time the store itself names
            answer = store.claim(claim)
        if isinstance(answer, Claimed):
            assert answer.lease.fence > granted[lock]
            store.finish(answer.lease, success())
        else:
            assert isinstance(answer, Completed)
    assert store.list_locks("acme") == []
    store.close()
