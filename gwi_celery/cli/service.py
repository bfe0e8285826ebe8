"""``celery -A app gwi workers|config|cleanup|tail``."""

from __future__ import annotations

import json
from typing import Any

import click

from gwi_celery import upkeep
from gwi_celery.cli.frame import SHAPES, Column, Shape, Span, command, shown
from gwi_celery.cli.root import gwi
from gwi_celery.config import SETTINGS
from gwi_celery.integration import broker_for, settings_for, source_of, store_for


@command(
    gwi,
    "workers",
    Column("name", whole=True),
    Column("pid", "integer?"),
    Column("pool", "string?"),
    Column("places", "integer?"),
    Column("runs", "integer"),
    Column("queues", "array", title=""),
    Column("tasks", "array"),
)
@click.option("--timeout", type=Span(0.1, 600.0), default=1.0, show_default=True)
def workers(app: Any, timeout: float) -> list[dict[str, Any]]:
    """List the workers that answer within the timeout (seconds), and what runs there."""
    asked = app.control.inspect(timeout=timeout)
    stats = asked.stats() or {}
    if not stats:
        click.echo(
            "no worker answers: none runs, or remote control is off (provisioned Pub/Sub)",
            err=True,
        )
        return []
    active, consumed = asked.active() or {}, asked.active_queues() or {}
    rows = []
    for name, answer in sorted(stats.items()):
        pool = answer.get("pool") or {}
        running = active.get(name) or []
        implementation = pool.get("implementation")
        rows.append(
            {
                "name": name,
                "pid": answer.get("pid"),
                "pool": implementation
                and str(implementation).rpartition(":")[0].rpartition(".")[2],
                "places": pool.get("max-concurrency"),
                "runs": len(running),
                "queues": [str(q.get("name")) for q in consumed.get(name) or []],
                "tasks": [f"{task.get('name')} {task.get('id')}" for task in running],
            }
        )
    return rows


@command(
    gwi,
    "config",
    Column("name", whole=True),
    Column("value"),
    Column("source", whole=True),
    Column("help", title=""),
)
@click.option("--all", "everything", is_flag=True, help="Defaults, too.")
def config(app: Any, everything: bool) -> list[dict[str, Any]]:
    """List the settings in force, and where each came from. Secrets are not shown."""
    settings = settings_for(app)
    rows = []
    for name, field in SETTINGS.items():
        value, source = getattr(settings, name), source_of(app, name)
        if source == "default" and not everything:
            continue
        shown = json.dumps(value, default=str) if field.repr or not value else "(set)"
        rows.append(
            {
                "name": name,
                "value": shown,
                "source": source,
                "help": field.metadata["help"],
            }
        )
    effective = {"broker": app.conf.broker_url, "store": settings.effective_store_url}
    for name, url in effective.items():
        rows.append(
            {"name": name, "value": str(url), "source": "in force", "help": f"the {name}'s URL"}
        )
    return rows


@command(gwi, "cleanup", Column("deleted", "integer"), single=True)
def cleanup(app: Any) -> dict[str, Any]:
    """Delete what has expired; on Pub/Sub also the queues that killed processes left (takes a while).

    That also happens without this command: workers delete what has expired from embedded files, TTL
    policies on Firestore; Pub/Sub deletes such queues after a day.
    """
    deleted = upkeep.clean(app) + _swept(app)
    store = store_for(app)
    while found := store.cleanup():
        deleted += found
    return {"deleted": deleted}


def _swept(app: Any) -> int:
    from gwi_celery.brokers.pubsub.broker import PubSubBroker
    from gwi_celery.brokers.pubsub.sweep import sweep

    broker = broker_for(app)
    return sweep(broker) if isinstance(broker, PubSubBroker) else 0


#: Each line of `tail --json`.
_EVENT = SHAPES.setdefault(
    "tail",
    Shape(
        "tail",
        (
            *(Column("at", "number", show="time"), Column("event"), Column("worker")),
            *(
                Column("task", "string?"),
                Column("task_id", "string?"),
                Column("runtime", "number?"),
            ),
        ),
        single=True,
    ),
)


@command(gwi, "tail")
@click.option("--count", type=click.IntRange(1), help="End after this many.")
@click.option("--json", "as_lines", is_flag=True, help="For programs: an object a line.")
def tail(app: Any, count: int | None, as_lines: bool) -> None:
    """Show Celery's events as they happen, of workers that send them (-E)."""
    seen = 0

    def show(event: dict[str, Any]) -> None:
        nonlocal seen
        kind = event.get("type", "?")
        if kind == "worker-heartbeat" or receiver.should_stop:
            return  # one batch may hold several after the last one wanted
        row = {
            "at": event.get("timestamp", 0.0),
            "event": kind,
            "worker": str(event.get("hostname", "")),
            "task": event.get("name"),
            "task_id": event.get("uuid"),
            "runtime": event.get("runtime"),
        }
        if as_lines:
            click.echo(json.dumps(row))
        else:
            parts = [shown(column, row[column.name]) for column in _EVENT.columns]
            click.echo(" ".join(part for part in parts if part != "-").replace("\n", "\\n"))
        seen += 1
        if count is not None and seen >= count:
            receiver.should_stop = True

    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": show})
        try:
            receiver.capture(limit=None, timeout=None, wakeup=False)
        except KeyboardInterrupt:
            return
