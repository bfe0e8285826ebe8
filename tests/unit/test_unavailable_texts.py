"""The error where Google or an emulator doesn't answer, or refuses: the cause, and the next step."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from gwi_celery.brokers.pubsub.client import Client as PubSubClient
from gwi_celery.brokers.pubsub.options import parse as parse_pubsub
from gwi_celery.errors import (
    BrokerError,
    BrokerUnavailable,
    BrokerUnusable,
    StoreUnavailable,
    StoreUnusable,
)
from gwi_celery.firestore.client import Client as FirestoreClient
from gwi_celery.firestore.client import ServerError
from gwi_celery.firestore.url import parse as parse_firestore
from gwi_celery.gcp import emulators
from gwi_celery.testing.emulators import free_port

Code = grpc.StatusCode
TOPIC = "projects/proj/topics/gwi-celery"
API_OFF = "Cloud Pub/Sub API has not been used in project 1 before or it is disabled."
NO_BILLING = (
    "This API method requires billing to be enabled. Please enable billing on project #1 by visiting "
    "https://console.developers.google.com/billing/enable?project=1 then retry."
)
PERIMETER = (
    "Request is prohibited by organization's policy. vpcServiceControlsUniqueIdentifier: abc"
)
NO_QUOTA = (
    "Your application is authenticating by using local Application Default Credentials. The "
    "pubsub.googleapis.com API requires a quota project, which is not set by default."
)
REGIONS = (
    "The requested message storage policy contains the following GCP regions that are not allowed by "
    "the project's organization policy: us-east1."
)
CMEK = "Constraint constraints/gcp.restrictNonCmekServices violated for projects/1."
NO_PROJECT = "Requested project not found or user does not have access to it (project=proj)."


class Answer(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self.code = lambda: code
        self.details = lambda: details
        self.trailing_metadata = lambda: ()


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address at which no emulator listens, named by both variables."""
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", address)
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", address)
    return address


def test_a_pubsub_emulator_that_is_not_there(nobody: str) -> None:
    client = PubSubClient(parse_pubsub("pubsub://proj"))
    with pytest.raises(BrokerUnavailable) as caught:
        client.call("GetTopic", _request("GetTopicRequest", topic=TOPIC), TOPIC, 10)
    client.close()
    assert f"the Pub/Sub emulator at {nobody} (PUBSUB_EMULATOR_HOST) does not answer" in str(
        caught.value
    )
    assert "python -m gwi_celery.testing.emulators --only pubsub" in str(caught.value)


def test_an_emulator_elsewhere_that_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have answered so itself, and starting another one here would not help."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "pubsub.test:8085")
    client = PubSubClient(parse_pubsub("pubsub://proj"))
    text = str(client.error(Answer(Code.UNAVAILABLE, "overloaded"), "Publish", TOPIC))
    assert "the Pub/Sub emulator at pubsub.test:8085 (PUBSUB_EMULATOR_HOST) is unavailable" in text
    assert "overloaded" in text
    assert "gwi_celery.testing" not in text
    other = emulators.unavailable("Firestore", emulators.FIRESTORE_HOST, "firestore.test:8080")
    assert "the Firestore emulator at firestore.test:8080 is unavailable" in other


def test_a_firestore_emulator_that_is_not_there(nobody: str) -> None:
    client = FirestoreClient(parse_firestore("firestore://proj"))
    with pytest.raises(StoreUnavailable) as caught:
        client.read(["a/b"])
    client.close()
    assert f"the Firestore emulator at {nobody} (FIRESTORE_EMULATOR_HOST) does not answer" in str(
        caught.value
    )
    assert "python -m gwi_celery.testing.emulators --only firestore" in str(caught.value)


@pytest.mark.parametrize(
    ("code", "details", "kind", "match"),
    [
        (Code.UNAVAILABLE, "down", BrokerUnavailable, r"Pub/Sub at pubsub\.googleapis\.com.*net"),
        (Code.PERMISSION_DENIED, API_OFF, BrokerUnusable, "gcloud services enable pubsub.google"),
        (Code.PERMISSION_DENIED, "no", BrokerUnusable, r"roles/pubsub\.publisher"),
        (Code.PERMISSION_DENIED, NO_BILLING, BrokerUnusable, "gcloud billing projects link proj"),
        (Code.PERMISSION_DENIED, PERIMETER, BrokerUnusable, "^a service perimeter.*ingress rule"),
        (Code.PERMISSION_DENIED, NO_QUOTA, BrokerUnusable, "set-quota-project proj"),
        (Code.FAILED_PRECONDITION, REGIONS, BrokerUnusable, "resourceLocations.*storage_regions"),
        (Code.FAILED_PRECONDITION, CMEK, BrokerUnusable, "kms_key"),
        (Code.FAILED_PRECONDITION, "no", BrokerError, "FAILED_PRECONDITION: no"),
        (Code.NOT_FOUND, NO_PROJECT, BrokerUnusable, "no Google Cloud project 'proj'.*GCP_PROJECT"),
    ],
)
def test_googles_pubsub(
    code: Any, details: str, kind: type[Exception], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    client = PubSubClient(parse_pubsub("pubsub://proj"))
    with pytest.raises(kind, match=match):
        raise client.error(Answer(code, details), "Publish", TOPIC)


@pytest.mark.parametrize(
    ("details", "match"),
    [
        (API_OFF.replace("Pub/Sub", "Firestore"), "gcloud services enable firestore"),
        (NO_BILLING, "gcloud billing projects link proj"),
    ],
)
def test_googles_firestore_that_no_role_would_open(details: str, match: str) -> None:
    def refuse(*args: Any) -> Any:
        raise ServerError(Code.PERMISSION_DENIED, details)

    client = FirestoreClient(parse_firestore("firestore://proj", {}), intercept=refuse)
    with pytest.raises(StoreUnusable, match=match) as caught:
        client.read(["a/b"])
    assert "roles/" not in str(caught.value)


def _request(name: str, **fields: Any) -> Any:
    from gwi_celery.brokers.pubsub.client import pb

    return pb[name](**fields)
