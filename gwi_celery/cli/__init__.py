"""``celery -A app gwi ...``: one file for each command."""

from __future__ import annotations

import click

from gwi_celery.cli.doctor import doctor
from gwi_celery.cli.init import init
from gwi_celery.cli.push_to import push_to
from gwi_celery.cli.scaler import scaler
from gwi_celery.cli.serve import serve


@click.group()
def gwi() -> None:
    """Reliable jobs on Google Cloud."""


gwi.add_command(doctor)
gwi.add_command(init)
gwi.add_command(scaler)
gwi.add_command(serve)
gwi.add_command(push_to)
