"""Pushes what is in the queue into an executor, as a push subscription does: ``python -m``."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from celery.worker import state

from gwi_celery import broker_for
from gwi_celery.service.execute import Executor
from gwi_celery.transport.settlement import Settlement
from tests.ends.jobs import app


def main() -> None:
    broker = broker_for(app)
    executor = Executor(app, pool="prefork", size=2)
    executor.start()
    receiver = broker.receiver()
    broker.declare_queue(_queue())
    receiver.subscribe("celery")
    threading.Thread(target=_revoke, daemon=True).start()
    print("ready.", flush=True)
    under_way: list[tuple[Any, Any]] = []
    while True:
        for delivery, future in [one for one in under_way if one[1].done()]:
            under_way.remove((delivery, future))
            if future.result() is Settlement.NACKED:
                broker.nack(delivery, 0.1)
            else:
                broker.ack([delivery])
        broker.extend([delivery for delivery, _ in under_way], 5)
        for delivery in receiver.poll("celery", 2 - len(under_way)) if len(under_way) < 2 else ():
            future = executor.submit(delivery, hand_back_at=time.monotonic() + 600)
            under_way.append((delivery, future))
        time.sleep(0.02)


def _revoke() -> None:
    for line in sys.stdin:
        state.revoked.add(line.strip())


def _queue() -> Any:
    from gwi_celery.brokers.base import QueueSpec

    return QueueSpec("celery")


if __name__ == "__main__":
    main()
