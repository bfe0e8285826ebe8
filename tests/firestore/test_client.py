"""The Firestore client without a server: its URLs, and what each answer of a server becomes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.cloud.firestore_v1 import types

from gwi_celery.errors import ConfigurationError, InvalidCall, StoreUnavailable, StoreUnusable
from gwi_celery.firestore import documents
from gwi_celery.firestore.client import Client, Conflict, ServerError, Unsettled
from gwi_celery.firestore.documents import Filter, Micros, Query, create
from gwi_celery.firestore.url import GOOGLE, parse
from tests import zygote

Code = grpc.StatusCode


# --- URLs -----------------------------------------------------------------------------------------


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


# --- answers --------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gwi_celery.firestore.client._PAUSE", 0.0)


def failing(*codes: Any) -> tuple[Client, list[str]]:
    """A client whose server answers with these codes, one call after the other."""
    calls: list[str] = []
    left = list(codes)

    def intercept(method: str, request: Any, call: Any) -> Any:
        calls.append(method)
        code = left.pop(0) if len(left) > 1 else left[0]
        if code is None:
            return documents._types.CommitResponse.pb()() if method == "Commit" else []
        details = "larger than max" if code == "too large" else "details of the server's"
        raise ServerError(Code.RESOURCE_EXHAUSTED if code == "too large" else code, details)

    return Client(parse("firestore://proj", {}), intercept=intercept), calls


@pytest.mark.parametrize(
    ("code", "commit", "read", "match"),
    [
        (Code.ALREADY_EXISTS, Conflict, StoreUnusable, "details"),
        (Code.FAILED_PRECONDITION, Conflict, StoreUnusable, "firestore.indexes.json"),
        (Code.NOT_FOUND, Conflict, StoreUnusable, "gcloud firestore databases create"),
        (Code.UNAVAILABLE, Unsettled, StoreUnavailable, "does not answer"),
        (Code.DEADLINE_EXCEEDED, Unsettled, StoreUnavailable, "does not answer"),
        (Code.INTERNAL, Unsettled, StoreUnavailable, "does not answer"),
        (Code.UNKNOWN, Unsettled, StoreUnavailable, "does not answer"),
        (Code.CANCELLED, Unsettled, StoreUnavailable, "does not answer"),
        (Code.ABORTED, Unsettled, StoreUnavailable, "does not answer"),
        (Code.RESOURCE_EXHAUSTED, StoreUnavailable, StoreUnavailable, "quota"),
        ("too large", StoreUnusable, StoreUnusable, "larger than max"),
        (Code.PERMISSION_DENIED, StoreUnusable, StoreUnusable, r"roles/datastore\.user"),
        (Code.UNAUTHENTICATED, StoreUnusable, StoreUnusable, "GOOGLE_APPLICATION_CREDENTIALS"),
        (Code.INVALID_ARGUMENT, StoreUnusable, StoreUnusable, "refuses the request"),
        (Code.UNIMPLEMENTED, StoreUnusable, StoreUnusable, "refuses the request"),
        (Code.OUT_OF_RANGE, StoreUnusable, StoreUnusable, "refuses the request"),
        (Code.DATA_LOSS, StoreUnusable, StoreUnusable, "refuses the request"),
    ],
)
def test_what_each_answer_becomes(code: Any, commit: Any, read: Any, match: str) -> None:
    client, _ = failing(code)
    with pytest.raises(Exception) as of_commit:
        client.commit([create("a/b", {})])
    assert type(of_commit.value) is commit
    with pytest.raises(read, match=match):
        client.read(["a/b"])


def test_credentials_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "no such file")
    with pytest.raises(StoreUnusable, match=r"no such file.*application-default login"):
        Client(parse("firestore://proj", {})).read(["a/b"])


def test_an_emulator_is_not_reached_through_the_proxy_that_leads_to_google(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:1")
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    client = Client(parse(f"firestore://proj?endpoint=127.0.0.1:{port}&emulator=true", {}))
    with pytest.raises(StoreUnusable, match="UNIMPLEMENTED"):
        client.read(["a/b"])
    client.close()
    server.stop(None).wait()


def test_every_code_that_grpc_has_is_mapped() -> None:
    """Another code in a later gRPC must be given a place in the table."""
    assert {code.name for code in Code} == {
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
    }


def test_an_aborted_commit_is_sent_again() -> None:
    client, calls = failing(Code.ABORTED, Code.ABORTED, None)
    client.commit([create("a/b", {})])
    assert calls == ["Commit"] * 3


def test_a_commit_without_an_answer_is_not_sent_again_blindly() -> None:
    client, calls = failing(Code.UNAVAILABLE)
    with pytest.raises(Unsettled):
        client.commit([create("a/b", {})])
    assert calls == ["Commit"]


def test_a_read_without_an_answer_is_sent_again() -> None:
    client, calls = failing(Code.UNAVAILABLE, Code.ABORTED, None)
    client.read(["a/b"])
    assert calls == ["BatchGetDocuments"] * 3


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        -1,
        2**62,
        1.5,
        "",
        "ü\x00",
        b"",
        b"\x00\xff",
        Micros(1_700_000_000_123_456),
        [1, "a", [b"x"]],
        {"a": {"b": [1]}},
    ],
)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    message = types.Value.pb()()
    documents.set_value(message, value)
    back = documents.get_value(message)
    assert back == value
    assert type(back) is type(value)


def test_a_value_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="set"):
        documents.set_value(types.Value.pb()(), {1, 2})


# --- against the emulator -------------------------------------------------------------------------


@pytest.mark.emulator
def test_commits_reads_and_queries(firestore_emulator: Any) -> None:
    client = Client(parse("firestore://client-test?database=other-db"))
    made = client.commit(
        [
            create(f"gwi/v1/things/{n}", {"n": n, "of": "x", "b": b"\xff"}, server_times=["at"])
            for n in range(3)
        ]
    )
    assert len(set(made.versions)) == 1, "one commit, one version: a lock's is its record's"
    assert made.versions[0] == made.commit_time
    with pytest.raises(Conflict):
        client.commit([create("gwi/v1/things/9", {}), create("gwi/v1/things/0", {})])

    read = client.read(["gwi/v1/things/0", "gwi/v1/things/9"])
    (document,) = read.documents.values()
    assert document.name == "gwi/v1/things/0"
    assert document.fields == {
        "n": 0,
        "of": "x",
        "b": b"\xff",
        "at": made.server_times[0][0],
    }
    assert document.update_time == made.versions[0] <= read.read_time

    checked = client.commit([documents.check("gwi/v1/things/0", made.versions[0])])
    assert checked.versions == made.versions[:1], "a check leaves the version as it was"
    changed = client.commit(
        [
            documents.change(
                "gwi/v1/things/0", {"n": 7}, made.versions[0], mask=["n", "b"], server_times=["at"]
            ),
            documents.delete("gwi/v1/things/1", made.versions[1]),
        ]
    )
    for stale in (
        documents.check("gwi/v1/things/0", made.versions[0]),
        documents.delete("gwi/v1/things/1", made.versions[1]),
        documents.change("gwi/v1/things/1", {}, made.versions[1], mask=["n"]),
    ):
        with pytest.raises(Conflict):
            client.commit([stale])

    query = Query("gwi/v1", "things", filters=[Filter("of", "==", "x")], order=[("n", "desc")])
    found = list(client.query(query).documents.values())
    assert [d.fields["n"] for d in found] == [7, 2]
    assert "b" not in found[0].fields
    assert found[0].update_time == changed.versions[0]
    after = Query(
        "gwi/v1",
        "things",
        filters=[Filter("of", "==", "x"), Filter("n", "<=", 100)],
        order=[("n", "desc")],
        after=[7, "gwi/v1/things/0"],
        limit=1,
        mask=["n"],
    )
    (second,) = client.query(after).documents.values()
    assert second.fields == {"n": 2}
    below = Query("gwi/v1", "things", descendants=True, mask=[])
    assert len(client.query(below).documents) == 2
    client.close()
    client.close()
    assert client.read(["gwi/v1/things/0"]).documents, "a closed client connects again"
    client.close()


@pytest.mark.emulator
def test_a_server_that_is_not_there_is_a_temporary_matter() -> None:
    """Nothing listens there: temporary, and it says where."""
    url = parse("firestore://p?endpoint=127.0.0.1:1&emulator=true&timeout=2", {})
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1"):
        Client(url).read(["a/b"])


FORKS = """
import os, threading
from gwi_celery.firestore.client import Client
from gwi_celery.firestore.documents import Write
from gwi_celery.firestore.url import parse

client = Client(parse("firestore://fork-test"))
over = threading.Event()

def call():
    n = 0
    while not over.is_set():
        client.commit([Write(f"a/{threading.get_ident()}", {"n": n})])
        n += 1

threads = [threading.Thread(target=call) for _ in range(3)]
for thread in threads:
    thread.start()
codes = []
for n in range(30):
    pid = os.fork()
    if not pid:
        client.commit([Write(f"b/{n}", {})])
        os._exit(0 if client.read([f"b/{n}"]).documents else 1)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
over.set()
for thread in threads:
    thread.join()
assert client.read(["b/0"]).documents
print("children failed:", sum(map(bool, codes)))
"""


@pytest.mark.emulator
def test_a_busy_client_is_used_on_both_sides_of_forks(
    firestore_emulator: Any, tmp_path: Path
) -> None:
    done = zygote.run(FORKS, folder=tmp_path)
    assert done.stdout.splitlines()[-1:] == ["children failed: 0"], done.stdout
