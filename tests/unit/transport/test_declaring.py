"""A queue's arguments are checked before the broker sees them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from kombu import Connection, Queue

from gwi_celery.errors import ConfigurationError


@pytest.mark.parametrize(
    "argument",
    [{"x-expires": "soon"}, {"x-lease-seconds": "long"}, {"x-max-deliveries": 1.5}],
    ids=str,
)
def test_an_argument_of_another_type_is_refused(argument: dict[str, Any]) -> None:
    [name] = argument
    with (
        Connection("embedded://:memory:/arguments") as connection,
        connection.channel() as channel,
        pytest.raises(ConfigurationError, match=f"argument {name} of queue 'q' is"),
    ):
        Queue("q", queue_arguments=argument, channel=channel).queue_declare()


@pytest.mark.parametrize("option", ["expires", "message_ttl"])
def test_a_time_that_is_none_is_refused_as_an_option_of_kombus_too(option: str) -> None:
    with (
        Connection("embedded://:memory:/arguments") as connection,
        connection.channel() as channel,
    ):
        for wrong in (math.nan, math.inf, -1, 0, 1e12, 1e307):  # Kombu takes numbers only
            with pytest.raises(ConfigurationError, match="queue 'q'"):
                Queue("q", channel=channel, **{option: wrong}).queue_declare()
        assert not channel._broker.has_queue("q")


@pytest.mark.parametrize(
    "argument",
    [
        {"x-expires": 1e15},
        {"x-message-ttl": 10**30},
        {"x-lease-seconds": 1e12},
        {"x-max-deliveries": 10**30},
    ],
    ids=str,
)
def test_an_argument_that_no_timer_or_database_can_handle_is_refused(
    argument: dict[str, Any],
) -> None:
    with (
        Connection("embedded://:memory:/arguments") as connection,
        connection.channel() as channel,
        pytest.raises(ConfigurationError, match=r"queue 'q': \w+ is"),
    ):
        Queue("q", queue_arguments=argument, channel=channel).queue_declare()
