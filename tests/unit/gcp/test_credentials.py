"""Channels with TLS and credentials: to a server of our own, with keys of our own."""

from __future__ import annotations

import datetime
import http.server
import ipaddress
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gwi_celery.brokers.pubsub.client import Client, pb
from gwi_celery.brokers.pubsub.options import parse
from gwi_celery.doctor import grants
from gwi_celery.doctor.account import who
from gwi_celery.doctor.grants import Grants
from gwi_celery.errors import BrokerUnavailable, BrokerUnusable, StoreUnusable
from gwi_celery.firestore.client import Client as FirestoreClient
from gwi_celery.firestore.url import parse as parse_firestore
from gwi_celery.gcp import credentials
from gwi_celery.gcp.credentials import NoCredentials

TOPIC = "projects/p/topics/t"


class Cloud:
    """A gRPC server with TLS, and a server of tokens."""

    def __init__(self) -> None:
        #: What a request for a token is answered with.
        self.token: tuple[int, dict[str, Any]] = (200, {"access_token": "tkn", "expires_in": 3600})
        #: Metadata of the calls that got here.
        self.calls: list[dict[str, str]] = []
        self.key = rsa.generate_private_key(65537, 2048)
        self.pem = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        self.certificate = _certificate(self.key)
        self._grpc = grpc.server(ThreadPoolExecutor(2))
        self._grpc.add_generic_rpc_handlers([_Handler(self)])
        tls = grpc.ssl_server_credentials([(self.pem, self.certificate)])
        self.endpoint = f"localhost:{self._grpc.add_secure_port('localhost:0', tls)}"
        self._grpc.start()
        cloud = self

        class Tokens(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = cloud.token
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Tokens)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def account(self, **more: str) -> dict[str, str]:
        """A service account's key file."""
        return {
            "type": "service_account",
            "client_email": "worker@p.iam.gserviceaccount.com",
            "private_key": self.pem.decode(),
            "token_uri": f"http://127.0.0.1:{self._http.server_port}/token",
            **more,
        }

    def close(self) -> None:
        self._grpc.stop(None).wait()
        self._http.shutdown()
        self._http.server_close()


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    def service(self, details: Any) -> Any:
        self._cloud.calls.append(dict(details.invocation_metadata))
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")


