"""Which messages are answers."""

from __future__ import annotations

import pytest

from gwi_celery.transport import envelope


@pytest.mark.parametrize(
    ("queue", "properties", "headers", "is_reply"),
    [
        ("q", {}, {}, False),
        ("q", {"correlation_id": "c"}, {}, True),
        ("q", {"correlation_id": "c", "reply_to": "r"}, {}, False),
        ("q", {"correlation_id": "c", "reply_to": ""}, {}, False),
        ("q", {"correlation_id": "c"}, {"task": "t"}, False),
        ("0e3c2d1a-1111-4222-8333-444455556666", {}, {}, True),
        ("0e3c2d1a-1111-4222-8333-444455556666", {}, {"task": "t"}, False),
        ("0e3c2d1a-1111-4222-8333-444455556666.reply.celery.pidbox", {}, {}, True),
        ("amq.gen-x\ny", {}, {}, True),
        ("orders-0e3c2d1a-1111-4222-8333-444455556666", {}, {}, False),
    ],
)
def test_what_is_an_answer(
    queue: str, properties: dict[str, str], headers: dict[str, str], is_reply: bool
) -> None:
    message = {"body": "", "properties": properties, "headers": headers}
    assert envelope.is_reply(message, queue) is is_reply
