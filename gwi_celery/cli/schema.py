"""``celery -A app gwi schema``."""

from __future__ import annotations

import json

import click

from gwi_celery.cli.frame import SHAPES
from gwi_celery.cli.root import COMMANDS, gwi


@click.command()
@click.argument("command", nargs=-1)
@click.pass_context
def schema(ctx: click.Context, command: tuple[str, ...]) -> None:
    """The JSON Schema of a command's --json, such as `gwi schema dlq list`; of all, without one."""
    for name in COMMANDS:
        gwi.get_command(ctx, name)  # its module says what it prints
    name = " ".join(command)
    if name and name not in SHAPES:
        raise click.UsageError(
            f"no command {name!r} prints JSON; those that do: {', '.join(SHAPES)}"
        )
    shown = SHAPES[name].schema() if name else {n: SHAPES[n].schema() for n in sorted(SHAPES)}
    click.echo(json.dumps(shown, indent=2))
