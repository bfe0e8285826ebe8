"""What every ``celery`` command pays for ours, and that each of ours can be reached."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from gwi_celery.cli import gwi
from gwi_celery.cli.root import COMMANDS


def test_celery_worker_does_not_pay_for_what_an_operator_needs() -> None:
    """``celery`` loads the group at every start."""
    asked = "import sys, gwi_celery.cli; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", asked], check=True, capture_output=True, text=True
    ).stdout.split()
    heavy = {"google.cloud", "google.auth", "grpc", "requests", "rich", "opentelemetry"}
    assert not heavy & set(loaded)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_each_command_is_found_and_explains_itself(name: str) -> None:
    ctx = click.Context(gwi)
    command = gwi.get_command(ctx, name)
    assert command is not None
    assert command.name == name
    assert command.help


def test_an_unknown_command_is_none() -> None:
    assert gwi.get_command(click.Context(gwi), "frob") is None
