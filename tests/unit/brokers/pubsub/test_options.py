"""pubsub:// URLs, options, and the errors for wrong ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gwi_celery.brokers.pubsub.options import OPTIONS, parse
from gwi_celery.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[4]


@pytest.mark.parametrize(
    ("url", "environ", "project", "endpoint", "emulator"),
    [
        ("pubsub://my-project", {}, "my-project", "pubsub.googleapis.com:443", False),
        ("pubsub://my-project/", {}, "my-project", "pubsub.googleapis.com:443", False),
        ("pubsub://a.com:p", {}, "a.com:p", "pubsub.googleapis.com:443", False),
        ("pubsub://p", {"PUBSUB_EMULATOR_HOST": "h:1"}, "p", "h:1", True),
        ("pubsub://localhost:8085/p", {"PUBSUB_EMULATOR_HOST": "h:1"}, "p", "localhost:8085", True),
        ("pubsub://localhost/p", {}, "p", "localhost:8085", True),
        ("pubsub://[::1]:9/p", {}, "p", "[::1]:9", True),
        (
            "pubsub://europe-west1-pubsub.googleapis.com/p",
            {"PUBSUB_EMULATOR_HOST": "h:1"},
            "p",
            "europe-west1-pubsub.googleapis.com:443",
            False,
        ),
        (
            "pubsub://x.googleapis.com.evil.example/p",
            {},
            "p",
            "x.googleapis.com.evil.example:443",
            False,
        ),
        ("pubsub://pubsub-proxy:9000/p", {}, "p", "pubsub-proxy:9000", False),
        ("pubsub://emulators:9000/p?emulator=true", {}, "p", "emulators:9000", True),
        ("pubsub://emulators/p?emulator=true", {}, "p", "emulators:8085", True),
        ("pubsub://127.0.0.2/p?emulator=false", {}, "p", "127.0.0.2:443", False),
        (
            "pubsub://p?emulator=false",
            {"PUBSUB_EMULATOR_HOST": "h:1"},
            "p",
            "pubsub.googleapis.com:443",
            False,
        ),
        (
            "pubsub://p",
            {"GOOGLE_CLOUD_UNIVERSE_DOMAIN": "example.goog"},
            "p",
            "pubsub.example.goog:443",
            False,
        ),
    ],
)
def test_urls(
    url: str, environ: dict[str, str], project: str, endpoint: str, emulator: bool
) -> None:
    options = parse(url, environ=environ)
    assert (options.project, options.endpoint, options.emulator) == (project, endpoint, emulator)


def test_an_emulator_may_be_as_strict_as_the_service() -> None:
    host = {"PUBSUB_EMULATOR_HOST": "h:1"}
    assert parse("pubsub://p", environ=host).lax
    assert not parse("pubsub://p", environ={**host, "GWI_PUBSUB_TWIN": "h:1"}).lax
    assert parse("pubsub://p", environ={**host, "GWI_PUBSUB_TWIN": "h:2"}).lax
    assert not parse("pubsub://localhost/p?emulator=strict", environ={}).lax
    assert not parse("pubsub://p", environ={"GWI_PUBSUB_TWIN": "h:1"}).strict


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("pubsub://", "write pubsub://my-project, or pubsub://host:port/my-project"),
        ("pubsub://a/b/c", "write pubsub://my-project, or pubsub://host:port/my-project"),
        ("gcpubsub://projects/p", "is no Pub/Sub URL: write pubsub://my-project"),
        ("pubsub://projects/my-project", r"write pubsub://my-project$"),
        ("pubsub://My_Project", "'My_Project' is no Google Cloud project id"),
        (
            "pubsub://p?emulator=true",
            "emulator is true, and nothing names one: write pubsub://host",
        ),
        ("pubsub://localhost:port/p", "'localhost:port' is no endpoint: write host:port"),
    ],
)
def test_wrong_urls(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse(url, environ={})


def test_options_come_from_the_url_and_from_transport_options() -> None:
    query = (
        "emulator=false&mode=managed&repair=yes&prefix=ab&lease_seconds=60&max_deliveries=5&retention=600"
        "&publisher_confirms=off&publish_timeout=3&timeout=2.5&exactly_once=1&ordering=true"
        "&priority_levels=0,5&retry_policy=1,60&storage_regions=europe-west1,europe-west4"
        "&kms_key=projects/p/locations/l/keyRings/r/cryptoKeys/k"
        '&labels={"team":"a"}&queues={"q":{"topic":"t"}}'
    )
    given = dict(item.split("=", 1) for item in query.split("&"))
    assert given.keys() == OPTIONS.keys(), "each option is tried here"
    from_url = parse(f"pubsub://p?{query}", environ={})
    from_options = parse(
        "pubsub://p",
        {
            "emulator": False,
            "mode": "managed",
            "repair": True,
            "prefix": "ab",
            "lease_seconds": 60,
            "max_deliveries": 5,
            "retention": 600,
            "publisher_confirms": False,
            "publish_timeout": 3,
            "timeout": 2.5,
            "exactly_once": True,
            "ordering": True,
            "priority_levels": [0, 5],
            "retry_policy": [1, 60],
            "storage_regions": ["europe-west1", "europe-west4"],
            "kms_key": "projects/p/locations/l/keyRings/r/cryptoKeys/k",
            "labels": {"team": "a"},
            "queues": {"q": {"topic": "t"}},
        },
        environ={},
    )
    assert from_url == from_options
    assert from_url.storage_regions == ("europe-west1", "europe-west4")
    assert parse("pubsub://p?storage_regions=&priority_levels=&retention=", environ={}) == parse(
        "pubsub://p", environ={}
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"lease_second": 1},
            "'lease_second' is no option of pubsub://; did you mean 'lease_seconds'",
        ),
        ({"exactly": 1}, "did you mean 'exactly_once'"),
        ({"mode": "manged"}, "mode is 'manged'; did you mean 'managed'"),
        ({"emulator": "strikt"}, "emulator is 'strikt', not true, false or strict"),
        ({"repair": "maybe"}, "repair is 'maybe', not true or false"),
        ({"lease_seconds": "long"}, "lease_seconds is 'long', not a number of seconds"),
        ({"lease_seconds": 9}, "lease_seconds is 9: Pub/Sub takes 10 to 600"),
        ({"lease_seconds": float("nan")}, "lease_seconds is nan"),
        ({"max_deliveries": "x"}, "max_deliveries is 'x', not a whole number"),
        ({"max_deliveries": 101}, "max_deliveries is 101: Pub/Sub counts up to 100"),
        ({"prefix": "goog-"}, "prefix is 'goog-'"),
        ({"prefix": "a"}, "prefix is 'a': write 2 to 31"),
        ({"prefix": "a~"}, "prefix is 'a~'"),
        ({"retention": 60}, "retention is 60 seconds: Pub/Sub takes 600"),
        ({"retention": "week"}, "retention is 'week', not a number of seconds"),
        ({"timeout": 0}, "timeout is 0: write seconds above 0"),
        ({"timeout": 1e12}, r"timeout is 1e\+12: write seconds above 0 and below 3600"),
        ({"publish_timeout": "inf"}, "publish_timeout is 'inf', not a number of seconds"),
        ({"priority_levels": "0,high"}, "priority_levels is '0,high', not a list of whole numbers"),
        ({"priority_levels": [3, 6]}, r"priority_levels is \[3, 6\]: write the lowest priority"),
        ({"priority_levels": [0, 10]}, r"priority_levels is \[0, 10\]"),
        ({"retry_policy": "10"}, "retry_policy is '10', not two numbers of seconds"),
        ({"retry_policy": [60, 10]}, "retry_policy is 60, 10: write the shortest and the longest"),
        ({"retry_policy": [0, 601]}, "retry_policy is 0, 601"),
        ({"kms_key": "my-key"}, "kms_key is 'my-key': write projects/P/locations"),
        ({"labels": "team"}, r"labels is 'team', not a mapping \(JSON in a URL\)"),
        ({"labels": {"Team": "a"}}, "labels has 'Team': write up to 63"),
        ({"labels": {"gwi-x": "a"}}, "labels has 'gwi-x'"),
        ({"labels": {"team": "A"}}, "labels: 'team' is 'A'"),
        ({"labels": {f"l{n}": "" for n in range(13)}}, "labels has 13: at most 12"),
        ({"queues": {"q": "t"}}, "queues: 'q' is 't': write"),
        ({"queues": {"q": {"topik": "t"}}}, "queues: 'q' has 'topik'; did you mean 'topic'"),
        ({"queues": {"q": {"topic": "a/b"}}}, "queues: topic of 'q' is 'a/b': write an id, or"),
        ({"mode": "provisioned", "repair": True}, "repair needs admin calls"),
    ],
    ids=str,
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse("pubsub://p", options, environ={})


def test_each_option_has_its_row_in_the_documents() -> None:
    text = (ROOT / "docs" / "pubsub.md").read_text()
    rows = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert rows >= OPTIONS.keys() | {"max_lease_seconds"}
