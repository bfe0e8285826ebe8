"""``celery -A app gwi doctor``: does the app have all that it needs? With ``--live``: does the project
behave as this package assumes?"""

from __future__ import annotations

from typing import Any

import click
from kombu.exceptions import OperationalError

from gwi_celery import doctor as checks
from gwi_celery.cli.checkup import checkup
from gwi_celery.cli.frame import SHAPES, Column, Exit, Shape, Span, reporting, show
from gwi_celery.cli.plan import options_of
from gwi_celery.config import urls
from gwi_celery.errors import ConfigurationError, GwiError
from gwi_celery.integration import settings_for

SHAPES["doctor"] = Shape(
    "doctor",
    (
        Column("what"),
        Column("holds", "boolean?"),
        Column("expected", title=""),
        Column("measured", show="text", whole=True),
        Column("change", show="text", whole=True),
        Column("twin", title=""),
    ),
)


@click.command()
@click.option("--live", is_flag=True, help="Make what is needed, try it, and delete it again.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document at the end.")
@click.option(
    "--seconds",
    type=Span(1.0, 3600.0),
    default=checks.SECONDS,
    show_default=True,
    help="The longest that one check waits.",
)
@click.option(
    "--echo", default="", metavar="URL", help="With --live: of gwi_celery.doctor.echo, behind IAM."
)
@click.option("--echo-account", default="", help="The account that may invoke it.")
@click.pass_context
def doctor(
    ctx: click.Context, live: bool, as_json: bool, seconds: float, echo: str, echo_account: str
) -> None:
    """Check all that the app needs: each problem with the command that mends it. Nothing is changed.

    With --live, ask the app's Pub/Sub and Firestore whether they behave as documented. That takes about
    seven minutes, costs less than a cent, and leaves nothing behind, also when it is stopped.
    """
    app: Any = ctx.obj.app
    if bool(echo) != bool(echo_account) or (echo and not live):
        raise click.UsageError("--echo and --echo-account belong together, and with --live")
    with reporting():
        if not live:
            app.finalize()
            app.loader.import_default_modules()
            found = [dict(vars(checked)) for checked in checkup(app)]
            show(SHAPES["doctor"], found, as_json=as_json)
            ctx.exit(
                int(Exit.OK if all(row["holds"] is not False for row in found) else Exit.PROBLEMS)
            )
        asked = [url for url in urls(app.conf.broker_url) if url.startswith("pubsub:")]
        store = settings_for(app).effective_store_url
        asked += [store] if store.startswith("firestore:") else []
        if not asked:
            raise ConfigurationError(
                "neither the broker nor the store is of Google Cloud: set GCP_PROJECT_ID, or a "
                "pubsub:// broker_url"
            )
        holds = checks.written(
            asked,
            seconds,
            as_json,
            click.echo,
            options=options_of(app),
            more=lambda: [_pinged(app)],
            echo=echo,
            echo_account=echo_account,
        )
    if not holds:
        ctx.exit(int(Exit.PROBLEMS))


def _pinged(app: Any) -> checks.Finding:
    try:
        found = f"{len(app.control.ping(timeout=2.0))} of them"
    except (GwiError, OperationalError) as exc:  # mode=provisioned has no queues for it
        found = str(exc)
    return checks.Finding(
        "workers answer to a ping",
        None,
        "in mode=managed each that runs",
        found,
        twin="each that runs",
    )
