"""``celery -A app gwi limits``: what is in force across workers, who holds places, and changes."""

from __future__ import annotations

import time
from typing import Any

import click

from gwi_celery import limits as verbs
from gwi_celery.cli.frame import Column, Exit, command, confirm, end, span, yes
from gwi_celery.limits import LimitState

#: Holders that a table names.
_NAMED = 3


@click.group()
def limits() -> None:
    """How many jobs run at once, or begin in a time, across all workers.

    (Celery's rate_limit is each worker's own.)
    """


@command(
    limits,
    "list",
    Column("limit", whole=True),
    Column("of", "object", title=""),
    Column("filled", title="of"),
    Column("max_running", "integer?", title=""),
    Column("rate", "string?", title=""),
    Column("allows"),
    Column("held", "integer?"),
    Column("by", title="held by"),
    Column("set_by", title="set by"),
    Column("set_at", "number?", title=""),
    Column("tasks", "array", title=""),
    Column("holders", "array", title=""),
)
def list_(app: Any) -> list[dict[str, Any]]:
    """List limits: what is in force, and who holds places. "as coded": nobody has changed it."""
    return [_row(state) for state in verbs.find(app=app)]


def _row(state: LimitState) -> dict[str, Any]:
    now = time.time()
    running = [place for place in state.held if not place.of_rate]
    named = [f"{p.owner.partition(' ')[0]} ({span(max(now - p.taken_at, 0))})" for p in running]
    more = len(named) - _NAMED
    return {
        "limit": state.name,
        "of": dict(state.of),
        "filled": " ".join(f"{argument}={value}" for argument, value in state.of.items()),
        "max_running": state.max_running,
        "rate": state.rate,
        "allows": state.rate or f"{state.max_running} at once",
        "held": state.used,
        "by": ", ".join(named[:_NAMED]) + (f" and {more} more" if more > 0 else ""),
        "set_by": state.set_by or "as coded",
        "set_at": state.set_at,
        "tasks": list(state.tasks),
        "holders": [
            {
                "worker": place.owner.partition(" ")[0],
                "tenant": place.job.tenant,
                "task": place.job.task,
                "key": place.job.key,
                "since": place.taken_at,
                "until": place.free_at,
            }
            for place in state.held
        ],
    }


_of = click.option("--of", "of", multiple=True, help="Only for this ARGUMENT=VALUE; repeatable.")


def _filled(of: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in of:
        argument, equals, value = each.partition("=")
        if not equals:
            raise click.BadParameter(f"{each!r} has no value: write --of tenant_id=acme")
        found[argument] = value
    return found


@command(limits, "set")
@click.argument("name")
@click.option("--max-running", type=int, help="Jobs at once.")
@click.option("--rate", help="Starts in a time: 500/m, 10/s, 5/10s.")
@_of
def set_(
    app: Any, name: str, max_running: int | None, rate: str | None, of: tuple[str, ...]
) -> None:
    """Change the limit NAME for all workers, in place of what the code says.

    NAME is as in the code, such as '{tenant_id}'.
    """
    verbs.set(name, max_running=max_running, rate=rate, of=_filled(of), app=app)
    click.echo(f"limit {name!r} is {rate or f'{max_running} at once'} for all workers now")


@command(limits, "clear", Column("cleared", "integer"), single=True)
@click.argument("name", required=False)
@_of
@click.option("--all", "everything", is_flag=True, help="All that is set.")
@yes
def clear(
    app: Any, name: str | None, of: tuple[str, ...], everything: bool, yes: bool
) -> dict[str, Any]:
    """Undo what was set for NAME: what the code says applies again."""
    if (name is None) != everything:
        end(Exit.USAGE, "say which to clear: a limit's NAME, or --all")
    changed = verbs.changed(app=app)
    values = _filled(of)
    chosen = [s for s in changed if everything or (s.name == name and (not of or s.of == values))]
    confirm("clear", len(chosen), len(changed), sure=yes, what="settings match")
    once = {(s.name, *sorted(s.of.items())): s for s in chosen}.values()
    return {"cleared": sum(verbs.clear(s.name, of=s.of, app=app) for s in once)}
