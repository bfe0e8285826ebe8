"""Calls of Google's APIs that only the doctor makes: no client of this package has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import grpc

from gwi_celery.errors import BrokerUnusable
from gwi_celery.gcp.credentials import Access, NoCredentials

#: What a server without an API answers.
NOT_THERE: Final = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN)
#: Seconds that one call may take.
TIMEOUT: Final = 15.0


@contextmanager
def connected(endpoint: str, scopes: tuple[str, ...], *, emulator: bool) -> Iterator[Any]:
    """A channel with the environment's credentials. Raises BrokerUnusable if there are none."""
    if emulator:
        channel = grpc.insecure_channel(endpoint, [("grpc.enable_http_proxy", 0)])
    else:
        try:
            channel = Access(scopes).channel(endpoint, [])
        except NoCredentials as exc:
            raise BrokerUnusable(f"no Google Cloud credentials: {exc}") from exc
    with channel:
        yield channel


def call(channel: Any, method: str, request: Any, answer: Any, route: tuple[str, str]) -> Any:
    """Make one call. Raises grpc.RpcError.

    Args:
        answer: Type of the answer.
        route: The request's field that Google routes it by, and its value.
    """
    stub = channel.unary_unary(
        method,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=answer.FromString,
    )
    metadata = (("x-goog-request-params", f"{route[0]}={route[1]}"),)
    return stub(request, timeout=TIMEOUT, metadata=metadata)


def told(exc: Any) -> str:
    """gRPC's error on one line: its status, and its text."""
    return f"{exc.code().name}: {exc.details()}"
