"""What each answer of Firestore becomes, and which calls are made again: without a server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from gwi_celery.errors import StoreUnavailable, StoreUnusable
from gwi_celery.firestore import documents
from gwi_celery.firestore.client import Client, Conflict, ServerError, Unsettled
from gwi_celery.firestore.documents import create
from gwi_celery.firestore.url import parse
from gwi_celery.testing.emulators import free_port

Code = grpc.StatusCode
API_OFF = "Cloud Firestore API has not been used in project 1 before or it is disabled."
NO_BILLING = (
    "This API method requires billing to be enabled. Please enable billing on project #1 by visiting "
    "https://console.developers.google.com/billing/enable?project=1 then retry."
)


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


def test_an_emulator_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", nobody)
    client = Client(parse("firestore://proj"))
    with pytest.raises(StoreUnavailable) as caught:
        client.read(["a/b"])
    client.close()
    assert f"the Firestore emulator at {nobody} (FIRESTORE_EMULATOR_HOST) does not answer" in str(
        caught.value
    )
    assert "python -m gwi_celery.testing.emulators --only firestore" in str(caught.value)


@pytest.mark.parametrize(
    ("details", "match"),
    [
        (API_OFF, "gcloud services enable firestore"),
        (NO_BILLING, "gcloud billing projects link proj"),
    ],
)
def test_googles_firestore_that_no_role_would_open(details: str, match: str) -> None:
    def refuse(*args: Any) -> Any:
        raise ServerError(Code.PERMISSION_DENIED, details)

    client = Client(parse("firestore://proj", {}), intercept=refuse)
    with pytest.raises(StoreUnusable, match=match) as caught:
        client.read(["a/b"])
    assert "roles/" not in str(caught.value)
