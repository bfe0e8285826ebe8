"""``celery -A app gwi dlq``: dead letters, why they died, and what to do with them."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import click

from gwi_celery import queues
from gwi_celery.brokers.base import KINDS_OF_DEATH
from gwi_celery.cli.frame import (
    SPAN,
    Column,
    Exit,
    Progress,
    command,
    confirm,
    end,
    limited,
    options,
    yes,
)
from gwi_celery.integration import store_for
from gwi_celery.queues import DeadLetter
from gwi_celery.queues.dead import recorded
from gwi_celery.stores.base import JobFilter


@click.group()
def dlq() -> None:
    """Dead letters, and why they died: list, show, redrive, export, import, purge.

    \b
    Reasons:
    """


assert dlq.help is not None
dlq.help += "\n".join(f"  {kind:<13} {text}" for kind, text in KINDS_OF_DEATH.items())

_filtered = options(
    click.option("-Q", "--queue", help="Of this queue; all, if left out."),
    click.option("--reason", type=click.Choice(list(KINDS_OF_DEATH)), help="Why it died."),
    click.option("--task"),
    click.option("--tenant"),
    click.option("--error", help="The error's class."),
    click.option("--text", help="A part of the reason's text."),
    click.option("--older-than", type=SPAN, help="Died at least this long ago (10m, 3h, 2d)."),
    click.option("--within", type=SPAN, help="Died within this time."),
)
#: For a command that can read the broker as well as the records.
_LOOK = click.option(
    "--look",
    is_flag=True,
    help="On Pub/Sub: look through the dead letters themselves, and record those that have no record.",
)


def _matching(app: Any, within: float | None, **given: Any) -> Iterator[DeadLetter]:
    since = None if within is None else time.time() - within
    return queues.dead_letters(app, since=since, **given)


_WHO = (
    Column("queue"),
    Column("id", whole=True),
    Column("reason"),
    Column("task"),
    Column("tenant"),
    Column("run_id", title="run"),
)
_MORE = (
    Column("task_id", title=""),
    Column("error"),
    Column("attempts", "integer", title=""),
    Column("deliveries", "integer", title=""),
    Column("worker", title=""),
    Column("published_at", "number", title=""),
    Column("died_at", "number", title=""),
    Column("expires_at", "number?", title=""),
    Column("age", "number", show="age"),
    Column("text", title=""),
)


def _row(dead: DeadLetter) -> dict[str, Any]:
    return {**vars(dead), "age": max(time.time() - dead.died_at, 0.0)}


@command(dlq, "list", *_WHO, *_MORE)
@_filtered
@_LOOK
@limited
def list_(app: Any, limit: int, **given: Any) -> list[dict[str, Any]]:
    """List dead letters, the latest death first."""
    if recorded(app) is not None and not given["look"]:  # in that order; no more is read
        found = list(islice(_matching(app, at_a_time=limit + 1, **given), limit + 1))
    else:
        found = sorted(_matching(app, **given), key=lambda dead: -dead.died_at)
    if len(found) > limit:
        click.echo(f"the latest {limit}, and there are more: see --limit", err=True)
    return [_row(dead) for dead in found[:limit]]


@command(
    dlq,
    "show",
    *(Column("queue"), Column("id"), Column("reason"), Column("text"), Column("error")),
    *(
        Column("task"),
        Column("task_id", title="task id"),
        Column("tenant"),
        Column("run_id", title="run"),
    ),
    *(Column("attempts", "integer"), Column("deliveries", "integer"), Column("worker")),
    Column("fence", "integer?"),
    *(Column("published_at", "number", show="time"), Column("died_at", "number", show="time")),
    *(Column("expires_at", "number?", show="time"), Column("traceback")),
    *(Column("attributes", "object", title=""), Column("size", "integer?", title="bytes")),
    Column("message", "string?", title=""),
    single=True,
)
@click.argument("id")
@click.option("--message", "with_message", is_flag=True, help="The message itself, arguments too.")
def show_(app: Any, id: str, with_message: bool) -> dict[str, Any] | None:
    """Show all that is known of one, by its id or its task's. In JSON ``message`` is base64."""
    found = list(queues.dead_letters(app, ids=[id]))
    if found and with_message and not found[-1].whole:
        found = list(queues.dead_letters(app, found[-1].queue, ids=[found[-1].id], look=True))
        if found and not found[-1].whole:
            end(Exit.UNAVAILABLE, f"another process is reading {id!r} now: try again in a minute")
    if not found:
        end(Exit.NOTHING, f"no dead letter has the id {id!r}: see `gwi dlq list`")
    dead = found[-1]
    if with_message and not click.get_current_context().params["as_json"]:
        click.echo(dead.data)
        return None
    encoded = base64.b64encode(dead.data).decode("ascii") if dead.whole else None
    size = len(dead.data) if dead.whole else None
    return {**vars(dead), "fence": _fence(app, dead), "size": size, "message": encoded}


