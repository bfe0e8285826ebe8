"""All commands of ``celery -A app gwi``. Imported when one of them is asked for; see :mod:`.root`."""

from __future__ import annotations

import json

import click

from gwi_celery.cli.dlq import dlq
from gwi_celery.cli.doctor import doctor
from gwi_celery.cli.frame import SHAPES
from gwi_celery.cli.init import init
from gwi_celery.cli.jobs import jobs, locks
from gwi_celery.cli.push_to import push_to
from gwi_celery.cli.queues import delayed, queues
from gwi_celery.cli.root import gwi
from gwi_celery.cli.scaler import scaler
from gwi_celery.cli.serve import serve
from gwi_celery.cli.service import cleanup, config, tail, workers


@click.command()
@click.argument("command", nargs=-1)
def schema(command: tuple[str, ...]) -> None:
    """The JSON Schema of a command's --json, such as `gwi schema dlq list`; of all, without one."""
    name = " ".join(command)
    if name and name not in SHAPES:
        raise click.UsageError(
            f"no command {name!r} prints JSON; those that do: {', '.join(SHAPES)}"
        )
    shown = SHAPES[name].schema() if name else {n: SHAPES[n].schema() for n in sorted(SHAPES)}
    click.echo(json.dumps(shown, indent=2))


for made in (delayed, dlq, doctor, init, jobs, locks, push_to, queues, scaler, schema, serve):
    gwi.add_command(made)

__all__ = ["cleanup", "config", "tail", "workers"]
