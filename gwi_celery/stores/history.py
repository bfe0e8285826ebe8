"""What a record tells people: its attempts, what it waits for, its progress. As JSON, in both stores.

Nothing here decides anything. Its size is bounded, however often a job is tried.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from gwi_celery.stores.base import (
    AttemptEnd,
    ClaimRequest,
    JobRef,
    JobStatus,
    LockRef,
    Origin,
    Outcome,
    PastAttempt,
    PlaceRecord,
    Progress,
    Wait,
)
from gwi_celery.stores.limits import LimitRef

#: Attempts that are kept in full; older ones are counted.
KEPT: Final = 20
#: Characters of an error's text, of a worker's name and of a class's name.
LONGEST: Final = 300
#: Characters of the names of a job that is mentioned in another's record.
_LONGEST_NAMES: Final = 1000


@dataclass(frozen=True)
class History:
    """The part of a record that is for people. The attempt that runs is not in ``ended`` yet."""

    worker: str = ""
    ended: Sequence[PastAttempt] = ()
    forgotten: int = 0
    waits: Wait | None = None
    progress: Progress | None = None
    error_type: str = ""
    error: str = ""
    lock: LockRef | None = None

    # --- how a claim, a wait and an end change it ---------------------------------------------

    def claimed(
        self, owner: str, lock: LockRef, vanished: PastAttempt | None, *, first: bool, now: float
    ) -> History:
        """After an attempt has begun; ``first`` if it is the first of its generation.

        ``vanished`` is the attempt that it takes over from: its worker vanished.
        """
        history = self
        if vanished is not None:
            history = self._with(replace(vanished, ended=now, end=AttemptEnd("lost")))
        progress = None if first else self.progress
        return replace(history, worker=worker_of(owner), lock=lock, waits=None, progress=progress)

    def waiting(self, wait: Wait, lock: LockRef, now: float) -> History:
        """After the job has begun to wait."""
        return replace(self, waits=replace(_bounded_wait(wait), since=now), lock=lock)

    def waits_for(self, wait: Wait, lock: LockRef) -> bool:
        """Whether this wait is recorded already."""
        known = self.waits
        return (
            known is not None
            and (known.kind, self.lock) == (wait.kind, lock)
            and (wait.kind == "lock" or known.what == wait.what)
        )

    def progressing(self, progress: Progress, now: float) -> History:
        return replace(self, progress=replace(progress, text=short(progress.text), at=now))

    def over(self, running: PastAttempt | None, end: AttemptEnd, now: float) -> History:
        """After the attempt ``running`` has ended. None: none ran, and the job no longer waits."""
        if running is None:
            return replace(self, waits=None)
        end = replace(end, error_type=short(end.error_type), error=short(end.error))
        ended = self._with(replace(running, ended=now, end=end))
        failed = bool(end.error_type)
        waits = None
        if end.retry_at is not None:
            what = f"{end.error_type}: {end.error}" if failed else end.how
            waits = Wait("retry", short(what), since=now, until=end.retry_at)
        if failed or end.how == JobStatus.SUCCEEDED.value:
            ended = replace(ended, error_type=end.error_type, error=end.error)
        return replace(ended, waits=waits)

    def _with(self, past: PastAttempt) -> History:
        assert past.ended is not None
        past = replace(past, began=min(past.began, past.ended))  # the two times are by two clocks
        kept = [*self.ended, past]
        more = max(len(kept) - KEPT, 0)
        return replace(self, ended=tuple(kept[more:]), forgotten=self.forgotten + more)

    # --- as JSON ------------------------------------------------------------------------------

    def dumps(self) -> str:
        """Everything but the error and the lock, which are stored in separate fields."""
        kept: dict[str, Any] = {"worker": self.worker}
        if self.ended:
            kept["ended"] = [_attempt_form(each) for each in self.ended]
        if self.forgotten:
            kept["forgotten"] = self.forgotten
        if self.waits is not None:
            kept["waits"] = _wait_form(self.waits)
        if self.progress is not None:
            of = self.progress
            kept["progress"] = [of.done, of.total, of.text, of.at]
        return json.dumps(kept, separators=(",", ":"))


def loads(
    text: str | None, error_type: str = "", error: str = "", lock: LockRef | None = None
) -> History:
    """Read what :meth:`History.dumps` returned; None: a record of version 0.1, which has none."""
    kept = json.loads(text) if text else {}
    waits, progress = kept.get("waits"), kept.get("progress")
    return History(
        worker=kept.get("worker", ""),
        ended=tuple(_attempt_of(each) for each in kept.get("ended", ())),
        forgotten=kept.get("forgotten", 0),
        waits=None if waits is None else _wait_of(waits),
        progress=None if progress is None else Progress(*progress),
        error_type=error_type,
        error=error,
        lock=lock,
    )


def end_of(outcome: Outcome) -> AttemptEnd:
    return outcome.end or AttemptEnd(outcome.status.value)


def attempts(ended: Sequence[PastAttempt], running: PastAttempt | None) -> Sequence[PastAttempt]:
    """All attempts that are known, including the one that runs."""
    return ended if running is None else (*ended, running)


def worker_of(owner: str) -> str:
    """The process of an owner ("host:pid task id")."""
    return short(owner.partition(" ")[0])


def short(text: str) -> str:
    """The first line, cut to 300 characters."""
    line = storable(text.strip().partition("\n")[0])
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def storable(text: str) -> str:
    """Without lone surrogates, which UTF-8 can't encode."""
    return text.encode("utf-8", "replace").decode()


