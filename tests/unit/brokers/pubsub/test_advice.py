"""What an error says to do."""

from __future__ import annotations

from gwi_celery.brokers.pubsub import advice
from gwi_celery.brokers.pubsub.options import parse


def test_a_dead_letter_is_made_to_keep_its_messages_for_31_days() -> None:
    options = parse("pubsub://p?mode=provisioned", {}, {})
    path = "projects/p/subscriptions/gwi-jobs"
    assert advice.missing(options, f"{path}.dead").count(" --message-retention-duration=31d`") == 1
    assert "--message-retention-duration" not in advice.missing(options, path)