def _certificate(key: rsa.RSAPrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    names: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module")
def started() -> Iterator[Cloud]:
    cloud = Cloud()
    yield cloud
    cloud.close()


@pytest.fixture
def cloud(started: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    started.token = (200, {"access_token": "tkn", "expires_in": 3600})
    started.calls.clear()
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    monkeypatch.delenv("FIRESTORE_EMULATOR_HOST", raising=False)
    _use(started.account(), tmp_path, monkeypatch)
    real = grpc.ssl_channel_credentials
    # gRPC reads its roots once for a process.
    monkeypatch.setattr(
        grpc, "ssl_channel_credentials", lambda: real(root_certificates=started.certificate)
    )
    return started


def _use(account: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "key.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(folder / "key.json"))


def _publish(cloud: Cloud, **options: Any) -> None:
    client = Client(parse(f"pubsub://{cloud.endpoint}/p", {"emulator": False, **options}))
    try:
        client.persist("Publish", pb["PublishRequest"](topic=TOPIC), TOPIC, 3.0)
    finally:
        client.close()


def test_another_host_gets_tls_and_a_token(cloud: Cloud) -> None:
    _publish(cloud)
    assert [call["authorization"] for call in cloud.calls] == ["Bearer tkn"]


def test_the_doctor_names_the_account_and_the_project_that_its_calls_count_for(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = parse("pubsub://p")
    found = who(options)
    assert found.measured.startswith("worker@p.iam.gserviceaccount.com, quota of its own project,")
    assert (found.holds, found.change) == (None, "")
    monkeypatch.setenv("GOOGLE_CLOUD_QUOTA_PROJECT", "other")
    found = who(options)
    assert "quota of other" in found.measured
    assert found.change.endswith("set-quota-project")
    cloud.token = (400, {"error": "invalid_grant", "error_description": "Account is disabled."})
    found = who(options)
    assert found.holds is False
    assert "Account is disabled" in found.measured
    assert found.change.startswith("gcloud auth application-default login")
    _use(cloud.account(token_uri="http://127.0.0.1:9/token"), tmp_path, monkeypatch)
    found = who(options)
    assert found.holds is False
    assert found.change.startswith("check this machine's network")


def test_the_doctor_asks_cloud_resource_manager_for_the_projects_policy(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over TLS and with a token; this server has empty policies, and no number of the project."""
    monkeypatch.setattr(grants, "endpoint", lambda service: cloud.endpoint)
    options = parse("pubsub://p", {"emulator": False})
    with Grants(replace(options, endpoint=cloud.endpoint)) as asking:
        found = asking.agents(
            "projects/p/topics/t", "p", "it", "roles/pubsub.publisher", "grant it"
        )
    assert found.measured.startswith("the topic itself: not granted; project p: not granted; ")
    assert [call["x-goog-request-params"] for call in cloud.calls] == [
        "resource=projects/p/topics/t",
        "name=projects/p",
        "resource=projects/p",
    ]
    assert {call["authorization"] for call in cloud.calls} == {"Bearer tkn"}


@pytest.mark.parametrize("kind", ["pubsub", "firestore"])
def test_revoked_credentials_end_at_once_with_what_mends_them(cloud: Cloud, kind: str) -> None:
    """gRPC calls it UNAVAILABLE, as if the network were down."""
    cloud.token = (400, {"error": "invalid_grant", "error_description": "Account is disabled."})
    if kind == "pubsub":
        with pytest.raises(BrokerUnusable, match=r"invalid_grant.*GOOGLE_APPLICATION_CREDENTIALS"):
            _publish(cloud)
    else:
        client = FirestoreClient(parse_firestore(f"firestore://p?endpoint={cloud.endpoint}"))
        with pytest.raises(StoreUnusable, match=r"invalid_grant.*GOOGLE_APPLICATION_CREDENTIALS"):
            client.read(["a/b"])
        client.close()
    assert cloud.calls == []


def test_a_server_of_tokens_that_does_not_answer_is_waited_for(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the network, or will be mended: the call fails for now, and is made again."""
    nowhere = "http://127.0.0.1:9/token"
    _use(cloud.account(token_uri=nowhere), tmp_path, monkeypatch)
    with pytest.raises(BrokerUnavailable, match="UNAVAILABLE"):
        _publish(cloud, timeout=1)


def test_credentials_of_another_universe_are_told(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(cloud.account(universe_domain="example.goog"), tmp_path, monkeypatch)
    access = credentials.Access(["scope"])
    with pytest.raises(NoCredentials, match=r"set GOOGLE_CLOUD_UNIVERSE_DOMAIN=example.goog"):
        access.channel("pubsub.googleapis.com:443", [])
    monkeypatch.setenv("GOOGLE_CLOUD_UNIVERSE_DOMAIN", "example.goog")
    access.channel(parse("pubsub://p").endpoint, []).close()


@pytest.mark.parametrize(
    ("use", "host", "target"),
    [
        ("always", "pubsub.googleapis.com", "pubsub.mtls.googleapis.com:443"),
        ("auto", "pubsub.googleapis.com", "pubsub.googleapis.com:443"),
        ("always", "pubsub.internal", "pubsub.internal:443"),
    ],
)
def test_the_endpoint_for_client_certificates_is_used_when_told(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, use: str, host: str, target: str
) -> None:
    targets: list[str] = []
    monkeypatch.setattr(grpc, "secure_channel", lambda target, *_, **__: targets.append(target))
    monkeypatch.setenv("GOOGLE_API_USE_MTLS_ENDPOINT", use)
    credentials.Access(["scope"]).channel(f"{host}:443", [])
    assert targets == [target]
