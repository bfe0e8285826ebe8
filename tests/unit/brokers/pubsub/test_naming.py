"""Names, labels and filters that Pub/Sub takes, whatever queues are called."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwi_celery.brokers.base import OutgoingMessage
from gwi_celery.brokers.pubsub import naming, wire
from gwi_celery.brokers.pubsub.client import pb
from gwi_celery.brokers.routing import DIRECT, FANOUT, TOPIC, matches
from gwi_celery.errors import ConfigurationError

#: Anything a Python text can be, lone surrogates too.
TEXTS = st.text(st.characters(codec=None), max_size=60)
NAMES = st.one_of(
    TEXTS.filter(bool),
    st.text("ab%~.*# /é🦀\ud83e", min_size=1, max_size=40),
    st.integers(1, 2500).map(lambda n: "x" * n),
)
PREFIXES = st.sampled_from(["gwi-", "ab", "a" * 31, "x.y_z+"])

#: What Google's documents say (https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names).
LEGAL_ID = re.compile(r"(?!goog)[A-Za-z][A-Za-z0-9\-_.~+%]{2,254}")
LEGAL_LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
LEGAL_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")


# --- ids ------------------------------------------------------------------------------------------


@given(PREFIXES, NAMES, TEXTS, TEXTS)
def test_ids_are_legal(prefix: str, name: str, exchange: str, key: str) -> None:
    for made in (
        naming.topic_id(prefix, name),
        naming.subscription_id(prefix, name),
        naming.binding_id(prefix, name, exchange, key),
        naming.level_id(naming.subscription_id(prefix, name), 9),
        naming.temporary_topic_id(prefix),
    ):
        assert LEGAL_ID.fullmatch(made), made


@given(NAMES, NAMES, TEXTS, TEXTS)
def test_no_two_names_share_an_id(a: str, b: str, exchange: str, key: str) -> None:
    made = [naming.topic_id("gwi-", a), naming.topic_id("gwi-", b)]
    assert (made[0] == made[1]) == (a == b)
    others = {
        naming.binding_id("gwi-", a, exchange, key),
        naming.binding_id("gwi-", a, key, exchange + "x"),
        naming.level_id(naming.subscription_id("gwi-", a), 5),
        naming.temporary_topic_id("gwi-"),
    }
    assert len(others) == 4
    assert not others & set(made)


@pytest.mark.parametrize(
    ("a", "b"),
    [("a/b", "a%2Fb"), ("A", "a"), ("é", "e\u0301"), ("a~b0", "a"), ("x" * 181, "x" * 180)],
)
def test_names_that_look_alike_are_kept_apart(a: str, b: str) -> None:
    assert naming.topic_id("gwi-", a) != naming.topic_id("gwi-", b)


@given(PREFIXES, NAMES)
def test_the_name_can_be_read_back(prefix: str, name: str) -> None:
    made, labels = naming.topic_id(prefix, name), naming.name_labels(name)
    assert naming.name_of(prefix, made, labels) == name
    assert naming.name_of("other-", made, labels) is None


@given(NAMES, TEXTS)
def test_what_stands_beside_a_queue_is_no_queue(name: str, key: str) -> None:
    for made in (
        naming.binding_id("gwi-", name, "x", key),
        naming.level_id(naming.subscription_id("gwi-", name), 3),
        naming.temporary_topic_id("gwi-"),
    ):
        assert naming.name_of("gwi-", made, naming.name_labels(name)) is None


@given(st.text("agwi-~%0123hZé", max_size=30), st.dictionaries(TEXTS, TEXTS, max_size=3))
def test_names_of_others_are_none_of_ours(id: str, labels: dict[str, str]) -> None:
    name = naming.name_of("gwi-", id, labels)
    assert name is None or naming.topic_id("gwi-", name) == id


# --- labels ---------------------------------------------------------------------------------------


@given(NAMES, st.text(max_size=300))
def test_labels_are_legal_and_few(name: str, key: str) -> None:
    labels = {**naming.name_labels(name), **naming.key_labels(key)}
    assert len(labels) + naming.MOST_USER_LABELS + 4 <= 64
    for label, value in labels.items():
        assert LEGAL_LABEL_KEY.fullmatch(label), label
        assert LEGAL_LABEL_VALUE.fullmatch(value), value
    assert naming.key_of(labels) == key


@given(TEXTS)
def test_a_binding_key_can_be_read_back(key: str) -> None:
    assert naming.key_of(naming.key_labels(key)) == key


@given(st.dictionaries(st.sampled_from(["gwi-key-0", "gwi-key-1"]), st.text("0vwzé", max_size=9)))
def test_labels_of_others_are_none_of_ours(labels: dict[str, str]) -> None:
    key = naming.key_of(labels)
    assert key is None or isinstance(key, str)


def test_a_name_that_can_not_be_kept_is_refused() -> None:
    name = "".join(chr(0x4E00 + (n * n * 7) % 20000) for n in range(1500))
    with pytest.raises(ConfigurationError, match="4500 bytes, more than Pub/Sub can keep of it"):
        naming.name_labels(name)


# --- filters --------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["a", "b", "ab", "", "*", "#", "a*", '"', "\\", "é", "\ud83e", "#\n", "x" * 300]
)
KEYS = st.lists(WORDS, max_size=4).map(".".join)


@st.composite
def bindings(draw: st.DrawFn) -> tuple[str, str]:
    """A binding key, and a routing key that it may match."""
    key = draw(KEYS)
    if draw(st.booleans()):
        return key, draw(KEYS)
    words: list[str] = []
    for word in key.split("."):
        filled = {"*": st.lists(WORDS, min_size=1, max_size=1), "#": st.lists(WORDS, max_size=2)}
        words += draw(filled[word]) if word in filled else [word]
    return key, ".".join(words)


@given(
    st.sampled_from([DIRECT, TOPIC, FANOUT]),
    bindings(),
    st.one_of(TEXTS, st.just("x" * 2000)).filter(bool),
)
def test_a_binding_s_filter_lets_through_what_the_binding_matches(
    type: str, binding: tuple[str, str], exchange: str
) -> None:
    key, routing_key = binding
    filter = naming.binding_filter(type, key)
    assert len(filter.encode()) <= 256
    made = wire.to_pubsub(exchange, routing_key, OutgoingMessage(b"m"), now=0.0)
    if matches(type, key, routing_key):
        assert passes(filter, made.attributes)
    # The default exchange's messages for a queue of the exchange's name are on this topic as well.
    own = wire.to_pubsub("", routing_key, OutgoingMessage(b"m"), now=0.0)
    assert not passes(filter, own.attributes)


def test_filters_are_as_near_as_can_be() -> None:
    def rejected(type: str, key: str, routing_key: str) -> bool:
        made = wire.to_pubsub("x", routing_key, OutgoingMessage(b"m"), now=0.0)
        return not passes(naming.binding_filter(type, key), made.attributes)

    assert rejected(DIRECT, "a", "b")
    assert rejected(TOPIC, "a.b", "a.c")
    assert rejected(TOPIC, "a.*", "b.c")
    assert rejected(TOPIC, "a.#", "ab")
    assert not rejected(TOPIC, "a.#", "a")
    assert not rejected(TOPIC, "*.b", "a.c"), "not to be expressed in Pub/Sub's language"


@given(NAMES, NAMES)
def test_the_filter_of_a_temporary_queue_lets_its_messages_through(queue: str, other: str) -> None:
    filter = naming.queue_filter(queue)
    assert len(filter.encode()) <= 256
    made = wire.to_pubsub("", queue, OutgoingMessage(b"m"), now=0.0)
    assert passes(filter, made.attributes)


@given(
    st.sets(st.integers(1, 9), min_size=1),
    st.one_of(st.sampled_from("0123456789"), st.sampled_from(["", "42", "high"]), st.none()),
)
def test_a_message_passes_the_filter_of_the_level_that_takes_it(
    above: set[int], priority: str | None
) -> None:
    levels = [0, *sorted(above)]
    attributes = {} if priority is None else {"priority": priority}
    parsed = wire.parse(pb["PubsubMessage"](data=b"m", attributes=attributes))
    for level, end in zip(levels, [*levels[1:], None], strict=True):
        filter = naming.priority_filter(level, end)
        assert len(filter.encode()) <= 256
        assert passes(filter, attributes) == (parsed.priority in range(level, end or 10)), filter


def test_the_evaluator_of_these_tests() -> None:
    assert passes("", {})
    assert passes('attributes:a AND (attributes.b="1" OR attributes.b="2")', {"a": "", "b": "2"})
    assert not passes(
        'attributes:a AND NOT (attributes.b="1" OR attributes.b="2")', {"a": "", "b": "2"}
    )
    assert passes('hasPrefix(attributes.a, "x.")', {"a": "x.y"})
    assert not passes('hasPrefix(attributes.a, "x.")', {})
    assert passes("NOT attributes:a", {})
    with pytest.raises(ValueError):
        passes("attributes:a AND attributes:b OR attributes:c", {})


_TOKEN = re.compile(
    r'\s*(AND\b|OR\b|NOT\b|\(|\)|attributes:(\w+)|attributes\.(\w+)="([^"\\]*)"'
    r'|hasPrefix\(attributes\.(\w+), "([^"\\]*)"\))'
)


def passes(filter: str, attributes: Mapping[str, str]) -> bool:
    """The part of Pub/Sub's filter language that we use. AND and OR need parentheses to be mixed."""
    if not filter:
        return True
    tokens = []
    position = 0
    while position < len(filter):
        found = _TOKEN.match(filter, position)
        if found is None:
            raise ValueError(f"{filter!r} at {position}")
        tokens.append(found)
        position = found.end()

    def expression() -> bool:
        value = term()
        operator = None
        while tokens and tokens[0][1] in ("AND", "OR"):
            if operator not in (None, tokens[0][1]):
                raise ValueError(f"{filter!r} mixes AND and OR")
            operator = tokens.pop(0)[1]
            right = term()
            value = (value and right) if operator == "AND" else (value or right)
        return value

    def term() -> bool:
        token = tokens.pop(0)
        if token[1] == "NOT":
            return not term()
        if token[1] == "(":
            value = expression()
            if not tokens or tokens.pop(0)[1] != ")":
                raise ValueError(f"{filter!r} lacks )")
            return value
        _, _, present, equal, value_of, prefixed, prefix = (token[0], *token.groups())
        if present:
            return present in attributes
        if equal:
            return attributes.get(equal) == value_of
        return prefixed in attributes and attributes[prefixed].startswith(prefix)

    result = expression()
    if tokens:
        raise ValueError(f"{filter!r} goes on after its end")
    return result
