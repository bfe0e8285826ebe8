"""``celery -A app gwi jobs`` and ``gwi locks``: find jobs, say why they wait, and mend them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import click

from gwi_celery import jobs as verbs
from gwi_celery.cli.frame import (
    SHAPES,
    SPAN,
    Column,
    Exit,
    Progress,
    Shape,
    command,
    confirm,
    end,
    limited,
    options,
    yes,
)
from gwi_celery.cli.frame import show as print_rows
from gwi_celery.errors import InvalidCall
from gwi_celery.integration import store_for
from gwi_celery.jobs import JobRecord, JobStatus, LockRecord, LockRef
from gwi_celery.text import from_json

#: Jobs that are read at a time.
_PAGE = 100


@click.group()
def jobs() -> None:
    """Find any job, say why it waits, and mend it.

    A job is named by its task's id.
    """


_filtered = options(
    click.option("--status", type=click.Choice([status.value for status in JobStatus])),
    click.option("--tenant", help="Of this tenant; of all, if left out."),
    click.option("--task"),
    click.option("--run", help="A run's id."),
    click.option("--label", help="NAME=VALUE, as given with the call."),
    click.option("--error", help="The class of its last error."),
    click.option(
        "--older-than", type=SPAN, help="First recorded at least this long ago (10m, 3h)."
    ),
    click.option("--within", type=SPAN, help="First recorded within this time."),
)


def _found(
    app: Any, within: float | None, at_a_time: int = _PAGE, **given: Any
) -> Iterator[JobRecord]:
    since = None if within is None else time.time() - within
    page = None
    while True:
        found = verbs.find(app=app, since=since, limit=at_a_time, page=page, **given)
        yield from found.jobs
        page = found.next_token
        if page is None:
            return


_COLUMNS = (
    Column("status"),
    Column("task"),
    Column("tenant"),
    Column("run_id", "string?", title="run"),
    Column("key", title=""),
    Column("age", "number", show="age"),
    Column("task_id", title="id", whole=True),
    Column("queue", "string?", title=""),
    Column("generation", "integer", title=""),
    Column("attempt", "integer", title=""),
    Column("worker", title=""),
    Column("waits_for", "string?", title=""),
    Column("error", title=""),
    Column("created_at", "number", title=""),
    Column("updated_at", "number", title=""),
    Column("labels", "object", title=""),
)


def _row(record: JobRecord) -> dict[str, Any]:
    waits = record.waits
    return {
        "status": record.status.value,
        "task": record.job.task,
        "tenant": record.job.tenant,
        "key": record.job.key,
        "run_id": record.run_id,
        "age": max(time.time() - record.created_at, 0.0),
        "task_id": record.origin.task_id or record.submission,
        "queue": record.origin.queue,
        "generation": record.generation,
        "attempt": record.attempt,
        "worker": record.worker,
        "waits_for": None if waits is None else f"{waits.kind} {waits.what}",
        "error": f"{record.error_type}: {record.error}" if record.error_type else "",
        "created_at": record.created_at,
        "updated_at": record.updated_at,
        "labels": dict(record.origin.labels),
    }


@command(jobs, "list", *_COLUMNS)
@_filtered
@limited
def list_(app: Any, limit: int, **given: Any) -> list[dict[str, Any]]:
    """List jobs that a worker has seen, newest first."""
    rows: list[dict[str, Any]] = []
    for record in _found(app, at_a_time=limit + 1, **given):
        if len(rows) == limit:
            click.echo(f"the newest {limit}, and there are more: see --limit", err=True)
            break
        rows.append(_row(record))
    return rows


#: What `show --tree` prints, parents before their children.
_TREE = SHAPES.setdefault(
    "jobs show --tree",
    Shape(
        "jobs show --tree",
        (
            *(Column("job", whole=True), Column("status"), Column("tenant")),
            *(Column("run_id", "string?", title="run"), Column("age", "number", show="age")),
            *(Column("task_id", title="id", whole=True), Column("depth", "integer", title="")),
            *(Column("task", title=""), Column("error", title="")),
        ),
    ),
)


@command(
    jobs,
    "show",
    Column("explanation", title="it"),
    *_COLUMNS[:5],
    *(Column("task_id"), Column("queue", "string?"), Column("generation", "integer")),
    *(Column("attempt", "integer"), Column("crashes", "integer"), Column("worker")),
    *(Column("waits_for", "string?"), Column("error"), Column("lock", "string?")),
    *(Column("lock_owner", "string?"), Column("labels", "object"), Column("code_version")),
    *(Column("created_at", "number", show="time"), Column("updated_at", "number", show="time")),
    *(Column("expires_at", "number?", show="time"), Column("parent_id", "string?")),
    Column("attempts", "array", title=""),
    Column("steps", "array", title=""),
    Column("children", "array", title=""),
    Column("dead_letters", "array", title=""),
    Column("history", title="attempts", show="text"),
    Column("recorded", title="steps", show="text"),
    single=True,
)
@click.argument("id")
@click.option(
    "--tree", is_flag=True, help="Only the states of the job and of all that it has called."
)
def show(app: Any, id: str, tree: bool) -> dict[str, Any] | None:
    """Show all of one job but its arguments: attempts, steps, children, its lock, dead letters."""
    if tree:
        rows = [
            {**_row(record), "depth": depth, "job": f"{'  ' * depth}{record.job.task}"}
            for depth, record in verbs.descendants(id, app=app)
        ]
        if not rows:
            end(Exit.NOTHING, f"no record of {id!r}: {verbs.explain(id, app=app)}")
        print_rows(_TREE, rows, as_json=click.get_current_context().params["as_json"])
        return None
    details = verbs.get(id, app=app)
    if details is None:
        end(Exit.NOTHING, f"no record of {id!r}: {verbs.explain(id, app=app)}")
    record, lock = details.record, details.lock
    attempts = [
        {
            "generation": past.generation,
            "number": past.number,
            "worker": past.worker,
            "fence": past.fence,
            "task_id": past.task_id,
            "began": past.began,
            "ended": past.ended,
            "how": None if past.end is None else past.end.how,
            "error": "" if past.end is None else f"{past.end.error_type} {past.end.error}".strip(),
        }
        for past in record.attempts
    ]
    steps = [
        {"name": step.name, "kind": step.kind.value, "bytes": step.size, "saved_at": step.saved_at}
        for step in details.steps
    ]
    return {
        **_row(record),
        "explanation": details.explanation,
        "crashes": record.crashes,
        "lock": None if record.lock is None else "/".join(record.lock.scope),
        "lock_owner": None if lock is None else lock.owner,
        "code_version": record.origin.code_version,
        "expires_at": record.expires_at,
        "parent_id": record.origin.parent_id,
        "attempts": attempts,
        "steps": steps,
        "children": [child.origin.task_id for child in details.children],
        "dead_letters": [dead.id for dead in details.dead_letters],
        "history": "\n".join(
            f"{a['generation']}.{a['number']} {a['how'] or 'runs'} on {a['worker']} {a['error']}"
            for a in attempts
        ),
        "recorded": "\n".join(f"{s['name']} ({s['kind']}, {s['bytes']} bytes)" for s in steps),
    }


@command(
    jobs, "explain", Column("task_id", title="id"), Column("explanation", title="it"), single=True
)
@click.argument("id")
def explain(app: Any, id: str) -> dict[str, Any]:
    """Say in one sentence why a job is in the state that it is in."""
    from gwi_celery import queues

    sentence = verbs.explain(id, app=app)
    details = verbs.get(id, app=app)
    where = queues.where(app, id) if details is None else None
    if where is not None:
        sentence = where
    elif details is not None and not details.record.status.terminal:
        queue = details.record.origin.queue
        if queue and queues.is_paused(app, queue):
            sentence += f"; its queue is paused: `gwi queues resume {queue}`"
    dead = next(queues.dead_letters(app, ids=[id]), None)
    if details is None and where is None and dead is None:
        end(Exit.NOTHING, f"no record of {id!r}: {sentence}")
    if dead is not None:
        sentence += (
            f"; its message is in the dead letter of {dead.queue} ({dead.reason}): "
            f"`gwi dlq redrive {dead.id} -Q {dead.queue}`"
        )
    return {"task_id": id, "explanation": sentence}


def _chosen(
    app: Any,
    deed: str,
    ids: tuple[str, ...],
    sure: bool,
    given: dict[str, Any],
    ended: bool,
    until: float | None = None,
) -> list[JobRecord]:
    """The jobs that a command is to act on, once that was confirmed.

    ``until``: those that have changed since are left out.
    """
    if ids:
        found = [verbs.get(id, app=app) for id in ids]
        unknown = [id for id, one in zip(ids, found, strict=True) if one is None]
        if unknown:
            end(Exit.NOTHING, f"no record of {', '.join(unknown)}: see `gwi jobs list`")
        known = [one.record for one in found if one is not None]
    elif any(value is not None for value in given.values()):
        known = list(_found(app, **given))
    else:
        end(Exit.USAGE, f"say which to {deed}: ids, or a filter such as --tenant")
    chosen = [
        record
        for record in known
        if record.status.terminal is ended and (until is None or record.updated_at <= until)
    ]
    state = "ended" if ended else "unfinished"
    confirm(deed, len(chosen), len(known), sure=sure, what=f"jobs that match are {state}")
    return chosen


@command(jobs, "cancel", Column("cancelled", "integer"), single=True)
@click.argument("ids", nargs=-1)
@_filtered
@click.option("--reason", default="cancelled by an operator", help="What their callers get.")
@click.option("--tree", is_flag=True, help="Also the jobs that they have called, and so on.")
@yes
def cancel(
    app: Any, ids: tuple[str, ...], reason: str, tree: bool, yes: bool, **given: Any
) -> dict[str, Any]:
    """End jobs as cancelled: one that runs stops at its next step. If interrupted, run it again."""
    chosen = _chosen(app, "cancel", ids, yes, given, ended=False)
    done = 0
    with Progress("cancel", len(chosen)) as moved:
        for record in chosen:
            done += len(verbs.cancel(record, reason, tree=tree, app=app))
            moved(1)
    return {"cancelled": done}


@command(jobs, "replay", Column("replayed", "integer"), Column("task_ids", "array"), single=True)
@click.argument("ids", nargs=-1)
@_filtered
@click.option("--from-step", help="Keep what was recorded before this step.")
@click.option("--resume", is_flag=True, help="Keep all that was recorded.")
@click.option(
    "--until", type=float, help="Go on with a replay that was interrupted: the time it printed."
)
@yes
def replay(
    app: Any,
    ids: tuple[str, ...],
    from_step: str | None,
    resume: bool,
    until: float | None,
    yes: bool,
    **given: Any,
) -> dict[str, Any]:
    """Run ended jobs again with the calls they had, from the start unless told otherwise.

    Jobs that can't be replayed are named, and the others run.
    """
    chosen = _chosen(app, "replay", ids, yes, given, ended=True, until=until)
    # By the store's clock. A job that was replayed has changed since; until a worker begins it, another
    # replay has the same generation, and so is a duplicate.
    latest = max(record.updated_at for record in chosen)
    click.echo(f"if interrupted, run the same command again with --until {latest!r}", err=True)
    made, left = [], []
    with Progress("replay", len(chosen)) as moved:
        for record in chosen:
            try:
                result = verbs.replay(record, from_step=from_step, resume=resume, app=app)
                made.append(result.id)
            except InvalidCall as exc:
                left.append(f"{record.origin.task_id or record.submission}: {exc}")
            moved(1)
    for why in left:
        click.echo(f"not replayed: {why}", err=True)
    if not made:
        end(Exit.FAILED, f"none of {len(chosen)} could be replayed")
    return {"replayed": len(made), "task_ids": made}


@command(jobs, "fork", Column("task_id"), single=True)
@click.argument("id")
@click.option("--run", "run_id", required=True, help="The new job's run id.")
@click.option("--from-step", help="Take over the steps recorded before this one; all, if left out.")
@click.option("--set", "changes", multiple=True, metavar="NAME=JSON", help="Change an argument.")
def fork(
    app: Any, id: str, run_id: str, from_step: str | None, changes: tuple[str, ...]
) -> dict[str, Any]:
    """Start a new job with the call of another, and with its earlier steps."""
    changed = {}
    for change in changes:
        name, equals, value = change.partition("=")
        try:
            changed[name] = from_json(value)
        except ValueError:
            equals = ""
        if not (name and equals):
            raise click.BadParameter(f"{change!r}: write NAME=JSON, such as amount=3")
    made = verbs.fork(id, run_id=run_id, from_step=from_step, changes=changed, app=app)
    return {"task_id": made.id}


# --- locks ----------------------------------------------------------------------------------------


@click.group()
def locks() -> None:
    """Who holds what, and until when."""


@command(
    locks,
    "list",
    Column("tenant"),
    Column("scope", whole=True),
    Column("owner", whole=True),
    Column("task"),
    Column("key", title=""),
    Column("fence", "integer", title=""),
    Column("expires_at", "number", title=""),
    Column("left", "number", show="age", title="free in"),
    Column("expired", "boolean"),
)
@click.option("--tenant", help="Of this tenant; those of all that run now, if left out.")
def list_locks(app: Any, tenant: str | None) -> list[dict[str, Any]]:
    """List locks that are held or have expired."""
    found = store_for(app).list_locks(tenant) if tenant is not None else _held(app)
    return [
        {
            **{name: getattr(lock, name) for name in ("tenant", "owner", "fence", "expires_at")},
            "scope": "/".join(lock.scope),
            "task": lock.job.task,
            "key": lock.job.key,
            "left": max(lock.expires_at - time.time(), 0.0),
            "expired": lock.expired,
        }
        for lock in found
    ]


def _held(app: Any) -> list[LockRecord]:
    """The locks of the jobs that run: no store lists the locks of all tenants."""
    store = store_for(app)
    found: dict[str, LockRecord] = {}
    for record in _found(app, None, status=JobStatus.RUNNING):
        lock = None if record.lock is None else store.get_lock(record.lock)
        if lock is not None:
            found.setdefault(lock.lock_id, lock)
    return list(found.values())


@command(locks, "release", Column("released", "boolean"), single=True)
@click.argument("tenant")
@click.argument("scope")
@yes
def release(app: Any, tenant: str, scope: str, yes: bool) -> dict[str, Any]:
    """Free the lock SCOPE (as `locks list` shows it) of TENANT: its holder's writes fail from then on.

    A holder that is dead loses it by itself after lock_ttl: this is for one that can't be reached.
    """
    store = store_for(app)
    named = [lock for lock in store.list_locks(tenant) if "/".join(lock.scope) == scope]
    if not named:
        end(
            Exit.NOTHING,
            f"{tenant!r} has no lock {scope!r}: see `gwi locks list --tenant {tenant}`",
        )
    confirm("release", len(named), len(named), sure=yes, what="locks match")
    freed = [store.force_release(LockRef(lock.tenant, lock.scope)) for lock in named]
    return {"released": any(freed)}
