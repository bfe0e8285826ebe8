"""What is read from a dead letter, whoever wrote it."""

from __future__ import annotations

from gwi_celery.brokers.base import DEATH_ATTEMPTS, DEATH_DELIVERIES, StoredMessage
from gwi_celery.brokers.letters import letter_of


def test_a_number_that_no_worker_wrote_is_none() -> None:
    told = {DEATH_ATTEMPTS: "9" * 5000, DEATH_DELIVERIES: "3", "task": "t", "task_id": "i"}
    letter = letter_of("q", StoredMessage("q.dead", "1", b"", told, 1, 0.0, 0, "ready"))
    assert (letter.attempts, letter.deliveries) == (0, 3)
