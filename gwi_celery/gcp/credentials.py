"""Channels with TLS and the environment's credentials, to Google or to another of its universes.

google-auth finds the credentials, client certificates (mTLS) and the universe's domain. If there is no
token for a call, gRPC reports UNAVAILABLE, as if the network were down; :meth:`Access.refused` tells
whether a retry can help.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any, Final

import google.auth
import grpc
from google.auth import exceptions
from google.auth.transport.grpc import AuthMetadataPlugin, SslCredentials

from gwi_celery.gcp.endpoints import GOOGLE, UNIVERSE, domain

#: Whether the endpoint for client certificates is used: always, never, or auto (with such a certificate).
_MTLS_ENDPOINT: Final = "GOOGLE_API_USE_MTLS_ENDPOINT"
#: Beginning of gRPC's text if there was no token for a call.
NO_TOKEN: Final = "Getting metadata from plugin failed"  # noqa: S105 not a secret
#: A token server's answers that are final (RFC 6749, section 5.2).
_REVOKED: Final = re.compile(r"invalid_(?:grant|client|scope)|unauthorized_client")


class NoCredentials(Exception):
    """There are no credentials, or none that this endpoint takes. The text says why."""


class Access:
    """The credentials of one client, and the channels made with them.

    Args:
        scopes: OAuth scopes of the credentials.
    """

    def __init__(self, scopes: Sequence[str]) -> None:
        self._scopes = scopes
        self._plugin: _Plugin | None = None

    def channel(self, endpoint: str, options: Sequence[tuple[str, Any]]) -> Any:
        """A gRPC channel. Raises NoCredentials."""
        from google.auth.transport.requests import (
            Request,  # imported only when it is needed: it loads a lot
        )

        try:
            credentials, _ = google.auth.default(scopes=self._scopes)
            ssl = SslCredentials()
            tls = ssl.ssl_credentials
        except (exceptions.GoogleAuthError, OSError) as exc:
            raise NoCredentials(str(exc)) from exc
        host = endpoint.rpartition(":")[0]
        _check_universe(host, getattr(credentials, "universe_domain", GOOGLE))
        wanted = os.environ.get(_MTLS_ENDPOINT, "auto")
        if host.endswith(f".{GOOGLE}") and (
            wanted == "always" or (wanted == "auto" and ssl.is_mtls)
        ):
            endpoint = endpoint.replace(f".{GOOGLE}", f".mtls.{GOOGLE}")
        self._plugin = _Plugin(credentials, Request(), default_host=host)
        calls = grpc.metadata_call_credentials(self._plugin)
        return grpc.secure_channel(
            endpoint, grpc.composite_channel_credentials(tls, calls), options=options
        )

    def refused(self, details: str) -> str | None:
        """Why no call can get a token, if that made a call fail and a retry can't help; else None.

        Args:
            details: gRPC's text of the call that failed.
        """
        if not details.startswith(NO_TOKEN):
            return None
        error = self._plugin.error if self._plugin is not None else None
        if error is None:
            # It was another client's error, or a later call got a token: only the text is known.
            return details if _REVOKED.search(details) else None
        return None if may_pass(error) else str(error)


class _Plugin(AuthMetadataPlugin):
    """google-auth's plugin, which also keeps the last error: gRPC keeps only its text."""

    error: Exception | None = None

    def __call__(self, context: Any, callback: Any) -> None:
        try:
            headers = self._get_authorization_headers(context)
        except Exception as exc:
            self.error = exc
            callback([], exc)  # if it were raised, gRPC would log a traceback for each call
            return
        self.error = None
        callback(headers, None)


def may_pass(error: BaseException | None) -> bool:
    """Whether the network or a busy server caused the error, rather than the credentials."""
    while error is not None:
        if isinstance(error, exceptions.TransportError) or getattr(error, "retryable", False):
            return True
        error = error.__cause__
    return False


def _check_universe(host: str, universe: str) -> None:
    known = host.endswith((f".{GOOGLE}", f".{domain()}"))
    if known and not host.endswith(f".{universe}"):
        raise NoCredentials(
            f"they belong to the universe {universe}, and {host} does not: set {UNIVERSE}={universe}"
        )