def _fence(app: Any, dead: DeadLetter) -> int | None:
    """The fencing token of its last attempt, by its job's record."""
    if not dead.task_id:
        return None
    found = store_for(app).find_jobs(JobFilter(task_id=dead.task_id), limit=1).jobs
    tried = [
        past.fence
        for record in found
        for past in record.attempts
        if past.task_id == dead.task_id and past.began <= dead.died_at
    ]
    return tried[-1] if tried else None


def _chosen(
    app: Any, deed: str, ids: tuple[str, ...], everything: bool, sure: bool, given: dict[str, Any]
) -> list[DeadLetter]:
    """The dead letters that a command is to act on, once that was confirmed."""
    filtered = any(value is not None for value in given.values())
    if not (ids or filtered or everything):
        end(Exit.USAGE, f"say which to {deed}: ids, a filter such as --reason, or --all")
    chosen = list(_matching(app, ids=frozenset(ids) or None, **given))
    total = queues.count(app, given["queue"])
    confirm(deed, len(chosen), total, sure=sure, what="dead letters match")
    return chosen


def _say_missing(count: int) -> None:
    if count > 0:
        click.echo(
            f"{count} were not there: another process is reading them, or took them; try again in a "
            "minute",
            err=True,
        )


@command(dlq, "redrive", Column("redriven", "integer"), single=True)
@click.argument("ids", nargs=-1)
@_filtered
@click.option("--all", "everything", is_flag=True)
@click.option("--from-step", help="Keep what jobs recorded before this step, and no more.")
@click.option("--from-start", is_flag=True, help="Keep nothing that jobs recorded.")
@click.option("--rate", type=float, help="At most this many a second.")
@yes
def redrive(
    app: Any,
    ids: tuple[str, ...],
    everything: bool,
    from_step: str | None,
    from_start: bool,
    rate: float | None,
    yes: bool,
    **given: Any,
) -> dict[str, Any]:
    """Put them back into their queues: a reliable job goes on from its last recorded step.

    If it was interrupted, run it again: it moves those that are left.
    """
    if from_start and from_step:
        end(Exit.USAGE, "give either --from-start or --from-step, not both")
    step = None if from_start else from_step or ""
    chosen = _chosen(app, "redrive", ids, everything, yes, given)
    with Progress("redrive", len(chosen)) as moved:
        done = queues.redrive(app, chosen, from_step=step, rate=rate, moved=moved)
    _say_missing(len(chosen) - done)
    return {"redriven": done}


@command(dlq, "purge", Column("purged", "integer"), single=True)
@click.argument("ids", nargs=-1)
@_filtered
@click.option("--all", "everything", is_flag=True)
@yes
def purge(
    app: Any, ids: tuple[str, ...], everything: bool, yes: bool, **given: Any
) -> dict[str, Any]:
    """Delete them for good."""
    chosen = _chosen(app, "purge", ids, everything, yes, given)
    with Progress("purge", len(chosen)) as purged:
        return {"purged": queues.purge(app, chosen, purged=purged)}


@command(dlq, "export", Column("exported", "integer"), single=True)
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@_filtered
def export(app: Any, file: str, **given: Any) -> dict[str, Any] | None:
    """Write them to FILE (-: stdout) as JSON lines, arguments too; they stay where they are."""
    found = list(_matching(app, look=True, **given))
    whole = [dead for dead in found if dead.whole]
    try:
        with (
            click.open_file(file, "w", encoding="ascii", atomic=file != "-") as out,
            Progress("export", len(whole)) as moved,
        ):
            for line in queues.export(whole):
                out.write(line + "\n")
                moved(1)
    except BrokenPipeError:  # the reader of a pipe has ended
        raise
    except OSError as exc:
        end(Exit.FAILED, f"nothing was exported: {file} can't be written ({exc.strerror})")
    _say_missing(len(found) - len(whole))
    return None if file == "-" else {"exported": len(whole)}


@command(dlq, "import", Column("imported", "integer"), single=True)
@click.argument("file", type=click.File("r"))
def import_(app: Any, file: Any) -> dict[str, Any]:
    """Put what was exported back among the dead letters; those that are still there are left out."""
    try:
        lines = file.readlines()
    except UnicodeDecodeError:
        end(Exit.USAGE, f"nothing was imported: {file.name} is not text: name an exported file")
    with Progress("import", len(lines)) as loaded:
        return {"imported": queues.load(app, lines, file=file.name, loaded=loaded)}
