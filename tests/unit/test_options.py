"""One reading of a value, wherever it stands: settings, URLs of stores and brokers, transport options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gwi_celery.brokers.pubsub.options import parse as parse_pubsub
from gwi_celery.config import load
from gwi_celery.errors import ConfigurationError
from gwi_celery.firestore.url import parse as parse_firestore
from gwi_celery.options import MAPPING, NUMBER, TEXT, TEXTS, WHOLE, listed, optional
from gwi_celery.rights import read_rights
from gwi_celery.stores.url import check_store_url, open_store
from gwi_celery.transport.embedded import open_broker

#: Each place that reads a boolean.
BOOLEANS = {
    "environment": lambda v: load({}, {}, {"GWI_TRACING": v}).tracing,
    "app.conf": lambda v: load({}, {"gwi_tracing": v}, {}).tracing,
    "setup()": lambda v: load({"tracing": v}, {}, {}).tracing,
    "firestore://": lambda v: (
        parse_firestore(f"firestore://p?endpoint=h:1&emulator={v}", {}).emulator
    ),
    "pubsub://": lambda v: parse_pubsub(f"pubsub://my-p?ordering={v}", {}, {}).ordering,
    "transport option": lambda v: parse_pubsub("pubsub://my-p", {"ordering": v}, {}).ordering,
}


@pytest.mark.parametrize("place", BOOLEANS)
@pytest.mark.parametrize(
    ("word", "value"),
    [
        *((word, True) for word in ("1", "true", "yes", "on", "ON", "True")),
        *((word, False) for word in ("0", "false", "no", "off", "Off")),
    ],
)
def test_a_boolean_is_read_alike_everywhere(place: str, word: str, value: bool) -> None:
    assert BOOLEANS[place](word) is value


@pytest.mark.parametrize("place", BOOLEANS)
@pytest.mark.parametrize("word", ["perhaps", "2", "y", "enabled"])
def test_what_is_no_boolean_is_never_false(place: str, word: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'{word}'.*true or false"):
        BOOLEANS[place](word)


@pytest.mark.parametrize("given", ["lease_seconds=soon", "lease_seconds=-1", "max_deliveries=0"])
def test_a_brokers_option_is_read_in_the_stores_url_too(given: str) -> None:
    url = f"embedded://:memory:?{given}"
    for use in (open_broker, open_store, check_store_url):
        with pytest.raises(ConfigurationError, match=given.partition("=")[0]):
            use(url)


@pytest.mark.parametrize("wrong", ["nan", "inf", "", "1s", True, None, [1]])
def test_what_is_no_number(wrong: Any) -> None:
    for kind in (NUMBER, WHOLE):
        with pytest.raises(ConfigurationError, match=r"here is .*, not a "):
            kind.convert(wrong, "here")


def test_numbers_and_lists() -> None:
    assert [NUMBER.read(v) for v in ("1.5", 2, 3.5)] == [1.5, 2.0, 3.5]
    assert [WHOLE.read(v) for v in ("15", 2, 3.0)] == [15, 2, 3]
    with pytest.raises(ConfigurationError, match="not a whole number"):
        WHOLE.convert(2.5, "here")
    assert TEXTS.read(" a,b ,") == TEXTS.read(["a", "b"]) == ("a", "b")
    assert listed(WHOLE, "").read("1,2") == (1, 2)
    assert optional(NUMBER).read("") is None
    assert MAPPING.read('{"a": 1}') == MAPPING.read({"a": 1}) == {"a": 1}
    assert TEXT.read(Path("/x")) == "/x"


def test_json_that_is_nested_too_deeply_gets_the_ordinary_error(tmp_path: Path) -> None:
    deep, file = '{"a":' + "[" * 100_000, tmp_path / "keys"
    file.write_text(deep)
    nested: Any = "x"
    for _ in range(100_000):
        nested = [nested]
    places = {
        "GWI_QUEUE_RIGHTS": lambda: load({}, {}, {"GWI_QUEUE_RIGHTS": deep}),
        "gwi_queue_rights.*tasks": lambda: load(
            {}, {"gwi_queue_rights": {"q": {"tasks": [nested]}}}, {}
        ),
        "GWI_SIGNING_KEYS": lambda: load({}, {}, {"GWI_SIGNING_KEYS": deep}),
        "signing_keys_file": lambda: load({"signing_keys_file": file}, {}, {}),
        "queues is": lambda: parse_pubsub("pubsub://my-p", {"queues": deep}, {}),
        "labels is": lambda: parse_pubsub("pubsub://my-p", {"labels": nested}, {}),
        "retry_policy is": lambda: parse_pubsub("pubsub://my-p", {"retry_policy": nested}, {}),
    }
    for place, read in places.items():
        with pytest.raises(ConfigurationError, match=place) as refused:
            read()
        assert len(str(refused.value)) < 3000


def test_rights_that_are_null_are_refused_where_they_mean_nothing() -> None:
    for name in ("tasks", "formats", "headers"):
        with pytest.raises(ConfigurationError, match=rf"{name} is None, not a list of texts"):
            read_rights({"q": {name: None}}, "here")
    assert read_rights({"q": {"exchanges": None}}, "here")["q"].exchanges is None


@pytest.mark.parametrize(
    "refused",
    [
        lambda: open_broker("embedded:///x?lease_seconds=1&lease_seconds=2"),
        lambda: parse_pubsub("pubsub://my-p?timeout=1&timeout=2", {}, {}),
        lambda: parse_firestore("firestore://p?timeout=1&timeout=2", {}),
    ],
)
def test_an_option_given_twice_is_an_error(refused: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"option '\w+' twice"):
        refused()


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_no_setting_is_without_an_end_by_mistake(text: str) -> None:
    with pytest.raises(ConfigurationError, match="lock_ttl takes a number"):
        load({}, {}, {"GWI_LOCK_TTL": text})
    with pytest.raises(ConfigurationError, match="not a number"):
        open_broker(f"embedded:///x?lease_seconds={text}")
