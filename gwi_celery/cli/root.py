"""The group ``gwi`` itself."""

from __future__ import annotations

from importlib import import_module

import click


class _Commands(click.Group):
    """Has its commands once one is asked for.

    Celery imports this module for each of its own commands, so for each worker: what ours need,
    Google's libraries among it, would more than double the time in which one starts.
    """

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        import_module("gwi_celery.cli.commands")
        return super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        import_module("gwi_celery.cli.commands")
        return super().list_commands(ctx)


@click.group(cls=_Commands)
def gwi() -> None:
    """Reliable jobs on Google Cloud.

    \b
    Exit codes: 0 done; 1 failed; 2 usage or settings; 3 nothing matches;
    4 not confirmed; 5 broker or store unavailable, try again; 6 doctor found problems.
    """
