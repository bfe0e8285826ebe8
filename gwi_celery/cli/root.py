"""The group ``gwi`` itself, which imports a command's module when the command is used.

Every ``celery`` command loads this group, ``celery worker`` too: it must not import what only ``doctor``
or ``scaler`` needs (Google's libraries, a second of CPU).
"""

from __future__ import annotations

from importlib import import_module

import click

from gwi_celery.cli import loading

#: Command -> the module of this package that defines it, under the command's name.
COMMANDS = {
    "cleanup": "service",
    "config": "service",
    "delayed": "queues",
    "dlq": "dlq",
    "doctor": "doctor",
    "init": "init",
    "jobs": "jobs",
    "limits": "limits",
    "locks": "jobs",
    "push-to": "push_to",
    "queues": "queues",
    "scaler": "scaler",
    "schema": "schema",
    "serve": "serve",
    "tail": "service",
    "workers": "service",
}

loading.install()


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            module = import_module(f"gwi_celery.cli.{COMMANDS[cmd_name]}")
            self.add_command(getattr(module, cmd_name.replace("-", "_")), cmd_name)
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Lazy)
def gwi() -> None:
    """Reliable jobs on Google Cloud.

    \b
    Exit codes: 0 done; 1 failed; 2 usage or settings; 3 nothing matches;
    4 not confirmed; 5 broker or store unavailable, try again; 6 doctor found problems.
    """
