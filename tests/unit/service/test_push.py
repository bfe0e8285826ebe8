"""What a push request carries."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwi_celery.service.push import NotAMessage, Pushed, parse

JOB = b'{"id": "1", "type": "t"}'


def wrapped(job: bytes = JOB, /, **changes: Any) -> bytes:
    message = {"data": base64.b64encode(job).decode(), "attributes": {"gwi-redrive": "x"}}
    envelope = {"message": {**message, **changes}, "subscription": "projects/p/subscriptions/s"}
    return json.dumps({**envelope, "deliveryAttempt": 3}).encode()


def read(body: bytes, **headers: str) -> Pushed:
    named = {k.replace("_", "-"): v for k, v in headers.items()}
    return parse(body, named, queue="q", max_depth=20, max_decoded=1_000_000)


def test_a_wrapped_message_is_a_delivery() -> None:
    pushed = read(wrapped(messageId="42", publishTime="2026-11-24T12:00:00.5Z"))
    delivery = pushed.delivery
    assert (delivery.data, delivery.message_id, delivery.deliveries) == (JOB, "42", 3)
    assert delivery.attributes == {"gwi-redrive": "x"}
    assert delivery.published_at == 1795521600.5
    assert delivery.queue == "q"
    assert (pushed.not_before, pushed.expires) == (0.0, math.inf)
    assert read(wrapped(message_id="43")).delivery.message_id == "43", "as the emulator has it too"


def test_an_unwrapped_message_is_one_as_well() -> None:
    headers = {
        "x_goog_pubsub_message_id": "42",
        "x_goog_pubsub_publish_time": "2026-11-24T12:00:00Z",
        "gwi_redrive": "x",
        "user_agent": "test",
    }
    delivery = read(JOB, **headers).delivery
    assert (delivery.data, delivery.message_id, delivery.deliveries) == (JOB, "42", 1)
    assert delivery.attributes == {"gwi-redrive": "x"}
    assert read(JOB).delivery.data == JOB, "without metadata too"
    assert read(b"anything at all").delivery.data == b"anything at all"


def test_a_plain_job_with_a_field_called_message_is_not_an_envelope() -> None:
    body = b'{"id": "1", "type": "t", "message": {"data": "eA=="}}'
    assert read(body).delivery.data == body


def test_the_transports_own_attributes_are_taken_for_what_they_are() -> None:
    attributes = {
        "gwi-not-before": "2000000000.5",
        "gwi-expires": "2000000060",
        "priority": "7",
        "routing_key": "q",
        "task": "t",
    }
    pushed = read(wrapped(attributes=attributes))
    assert (pushed.not_before, pushed.expires) == (2000000000.5, 2000000060.0)
    assert pushed.delivery.priority == 7
    assert pushed.delivery.attributes == {"task": "t"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (wrapped(data="%%%"), "its data is not base64"),
        (wrapped(data=[1]), "its data is not base64"),
        (wrapped(attributes=[1]), "its attributes are not texts"),
        (wrapped(attributes={"a": None}), "its attributes are not texts"),
        (b"[" * 30 + b"]" * 30, "deeper than 20"),
        (wrapped(b'{"a":' * 30 + b"1" + b"}" * 30), "deeper than 20"),
    ],
)
def test_what_can_not_be_one_is_kept_as_it_came(body: bytes, reason: str) -> None:
    with pytest.raises(NotAMessage, match=reason) as caught:
        read(body)
    assert caught.value.delivery.data


@given(
    st.dictionaries(
        st.sampled_from(["message", "subscription", "deliveryAttempt", "type"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["data", "attributes", "messageId", "publishTime"]), inner
                )
            ),
            max_leaves=6,
        ),
    )
)
def test_any_json_is_a_delivery_or_not_a_message(envelope: Any) -> None:
    try:
        delivery = read(json.dumps(envelope).encode()).delivery
    except NotAMessage as exc:
        delivery = exc.delivery
    assert delivery.queue == "q"
    assert delivery.deliveries >= 1


@pytest.mark.parametrize("way", ["unwrapped", "wrapped", "the envelope itself"])
def test_what_is_too_large_once_parsed_is_kept_without_being_parsed(way: str) -> None:
    bomb = b'{"id": "1", "type": "t", "payload": {"a": [' + b"{}," * 10_000 + b"{}]}}"
    body = {"unwrapped": bomb, "wrapped": wrapped(bomb)}.get(way)
    if body is None:
        body = wrapped()[:-1] + b', "more": [' + b"{}," * 10_000 + b"{}]}"
    with pytest.raises(NotAMessage, match="too large for this worker") as refused:
        read(body)
    assert refused.value.delivery.data == (body if way == "the envelope itself" else bomb)


def test_utf_16_is_no_json() -> None:
    """In it depth and size could not be told."""
    body = '{"message": {"data": "eA=="}}'.encode("utf-16-le")
    assert read(body).delivery.data == body
