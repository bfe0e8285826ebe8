"""``celery -A app gwi push-to URL``: have Pub/Sub post a queue's messages to the push service."""

from __future__ import annotations

from typing import Any

import click

from gwi_celery.brokers.pubsub.broker import PubSubBroker
from gwi_celery.cli.frame import reporting
from gwi_celery.errors import ConfigurationError
from gwi_celery.integration import broker_for


@click.command("push-to")
@click.argument("url")
@click.option("-Q", "--queue", help="The app's default queue, if left out.")
@click.option("--service-account", default="", help="Who signs the requests (its e-mail address).")
@click.option("--audience", default="", help="What the token is for; the URL, if left out.")
@click.pass_context
def push_to(
    ctx: click.Context, url: str, queue: str | None, service_account: str, audience: str
) -> None:
    """Have Pub/Sub post a queue's messages to URL; "" gives it back to pull workers.

    Makes the queue if need be. A queue is either pushed or pulled.
    """
    app: Any = ctx.obj.app
    queue = queue or app.conf.task_default_queue
    with reporting():
        broker = broker_for(app)
        if not isinstance(broker, PubSubBroker):
            raise ConfigurationError(
                f"{app.conf.broker_url} can't push: only pubsub:// queues are posted to an endpoint"
            )
        broker.push_to(queue, url, service_account=service_account, audience=audience)
    click.echo(f"queue {queue!r} is pushed to {url}" if url else f"queue {queue!r} is pulled")
