"""Who may call: Pub/Sub by its OIDC token, people and monitors by a token of their own.

Nothing of a token is ever logged or answered, only what was wrong with it.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Mapping
from typing import Any

import jwt

from gwi_celery.config import Settings
from gwi_celery.errors import ConfigurationError
from gwi_celery.service.keys import GOOGLE_CERTS, Fetch, Keys, fetch_from

logger = logging.getLogger(__name__)

ISSUERS = ("accounts.google.com", "https://accounts.google.com")

#: What Cloud Run puts in place of a signature that it has checked, so that no container can use the
#: token elsewhere.
SIGNATURE_REMOVED = "SIGNATURE_REMOVED_BY_GOOGLE"

#: Seconds by which our clock may differ from the issuer's.
_CLOCK_SKEW = 10
#: Longest token that is looked at, characters; Google's have about a thousand.
_LONGEST_TOKEN = 8192

#: What PyJWT raises -> what the caller is told; the first that fits, so subclasses come first.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (jwt.InvalidSignatureError, "the token's signature is wrong"),
    (jwt.ExpiredSignatureError, "the token has expired"),
    (jwt.ImmatureSignatureError, "the token is not valid yet"),
    (jwt.InvalidAudienceError, "the token is for another audience"),
    (jwt.InvalidIssuerError, "the token is of another issuer"),
)
#: A required claim -> what the caller is told if it is missing.
_CLAIMS = {"iss": "the token is of another issuer", "aud": "the token is for another audience"}


class Denied(Exception):
    """The call is not let in."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        #: 401: no valid token; 403: a valid one of somebody else; 503: it can't be checked now.
        self.status = status
        self.reason = reason


class PushAuth:
    """Verifies Pub/Sub's token: signature, issuer, audience, times, and whose it is.

    Args:
        audience: The audience that the token must be for.
        service_account: The e-mail address of the account that the token must belong to.
        fetch: Returns the issuer's certificates. None: the platform in front of this service checks the
            signature and removes it; **whoever can reach this service past it gets in**.
    """

    def __init__(self, audience: str, service_account: str, fetch: Fetch | None) -> None:
        self._audience = audience
        self._service_account = service_account
        self.keys = None if fetch is None else Keys(fetch)

    def close(self) -> None:
        """Fetch no more certificates."""
        if self.keys is not None:
            self.keys.stop()

    def verify(self, authorization: str | None) -> None:
        """Raises Denied. Blocks only until the first keys have been fetched; see :meth:`Keys.wait`."""
        claims = self._claims(_bearer(authorization))
        if claims.get("email") != self._service_account:
            raise Denied(403, "the token is of another account")
        if claims.get("email_verified") is not True:
            raise Denied(403, "the token's account is not verified")

    def _claims(self, token: str) -> Mapping[str, Any]:
        try:
            key = self._key(token)
            claims: Mapping[str, Any] = jwt.decode(
                token,
                key="" if key is None else key,
                algorithms=["RS256"],
                audience=self._audience,
                issuer=ISSUERS,
                leeway=_CLOCK_SKEW,
                options={
                    "require": ["iss", "aud", "iat", "exp"],
                    "strict_aud": True,
                    "verify_signature": key is not None,
                    # PyJWT doesn't check these by default if it doesn't check the signature.
                    "verify_iss": True,
                    "verify_aud": True,
                    "verify_iat": True,
                    "verify_nbf": True,
                    "verify_exp": True,
                },
            )
        except Denied:
            raise
        except Exception as exc:  # a stranger's bytes may make the library raise anything
            raise Denied(401, _why(exc)) from exc
        return claims

    def _key(self, token: str) -> Any:
        """The key that must have signed the token; None if the platform has checked the signature."""
        removed = token.rpartition(".")[2] == SIGNATURE_REMOVED
        if self.keys is None:
            if not removed:
                raise Denied(
                    401, "the token has a signature, so the platform in front has not checked it"
                )
            return None
        if removed:
            raise Denied(
                401,
                "the platform in front has checked the token and removed its signature: set "
                "push_auth=iam, if nobody can reach this service past that platform",
            )
        key_id = jwt.get_unverified_header(token).get("kid")
        if not isinstance(key_id, str):
            raise Denied(401, "the token names no key")
        try:
            key = self.keys.get(key_id)
        except LookupError as exc:
            raise Denied(503, "tokens can't be checked now") from exc
        if key is None:
            raise Denied(401, "the token's key is not known")
        return key


def push_auth(settings: Settings, fetch: Fetch | None) -> PushAuth | None:
    """The check that the settings ask for; None: /push checks nobody. Raises ConfigurationError."""
    mode = settings.effective_push_auth
    if mode == "none":
        return None
    for name in ("push_audience", "push_service_account"):
        if not getattr(settings, name):
            raise ConfigurationError(
                f"/push checks who calls, and {name} is not set: set push_audience and "
                "push_service_account to what the push subscription has; or push_auth=none where "
                "something else checks every caller; or environment=development on your own machine"
            )
    if mode == "oidc":
        fetch = fetch or fetch_from(settings.push_certs_url or GOOGLE_CERTS)
    return PushAuth(
        settings.push_audience, settings.push_service_account, fetch if mode == "oidc" else None
    )


def warn_if_open(settings: Settings) -> None:
    """Log what /push relies on, unless that is a signature which we check."""
    mode = settings.effective_push_auth
    if mode == "none" and not settings.development:
        logger.warning(
            "push_auth is none: whoever reaches POST /push on %s runs jobs. Use it only where something "
            "in front of this service checks every caller; else push_auth=oidc",
            settings.effective_host,
        )
    elif mode == "iam":
        logger.warning(
            "push_auth is iam: tokens are believed without a signature, as Cloud Run checks and removes "
            "it. Whoever reaches this service past Cloud Run's IAM runs jobs: no unauthenticated "
            "access, and the pusher as the only invoker"
        )


def _why(exc: Exception) -> str:
    """A reason that quotes nothing of the token."""
    if isinstance(exc, jwt.MissingRequiredClaimError):
        return _CLAIMS.get(exc.claim, "the token is malformed")
    return next(
        (reason for kind, reason in _REASONS if isinstance(exc, kind)), "the token is malformed"
    )


def require_token(authorization: str | None, token: str) -> None:
    """Raise Denied unless the call's bearer token is ``token``. An empty ``token`` lets nobody in."""
    if not token:
        raise Denied(403, "only with the service token (GWI_SERVICE_TOKEN), which is not set")
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
