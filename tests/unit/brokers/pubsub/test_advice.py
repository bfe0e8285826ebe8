"""What an error says to do."""

from __future__ import annotations

from gwi_celery.brokers.pubsub import advice
from gwi_celery.brokers.pubsub.options import parse

_PATH = "projects/p/subscriptions/gwi-jobs"


def test_a_dead_letter_is_made_to_keep_its_messages_for_31_days() -> None:
    options = parse("pubsub://p?mode=provisioned", {}, {})
    assert advice.missing(options, f"{_PATH}.dead").count("-retention-duration=31d`") == 1
    assert "-retention-duration" not in advice.missing(options, _PATH)


def test_a_subscription_is_made_as_the_options_want_it() -> None:
    wanted = {"ordering": True, "exactly_once": True, "retention": 600}
    options = parse("pubsub://p?mode=provisioned", wanted, {})
    assert (
        " --enable-message-ordering --enable-exactly-once-delivery --message-retention-duration=600s "
        "--dead-letter-topic=gwi-jobs.dead "
    ) in advice.missing(options, _PATH)
