"""``celery -A app gwi scaler``: tells KEDA, or CREMA on Cloud Run, how much work there is."""

from __future__ import annotations

from typing import Any

import click

from gwi_celery.cli.frame import Exit, end, reporting
from gwi_celery.integration import broker_for
from gwi_celery.service.scaler import Scaler, serve


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 in a cluster.")
@click.option("--port", type=click.IntRange(0, 65535), default=6000, show_default=True)
@click.pass_context
def scaler(ctx: click.Context, host: str, port: int) -> None:
    """Answer KEDA's external scaler interface from the depth and age of the app's queues."""
    app: Any = ctx.obj.app
    with reporting():
        answers = Scaler(broker_for(app), app.conf.task_default_queue)
    try:
        server, bound = serve(answers, f"{host}:{port}")
    except RuntimeError as exc:  # gRPC's, for an address that can't be bound
        end(Exit.FAILED, f"can't listen on {host}:{port} ({exc}): choose another --port")
    click.echo(f"KEDA's external scaler on {host}:{bound}")
    server.wait_for_termination()