def label_term(name: str, value: str) -> str:
    """A label as one text. No name contains a "="."""
    return storable(f"{name}={value}")


def call_term(task_id: str) -> str:
    """A call's id as one text: as a label with an empty name."""
    return label_term("", task_id)


def terms(origin: Origin, ended: Sequence[PastAttempt]) -> list[str]:
    """All terms by which a job is found: its labels, and the ids of the calls it was tried for."""
    calls = dict.fromkeys([*(past.task_id for past in ended), origin.task_id])
    return [
        *(label_term(*label) for label in origin.labels.items()),
        *(call_term(task_id) for task_id in calls if task_id),
    ]


def dump_origin(origin: Origin) -> str:
    """Everything but the envelope, as JSON."""
    return json.dumps(
        {
            "root_id": origin.root_id,
            "parent_id": origin.parent_id,
            "queue": origin.queue,
            "labels": dict(origin.labels),
            "code_version": origin.code_version,
            "task_id": origin.task_id,
        },
        separators=(",", ":"),
    )


def load_origin(text: str | None) -> Origin:
    return Origin(**json.loads(text)) if text else Origin()


def dump_place(limit: LimitRef, request: ClaimRequest) -> str:
    """Who takes a place of that limit, as JSON."""
    job = request.job
    about = [limit.name, dict(limit.values), request.owner, job.tenant, job.task, job.key]
    return json.dumps(about)


def load_place(
    text: str, *, limit_id: str, of_rate: bool, taken_at: float, free_at: float
) -> PlaceRecord:
    """The place of which :func:`dump_place` returned ``text``."""
    name, values, owner, *job = json.loads(text)
    return PlaceRecord(limit_id, name, values, of_rate, owner, JobRef(*job), taken_at, free_at)


def _bounded_wait(wait: Wait) -> Wait:
    return replace(wait, what=short(wait.what), holder=short(wait.holder))


def _wait_form(wait: Wait) -> list[Any]:
    job = wait.holder_job
    of = None if job is None else [job.tenant, job.task, job.key]
    if of is not None and sum(map(len, of)) > _LONGEST_NAMES:
        of = None  # too long to be kept
    form = [wait.kind, wait.what, wait.holder, of, wait.since, wait.until]
    return [*form, wait.limit_id] if wait.limit_id else form


def _wait_of(form: list[Any]) -> Wait:
    kind, what, holder, job, *rest = form
    return Wait(kind, what, holder, None if job is None else JobRef(*job), *rest)


def _attempt_form(past: PastAttempt) -> list[Any]:
    end = past.end or AttemptEnd("")
    return [
        *(past.generation, past.number, past.worker, past.fence, past.task_id),
        *(past.began, past.ended, end.how, end.error_type, end.error, end.retry_at),
    ]


def _attempt_of(form: list[Any]) -> PastAttempt:
    generation, number, worker, fence, task_id, began, ended, *end = form
    return PastAttempt(generation, number, worker, fence, task_id, began, ended, AttemptEnd(*end))
