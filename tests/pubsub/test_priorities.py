"""Priorities on Pub/Sub where no subscription of their own keeps them apart."""

from __future__ import annotations

import uuid

import pytest
from kombu import Connection

from gwi_celery.testing.emulators import Emulator
from gwi_celery.transport import register
from tests.machine import PATIENCE

register()


@pytest.mark.emulator
def test_a_temporary_queue_hands_over_the_most_urgent_of_what_is_there(
    pubsub_emulator: Emulator,
) -> None:
    project = f"p-{uuid.uuid4().hex[:8]}"
    with (
        Connection(f"pubsub://{pubsub_emulator.endpoint}/{project}") as connection,
        connection.SimpleBuffer("buffer") as buffer,
    ):
        for name, priority in [("first", 2), ("second", 6), ("third", 2)]:
            buffer.put(name, priority=priority)
        taken = [buffer.get(timeout=PATIENCE).payload for _ in range(3)]
    # Those of one priority have no order: Pub/Sub keeps none without ordering keys.
    assert (taken[0], sorted(taken[1:])) == ("second", ["first", "third"])
