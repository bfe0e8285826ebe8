"""Our messages as Pub/Sub's, and back."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwi_celery.brokers.base import OutgoingMessage
from gwi_celery.brokers.pubsub import wire
from gwi_celery.brokers.pubsub.client import pb
from gwi_celery.errors import TooLarge

TEXTS = st.text(st.characters(codec=None), max_size=40)
VALUES = st.one_of(TEXTS, st.integers(1000, 3000).map("é".__mul__))
KEYS = st.one_of(
    TEXTS,
    st.sampled_from(["task", "tenant", "exchange", "routing_key", "priority", "googly"]),
    st.sampled_from(["gwi-not-before", "gwi-expires", "gwi-more-0", "gwi-more-1", "k" * 300]),
)
ATTRIBUTES = st.dictionaries(KEYS, VALUES, max_size=6)


def sent(message: object) -> object:
    """As it arrives: through the bytes of the wire."""
    return pb["PubsubMessage"].FromString(message.SerializeToString())  # type: ignore[attr-defined]


@given(
    exchange=VALUES,
    routing_key=VALUES,
    data=st.binary(max_size=50),
    attributes=ATTRIBUTES,
    priority=st.integers(0, 9),
    delay=st.floats(0, 1e6),
    ttl=st.none() | st.floats(0, 1e6),
)
def test_what_is_sent_arrives(
    exchange: str,
    routing_key: str,
    data: bytes,
    attributes: dict[str, str],
    priority: int,
    delay: float,
    ttl: float | None,
) -> None:
    now = 1_700_000_000.0
    message = OutgoingMessage(data, attributes, priority, delay, ttl)
    made = wire.to_pubsub(exchange, routing_key, message, now=now, ordering=True)
    for key, value in made.attributes.items():
        assert 0 < len(key.encode()) <= 256
        assert not key.startswith("goog")
        assert len(value.encode()) <= 1024
    assert len(made.ordering_key.encode()) <= 1024

    parsed = wire.parse(sent(made))
    assert (parsed.exchange, parsed.routing_key) == (exchange, routing_key)
    assert parsed.attributes == attributes
    assert parsed.priority == priority
    assert parsed.not_before == pytest.approx(now + delay if delay > 0 else 0.0, abs=0.001)
    expires = float("inf") if ttl is None else now + delay + ttl
    assert parsed.expires == pytest.approx(expires, abs=0.001)


@given(
    st.dictionaries(
        st.one_of(KEYS.filter(lambda k: k.isprintable()), st.text(string.ascii_lowercase)),
        st.one_of(
            st.sampled_from(
                ["nan", "inf", "-1", "1e999", "{", "[]", '{"exchange": 1}', "[[[", "9" * 99]
            ),
            st.text(max_size=9),
            st.sampled_from(['{"attributes": {"a": 1, "b": "2"}}', '{"attributes": []}', "null"]),
        ),
        max_size=6,
    )
)
def test_what_others_publish_is_read_without_trust(attributes: dict[str, str]) -> None:
    parsed = wire.parse(pb["PubsubMessage"](data=b"m", attributes=attributes))
    assert 0 <= parsed.priority <= 9
    assert parsed.not_before == parsed.not_before < float("inf")
    assert parsed.expires == parsed.expires
    assert all(isinstance(v, str) for v in [*parsed.attributes.values(), parsed.exchange])
    wire.to_pubsub("", "q", OutgoingMessage(b"", parsed.attributes), now=0.0)


def test_a_plain_message_is_of_the_default_exchange() -> None:
    parsed = wire.parse(pb["PubsubMessage"](data=b"m"))
    assert (parsed.exchange, parsed.routing_key) == ("", "")
    assert (parsed.attributes, parsed.priority) == ({}, 0)


def test_filters_see_the_beginning_of_what_is_too_long() -> None:
    made = wire.to_pubsub("x" * 2000, "a.é" * 1000, OutgoingMessage(b"m"), now=0.0)
    assert made.attributes["exchange"] == "x" * 1024
    assert ("a.é" * 1000).startswith(made.attributes["routing_key"])
    assert len(made.attributes["routing_key"].encode()) in (1023, 1024)
    assert (
        wire.to_pubsub("x", "a.\ud83e.b", OutgoingMessage(b"m"), now=0.0).attributes["routing_key"]
        == "a."
    )


# --- ordering -------------------------------------------------------------------------------------


def key(**attributes: str) -> str:
    made = wire.to_pubsub("", "q", OutgoingMessage(b"m", attributes), now=0.0, ordering=True)
    return str(made.ordering_key)


def test_the_ordering_key_is_tenant_and_run() -> None:
    assert key(tenant="acme", run="r1") == "acme/r1"
    assert key(tenant="acme") == "acme/"
    assert key(run="r1") == "", "no tenant: no order"
    made = wire.to_pubsub("", "q", OutgoingMessage(b"m", {"tenant": "acme"}), now=0.0)
    assert made.ordering_key == "", "only with the option"


@given(*[st.text("ab/é", max_size=8)] * 4)
def test_no_two_runs_share_an_ordering_key(a: str, b: str, c: str, d: str) -> None:
    assert (wire.ordering_key(a, b) == wire.ordering_key(c, d)) == ((a, b) == (c, d))


def test_a_long_ordering_key_is_a_digest() -> None:
    long = key(tenant="é" * 500, run="r" * 900)
    assert long.startswith("sha256:")
    assert len(long) < 1024
    assert long != key(tenant="é" * 500, run="r" * 901)


# --- limits ---------------------------------------------------------------------------------------


def test_too_large_says_both_sizes() -> None:
    with pytest.raises(TooLarge, match=r"has 1\d{7} bytes, over Pub/Sub's limit of 10000000: keep"):
        wire.to_pubsub("", "q", OutgoingMessage(b"x" * 10_000_000), now=0.0)
    wire.to_pubsub("", "q", OutgoingMessage(b"x" * 9_999_000), now=0.0)


def test_too_many_attributes_say_both_numbers() -> None:
    many = {f"k{n}": "v" for n in range(100)}
    with pytest.raises(TooLarge, match="needs 101 attributes, over Pub/Sub's limit of 100"):
        wire.to_pubsub("", "q", OutgoingMessage(b"m", many), now=0.0)


def test_pieces_are_one_json_text() -> None:
    made = wire.to_pubsub("", "q", OutgoingMessage(b"m", {"long": "é" * 1000}), now=0.0)
    pieces = [made.attributes[f"gwi-more-{n}"] for n in range(len(made.attributes) - 1)]
    assert len(pieces) > 1
    assert json.loads("".join(pieces)) == {"attributes": {"long": "é" * 1000}}


@pytest.mark.parametrize("number", [97, 98, 100, 1000])
def test_too_many_attributes_of_somebody_else_are_merged(number: int) -> None:
    many = {f"k{n}": "v" for n in range(number)}
    message = OutgoingMessage(b"m", {**many, "long": "x" * 1024})
    made = wire.to_pubsub("", "q", message, now=0.0, merge=True)
    assert len(made.attributes) <= 100
    assert made.attributes["long"] == "x" * 1024
    assert wire.parse(made).attributes == message.attributes


def test_what_can_not_be_merged_can_go_as_it_came() -> None:
    full = OutgoingMessage(b"m", {f"k{n}": "v" * 1024 for n in range(100)})
    with pytest.raises(TooLarge):
        wire.to_pubsub("", "q", full, now=0.0, merge=True)
    assert dict(wire.as_it_came(full).attributes) == full.attributes
    assert wire.as_it_came(OutgoingMessage(b"m", {"k": "\ud800"})) is None
    assert wire.as_it_came(OutgoingMessage(b"m" * 10_000_001)) is None
