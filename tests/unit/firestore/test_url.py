"""URLs of Firestore: what they name, and what is wrong with one."""

from __future__ import annotations

import pytest

from gwi_celery.errors import ConfigurationError, InvalidCall
from gwi_celery.firestore.url import GOOGLE, parse


def test_a_url_names_project_prefix_database_and_endpoint() -> None:
    url = parse("firestore://proj/mine?database=db-1&endpoint=10.0.0.1:443&timeout=3", {})
    assert (url.project, url.prefix, url.database) == ("proj", "mine", "db-1")
    assert (url.endpoint, url.timeout, url.emulator) == ("10.0.0.1:443", 3.0, False)
    plain = parse("firestore://proj", {})
    assert (plain.prefix, plain.database, plain.endpoint) == ("gwi", "(default)", GOOGLE)


def test_the_emulators_host_needs_no_credentials() -> None:
    environ = {"FIRESTORE_EMULATOR_HOST": "127.0.0.1:8080"}
    url = parse("firestore://proj", environ)
    assert (url.endpoint, url.emulator) == ("127.0.0.1:8080", True)
    assert not parse("firestore://proj?endpoint=other:1", environ).emulator
    assert not parse("firestore://proj?emulator=off", environ).emulator
    assert parse("firestore://proj?endpoint=other:1&emulator=true", {}).emulator


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("firestore://", "no Firestore URL"),
        ("firestor://p", "no Firestore URL"),
        ("firestore://p?databse=x", "did you mean 'database'"),
        ("firestore://localhost:8080/p", r"firestore://project\?endpoint=localhost:8080"),
        ("firestore://p/a/b", "one word"),
        ("firestore://p/..", "can't name a collection"),
        ("firestore://p/__x__", "can't name a collection"),
        ("firestore://p?database=Caps", "no database id"),
        ("firestore://p?database={tenat}", "no database id"),
        ("firestore://p?timeout=soon", "seconds"),
        ("firestore://p?timeout=", "seconds"),
    ],
)
def test_a_wrong_url_is_refused_by_what_is_wrong(url: str, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        parse(url, {})


def test_a_database_for_each_tenant() -> None:
    by_name = parse("firestore://p?database=tenant-{tenant}", {})
    assert by_name.database_per_tenant
    assert by_name.database_of("acme") == "tenant-acme"
    with pytest.raises(InvalidCall, match="tenant_hash"):
        by_name.database_of("Acme/EU")
    by_hash = parse("firestore://p?database=t-{tenant_hash}", {})
    assert by_hash.database_of("Acme/EU") != by_hash.database_of("acme/eu")
    assert parse("firestore://p", {}).database_of("Acme/EU") == "(default)"
