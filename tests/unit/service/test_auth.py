"""Whose token opens /push, and whose doesn't."""

from __future__ import annotations

import base64
import hmac
import json
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwi_celery.config import Settings
from gwi_celery.errors import ConfigurationError
from gwi_celery.service.auth import (
    SIGNATURE_REMOVED,
    Denied,
    PushAuth,
    push_auth,
    require_token,
    warn_if_open,
)
from tests.machine import examples
from tests.service.tokens import ACCOUNT, AUDIENCE, Issuer

GOOGLE = Issuer()
STRANGER = Issuer()


@contextmanager
def auth(fetch: Any = None) -> Iterator[PushAuth]:
    gate = PushAuth(AUDIENCE, ACCOUNT, fetch or (lambda: GOOGLE.certificates))
    try:
        yield gate
    finally:
        gate.close()


def denied(authorization: str | None, fetch: Any = None) -> tuple[int, str]:
    with auth(fetch) as gate, pytest.raises(Denied) as caught:
        gate.verify(authorization)
    return caught.value.status, caught.value.reason


def test_pubsubs_token_is_let_in() -> None:
    with auth() as gate:
        gate.verify(f"Bearer {GOOGLE.token()}")
        gate.verify(f"bearer {GOOGLE.token(iss='accounts.google.com')}")


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"aud": "https://another.example.test/push"}, 401, "another audience"),
        ({"aud": None}, 401, "another audience"),
        ({"aud": [AUDIENCE]}, 401, "another audience"),
        ({"exp": -60}, 401, "has expired"),
        ({"iat": 600, "exp": 900}, 401, "not valid yet"),
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
    now = int(time.time())  # not that of the collection
    claims = {k: now + v if k in ("exp", "iat") and v else v for k, v in changes.items()}
    answer = denied(f"Bearer {GOOGLE.token(**claims)}")
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


def test_without_certificates_nobody_is_let_in() -> None:
    def unavailable() -> Mapping[str, str]:
        raise OSError("no network")

    assert denied(f"Bearer {GOOGLE.token()}", unavailable) == (503, "tokens can't be checked now")


@pytest.mark.parametrize("claim", ["iss", "aud", "email", "email_verified", "exp", "iat"])
def test_mutations_of_a_good_token_open_nothing(claim: str) -> None:
    """Bytes, claims, headers and signatures changed at random: none gets in."""
    rng, good = random.Random(claim), GOOGLE.token()
    with auth() as gate:
        gate.verify(f"Bearer {good}")
        for _ in range(examples(425)):
            with pytest.raises(Denied):
                gate.verify(f"Bearer {mutated(good, claim, rng)}")
        gate.verify(f"Bearer {good}")


def mutated(good: str, claim: str, rng: random.Random) -> str:
    header, body, signature = (_parts(good)[0], _parts(good)[1], good.rpartition(".")[2])
    kind = rng.randrange(6)
    if kind == 0:  # a character of the text
        at = rng.randrange(len(good) - 2)
        other = rng.choice([c for c in "ABCxyz019-_.=%\n\0é" if c != good[at]])
        token = good[:at] + other + good[at + 1 :]
    elif kind == 1:  # a claim, under the old signature
        body[claim] = rng.choice([ACCOUNT, AUDIENCE, None, True, 0, 2**62, [AUDIENCE], {}, ""])
        token = f"{_b64(header)}.{_b64({**body, 'n': rng.random()})}.{signature}"
    elif kind == 2:  # the header
        header[rng.choice(["alg", "kid", "typ", "crit", "b64", "jwk", "jku", "x5c"])] = rng.choice(
            [
                "none",
                "None",
                "HS256",
                "RS512",
                "PS256",
                "key-2",
                None,
                [],
                {},
                ["exp"],
                "../key-1",
            ]
        )
        token = f"{_b64(header)}.{_b64(body)}.{signature}"
    elif kind == 3:  # the signature
        made = ["", "AAAA", SIGNATURE_REMOVED, signature[:-4], signature * 2, signature[::-1]]
        token = f"{_b64(header)}.{_b64(body)}.{rng.choice(made)}"
    elif kind == 4:  # signed with what everybody knows
        key = GOOGLE.certificates["key-1"].encode()
        hs = _b64({**header, "alg": "HS256"}) + "." + _b64(body)
        mac = hmac.digest(key, hs.encode(), "sha256")
        token = f"{hs}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"
    else:  # signed well, without the claim or with another's
        token = GOOGLE.token(**{claim: rng.choice([None, [AUDIENCE, ACCOUNT], "x", {"a": 1}])})
    return token


def _parts(token: str) -> list[dict[str, Any]]:
    return [
        json.loads(base64.urlsafe_b64decode(p + "=" * (-len(p) % 4))) for p in token.split(".")[:2]
    ]


def _b64(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


# --- behind Cloud Run, which has checked the signature and taken it out -----------------------------


def removed(token: str) -> str:
    return f"{token.rpartition('.')[0]}.{SIGNATURE_REMOVED}"


def test_behind_the_platforms_check_all_but_the_signature_is_checked() -> None:
    gate = PushAuth(AUDIENCE, ACCOUNT, None)
    gate.verify(f"Bearer {removed(GOOGLE.token())}")
    now = int(time.time())
    for changes, status in (
        ({"aud": "https://another.example.test"}, 401),
        ({"iss": "https://accounts.evil.test"}, 401),
        ({"exp": now - 60}, 401),
        ({"exp": None}, 401),
        ({"iat": now + 600, "exp": now + 900}, 401),
        ({"nbf": now + 600}, 401),
        ({"email": "someone@else.test"}, 403),
        ({"email_verified": False}, 403),
    ):
        with pytest.raises(Denied) as caught:
            gate.verify(f"Bearer {removed(GOOGLE.token(**changes))}")
        assert caught.value.status == status, changes
    for token in (
        GOOGLE.token(),
        GOOGLE.token() + "x",
        removed(GOOGLE.token())[:-1],
        SIGNATURE_REMOVED,
    ):
        with pytest.raises(Denied):
            gate.verify(f"Bearer {token}")


def test_elsewhere_a_removed_signature_is_refused_and_the_way_out_told() -> None:
    status, reason = denied(f"Bearer {removed(GOOGLE.token())}")
    assert status == 401
    assert "push_auth=iam" in reason


def test_only_who_says_so_gets_that_mode() -> None:
    named = {"push_audience": AUDIENCE, "push_service_account": ACCOUNT}
    assert push_auth(Settings(**named), None).keys is not None  # type: ignore[union-attr]
    assert push_auth(Settings(push_auth="iam", **named), None).keys is None  # type: ignore[union-attr]
    assert push_auth(Settings(push_auth="none"), None) is None
    with pytest.raises(ConfigurationError, match="push_audience is not set"):
        push_auth(Settings(push_auth="iam"), None)


@pytest.mark.parametrize(("mode", "told"), [("none", "runs jobs"), ("iam", "without a signature")])
def test_what_a_mode_relies_on_is_said_at_start(
    mode: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    warn_if_open(Settings(push_auth=mode))
    assert told in caplog.text
    caplog.clear()
    warn_if_open(Settings(environment="development"))
    warn_if_open(Settings())
    assert caplog.text == ""


def test_peoples_token() -> None:
    require_token("Bearer s3cret", "s3cret")
    for wrong in (None, "Bearer s3cre", "Bearer", "s3cret", "Bearer s3cretü"):
        with pytest.raises(Denied):
            require_token(wrong, "s3cret")
