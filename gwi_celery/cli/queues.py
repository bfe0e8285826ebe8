"""``celery -A app gwi queues`` and ``gwi delayed``."""

from __future__ import annotations

import time
from typing import Any

import click

from gwi_celery import queues as verbs
from gwi_celery.cli.frame import Column, Exit, command, confirm, end, yes
from gwi_celery.queues import Waiting, parked, settling


@click.group()
def queues() -> None:
    """Depths, ages, consumers, dead letters; pause and resume."""


@command(
    queues,
    "list",
    Column("name", title="queue", whole=True),
    Column("ready", "integer?"),
    Column("delayed", "integer?"),
    Column("leased", "integer?"),
    Column("oldest", "number?", show="age"),
    Column("consumers", "integer?"),
    Column("dead", "integer?"),
    Column("paused", "boolean"),
)
def list_(app: Any) -> list[dict[str, Any]]:
    """List queues at a glance; ``-`` is what the broker can't tell."""
    return [dict(vars(state)) for state in verbs.queues(app)]


_PAUSED = (Column("queue"), Column("paused", "boolean"))


@command(queues, "pause", *_PAUSED, single=True)
@click.argument("queue")
def pause(app: Any, queue: str) -> dict[str, Any]:
    """Let no worker begin with messages of QUEUE; calls are accepted, and running jobs finish."""
    verbs.pause(app, queue)
    return {"queue": queue, "paused": True}


@command(queues, "resume", *_PAUSED, single=True)
@click.argument("queue")
def resume(app: Any, queue: str) -> dict[str, Any]:
    """Undo pause."""
    verbs.resume(app, queue)
    return {"queue": queue, "paused": False}


@click.group()
def delayed() -> None:
    """What waits for its time: an ETA, a retry, a lock, a limit."""


@command(
    delayed,
    "list",
    Column("queue"),
    Column("id", whole=True),
    Column("task"),
    Column("tenant"),
    Column("run_id", title="run"),
    Column("task_id", title=""),
    Column("published_at", "number", title=""),
    Column("due", "number", title=""),
    Column("due_in", "number", show="age", title="due in"),
)
@click.option("-Q", "--queue")
def list_delayed(app: Any, queue: str | None) -> list[dict[str, Any]]:
    """List what waits, by when it is due."""
    now = time.time()
    found = sorted(verbs.delayed(app, queue), key=lambda waiting: waiting.due)
    return [{**vars(w), "due_in": max(w.due - now, 0.0)} for w in found]


def _chosen(
    app: Any, deed: str, ids: tuple[str, ...], queue: str | None, everything: bool, sure: bool
) -> list[Waiting]:
    if not (ids or everything):
        end(Exit.USAGE, f"say which to {deed}: ids (of messages or tasks), or --all")
    waiting = list(verbs.delayed(app, queue))
    chosen = [w for w in waiting if everything or w.id in ids or w.task_id in ids]
    confirm(deed, len(chosen), len(waiting), sure=sure, what="delayed messages match")
    return chosen


@command(delayed, "now", Column("released", "integer"), single=True)
@click.argument("ids", nargs=-1)
@click.option("-Q", "--queue")
@click.option("--all", "everything", is_flag=True)
@yes
def now(
    app: Any, ids: tuple[str, ...], queue: str | None, everything: bool, yes: bool
) -> dict[str, Any]:
    """Deliver them now; what waits for a lock may have to wait again."""
    chosen = _chosen(app, "deliver", ids, queue, everything, yes)
    return {"released": _count(settling.released(app, chosen), len(chosen))}


@command(delayed, "cancel", Column("cancelled", "integer"), single=True)
@click.argument("ids", nargs=-1)
@click.option("-Q", "--queue")
@click.option("--all", "everything", is_flag=True)
@yes
def cancel(
    app: Any, ids: tuple[str, ...], queue: str | None, everything: bool, yes: bool
) -> dict[str, Any]:
    """Let them never run. The job of a reliable task ends as cancelled."""
    chosen = _chosen(app, "cancel", ids, queue, everything, yes)
    return {"cancelled": _count(settling.cancelled(app, chosen), len(chosen))}


def _count(done: settling.Settled, chosen: int) -> int:
    """How many; on Pub/Sub also say how many workers answered: what others have parked stays."""
    if done.workers is not None:
        line = f"{parked.answered(done.workers)}: {done.count} of {chosen} done"
        if done.count < chosen:
            line += "; ask again in ten minutes for what none of them had parked"
        click.echo(line, err=True)
    return done.count
