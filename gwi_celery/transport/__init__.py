"""Kombu's transports over our brokers."""

from __future__ import annotations

from kombu.transport import TRANSPORT_ALIASES

#: URL scheme -> the transport, imported when a URL names it.
_TRANSPORTS = {
    "embedded": "gwi_celery.transport.embedded:Transport",
    "pubsub": "gwi_celery.transport.pubsub:Transport",
}


def register() -> None:
    """Teach Kombu our URL schemes."""
    for scheme, transport in _TRANSPORTS.items():
        TRANSPORT_ALIASES.setdefault(scheme, transport)
