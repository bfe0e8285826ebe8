"""Who may call: Pub/Sub by its OIDC token, people and monitors by a token of their own.

Nothing of a token is ever logged or answered, only what was wrong with it.
"""

from __future__ import annotations

import hmac
import json
import logging
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from google.auth import jwt as _jwt

from gwi_celery import forks

logger = logging.getLogger(__name__)

#: The library carries no types.
jwt: Any = _jwt

#: Where Google publishes the certificates that its tokens are signed with.
GOOGLE_CERTS = "https://www.googleapis.com/oauth2/v1/certs"
ISSUERS = frozenset({"accounts.google.com", "https://accounts.google.com"})

#: Seconds that certificates are used for before they are fetched again. Google keeps a key for days.
_CERTS_TTL = 3600.0
#: Seconds between fetches because of a key that is not known: a stranger can name any.
_CERTS_PAUSE = 60.0
#: Seconds that a token may be younger or older than our clock thinks.
_CLOCK_SKEW = 10
#: Longest token that is looked at, characters; Google's have about a thousand.
_LONGEST_TOKEN = 8192

Fetch = Callable[[], Mapping[str, str]]


class Denied(Exception):
    """The call is not let in."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        #: 401: no valid token; 403: a valid one of somebody else; 503: it can't be checked now.
        self.status = status
        self.reason = reason


class Certificates:
    """Key id -> certificate (PEM), fetched when needed and kept."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._lock = forks.lock()
        self._known: Mapping[str, str] = {}
        self._fetched_at = self._tried_at = -_CERTS_TTL

    def for_key(self, key_id: str | None) -> Mapping[str, str]:
        """The certificates, among them that of ``key_id`` if it exists. Raises Denied."""
        with self._lock:
            now = time.monotonic()
            old = now - self._fetched_at > _CERTS_TTL
            unknown = key_id not in self._known and now - self._tried_at > _CERTS_PAUSE
            if old or unknown or not self._known:
                self._tried_at = now
                try:
                    self._known = dict(self._fetch())
                    self._fetched_at = now
                except Exception as exc:
                    logger.error("could not fetch the certificates for tokens: %s", exc)
                    if not self._known:
                        raise Denied(503, "tokens can't be checked now") from exc
            return self._known


class PushAuth:
    """Verifies Pub/Sub's token: signature, issuer, audience, times, and whose it is."""

    def __init__(self, audience: str, service_account: str, fetch: Fetch) -> None:
        self._audience = audience
        self._service_account = service_account
        self._certificates = Certificates(fetch)

    def verify(self, authorization: str | None) -> None:
        """Raises Denied. May fetch certificates, so it blocks now and then."""
        claims = self._claims(_bearer(authorization))
        if claims.get("iss") not in ISSUERS:
            raise Denied(401, "the token is of another issuer")
        if claims.get("email") != self._service_account:
            raise Denied(403, "the token is of another account")
        if claims.get("email_verified") is not True:
            raise Denied(403, "the token's account is not verified")

    def _claims(self, token: str) -> Mapping[str, Any]:
        try:
            key_id = jwt.decode_header(token).get("kid")
        except Exception as exc:
            raise Denied(401, "the token is malformed") from exc
        if not isinstance(key_id, str):
            raise Denied(401, "the token names no key")
        certificates = self._certificates.for_key(key_id)
        try:
            claims: Mapping[str, Any] = jwt.decode(
                token,
                certs=certificates,
                audience=self._audience,
                clock_skew_in_seconds=_CLOCK_SKEW,
            )
        except Exception as exc:  # whatever a stranger's bytes make of the library
            raise Denied(401, _why(exc)) from exc
        return claims


def _why(exc: Exception) -> str:
    """A reason without anything of the token in it."""
    text = str(exc)
    for part, reason in (
        ("Token expired", "the token has expired"),
        ("used too early", "the token is not valid yet"),
        ("audience", "the token is for another audience"),
        ("Certificate for key id", "the token's key is not known"),
        ("signature", "the token's signature is wrong"),
    ):
        if part in text:
            return reason
    return "the token is malformed"


def require_token(authorization: str | None, token: str) -> None:
    """Raise Denied unless the call carries ``token`` as its bearer."""
    if not hmac.compare_digest(_bearer(authorization).encode(), token.encode()):
        raise Denied(401, "the token is wrong")


def _bearer(authorization: str | None) -> str:
    scheme, _, token = (authorization or "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise Denied(401, "no bearer token")
    if len(token) > _LONGEST_TOKEN:
        raise Denied(401, "the token is too long")
    return token


def fetch_from(url: str, timeout: float = 10.0) -> Fetch:
    """Fetches certificates from ``url`` (https, or http on this machine in tests)."""

    def fetch() -> Mapping[str, str]:
        with urllib.request.urlopen(url, timeout=timeout) as response:  # noqa: S310 a setting
            found = json.loads(response.read(1024 * 1024))
        if not isinstance(found, dict) or not found:
            raise ValueError("no certificates in the answer")
        return found

    return fetch
