"""Whose token opens /push, and whose doesn't."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwi_celery.service.auth import Certificates, Denied, PushAuth, require_token
from tests.service.tokens import ACCOUNT, AUDIENCE, Issuer

GOOGLE = Issuer()
STRANGER = Issuer()


def auth(fetch: Any = None) -> PushAuth:
    return PushAuth(AUDIENCE, ACCOUNT, fetch or (lambda: GOOGLE.certificates))


def denied(authorization: str | None, fetch: Any = None) -> tuple[int, str]:
    with pytest.raises(Denied) as caught:
        auth(fetch).verify(authorization)
    return caught.value.status, caught.value.reason


def test_pubsubs_token_is_let_in() -> None:
    auth().verify(f"Bearer {GOOGLE.token()}")
    auth().verify(f"bearer {GOOGLE.token(iss='accounts.google.com')}")


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"aud": "https://another.example.test/push"}, 401, "another audience"),
        ({"aud": None}, 401, "another audience"),
        ({"aud": [AUDIENCE]}, 401, "another audience"),
        ({"exp": int(time.time()) - 60}, 401, "has expired"),
        ({"iat": int(time.time()) + 600, "exp": int(time.time()) + 900}, 401, "not valid yet"),
        ({"exp": None}, 401, "malformed"),
        ({"iss": "https://accounts.evil.test"}, 401, "another issuer"),
        ({"iss": None}, 401, "another issuer"),
        ({"email": "someone@else.test"}, 403, "another account"),
        ({"email": None}, 403, "another account"),
        ({"email_verified": False}, 403, "not verified"),
        ({"email_verified": "true"}, 403, "not verified"),
        ({"email_verified": None}, 403, "not verified"),
    ],
)
def test_a_token_with_another_claim_is_not(
    changes: dict[str, Any], status: int, reason: str
) -> None:
    answer = denied(f"Bearer {GOOGLE.token(**changes)}")
    assert answer[0] == status
    assert reason in answer[1]


def test_a_token_signed_by_a_stranger_is_not() -> None:
    assert denied(f"Bearer {STRANGER.token()}") == (401, "the token's signature is wrong")
    other = Issuer("key-9")
    assert denied(f"Bearer {other.token()}") == (401, "the token's key is not known")


def test_a_changed_token_is_not() -> None:
    header, claims, signature = GOOGLE.token(email="someone@else.test").split(".")
    forged = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    forged["email"] = ACCOUNT
    changed = base64.urlsafe_b64encode(json.dumps(forged).encode()).decode().rstrip("=")
    assert denied(f"Bearer {header}.{changed}.{signature}")[0] == 401


@pytest.mark.parametrize("algorithm", ["none", "HS256", "RS512", None, ["RS256"], {"a": 1}])
def test_a_token_of_another_algorithm_is_not(algorithm: Any) -> None:
    header = {"alg": algorithm, "kid": "key-1", "typ": "JWT"}
    parts = [header, {"aud": AUDIENCE, "email": ACCOUNT, "email_verified": True}]
    encoded = [base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts]
    for signature in ("", "AAAA"):
        assert denied(f"Bearer {encoded[0]}.{encoded[1]}.{signature}")[0] == 401


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Basic YTpi", "Bearer a", "Bearer a.b.c", "Bearer ..", "é"],
)
def test_no_token_is_not(authorization: str | None) -> None:
    assert denied(authorization)[0] == 401


@given(st.text(max_size=200))
def test_nothing_that_a_stranger_sends_is_anything_but_denied(text: str) -> None:
    assert denied(f"Bearer {text}")[0] == 401
    assert denied(text)[0] == 401


def test_a_very_long_token_is_not_even_looked_at() -> None:
    assert denied("Bearer " + "a" * 100_000) == (401, "the token is too long")


def test_certificates_are_fetched_once_and_again_for_a_new_key_but_not_for_each_stranger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr("gwi_celery.service.auth.time.monotonic", lambda: now[0])
    fetched = []
    known: dict[str, str] = {"a": "A"}

    def fetch() -> Mapping[str, str]:
        fetched.append(now[0])
        return known

    certificates = Certificates(fetch)
    for _ in range(3):
        assert certificates.for_key("a") == {"a": "A"}
    assert len(fetched) == 1
    known["b"] = "B"
    for n in range(50):
        certificates.for_key(f"stranger-{n}")
    assert len(fetched) == 1, "a minute has not passed"
    now[0] += 61
    assert "b" in certificates.for_key("b")
    assert len(fetched) == 2
    now[0] += 3601
    certificates.for_key("a")
    assert len(fetched) == 3


def test_without_certificates_nobody_is_let_in_and_with_old_ones_who_was_before() -> None:
    def away() -> Mapping[str, str]:
        raise OSError("no network")

    assert denied(f"Bearer {GOOGLE.token()}", away) == (503, "tokens can't be checked now")


def test_peoples_token() -> None:
    require_token("Bearer s3cret", "s3cret")
    for wrong in (None, "Bearer s3cre", "Bearer", "s3cret", "Bearer s3cretü"):
        with pytest.raises(Denied):
            require_token(wrong, "s3cret")
