"""``celery -A app gwi serve``: the push service."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from gwi_celery.cli.frame import reporting
from gwi_celery.errors import ConfigurationError
from gwi_celery.integration import settings_for


@click.command()
@click.option("--host", help="Address to listen on.  [GWI_HOST]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port; 8080 by default.  [PORT]")
@click.option(
    "-c",
    "--concurrency",
    type=click.IntRange(1),
    help="Jobs at a time; 1 by default.  [GWI_PUSH_CONCURRENCY]",
)
@click.option(
    "-P",
    "--pool",
    type=click.Choice(["prefork", "threads", "solo"]),
    help="prefork by default; only there do time limits work.  [GWI_PUSH_POOL]",
)
@click.option(
    "-l",
    "--loglevel",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], case_sensitive=False),
    default="INFO",
    show_default=True,
)
@click.pass_context
def serve(
    ctx: click.Context,
    host: str | None,
    port: int | None,
    concurrency: int | None,
    pool: str | None,
    loglevel: str,
) -> None:
    """Run jobs that Pub/Sub pushes to POST /push, and answer /health, /ready, /stats, /metrics."""
    app: Any = ctx.obj.app
    given: dict[str, Any] = {
        "host": host,
        "port": port,
        "push_concurrency": concurrency,
        "push_pool": pool,
    }
    with reporting():
        app.finalize()
        app.loader.import_default_modules()
        settings = dataclasses.replace(
            settings_for(app), **{name: value for name, value in given.items() if value}
        )
        try:
            from gwi_celery.service.server import run
        except ImportError as exc:
            raise ConfigurationError(f"{exc}: pip install 'gwi-celery[http]'") from exc
        run(app, settings, loglevel=loglevel)
