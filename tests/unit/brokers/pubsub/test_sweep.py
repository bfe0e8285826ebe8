"""Which messages of a temporary queue nobody took."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from gwi_celery.brokers.pubsub import sweep
from gwi_celery.brokers.pubsub.client import pb
from gwi_celery.errors import NotFound


def test_a_queue_that_goes_while_it_is_looked_into_has_a_reader() -> None:
    def call(rpc: str, request: Any, resource: str) -> Any:
        if rpc == "Pull":
            found = pb["ReceivedMessage"](ack_id="a", message=pb["PubsubMessage"](message_id="1"))
            return pb["PullResponse"](received_messages=[found])
        raise NotFound(f"{resource} does not exist")

    broker: Any = SimpleNamespace(client=SimpleNamespace(call=call))
    assert sweep._ready(broker, "projects/p/subscriptions/gwi-q") == []
