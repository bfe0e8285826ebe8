"""The Kombu transports over this package's brokers."""

from __future__ import annotations

from kombu.transport import TRANSPORT_ALIASES
from kombu.utils.url import maybe_sanitize_url

from gwi_celery.errors import ConfigurationError
from gwi_celery.text import nearest

#: URL scheme -> the transport, imported when a URL names it.
_TRANSPORTS = {
    "embedded": "gwi_celery.transport.embedded:Transport",
    "pubsub": "gwi_celery.transport.pubsub:Transport",
}


def register() -> None:
    """Register this package's URL schemes with Kombu."""
    for scheme, transport in _TRANSPORTS.items():
        TRANSPORT_ALIASES.setdefault(scheme, transport)


def check_url(url: str, *, setting: bool) -> None:
    """Raises ConfigurationError for a broker that Kombu doesn't know, or would take for a host's name.

    Args:
        setting: Whether it is this package's own setting, which must be a URL. Celery's ``broker_url``
            may be a host's name alone.
    """
    scheme, is_url, _ = url.partition("://")
    if is_url:
        kombus = scheme.partition("+")[0]
        known = {name.lower() for name in TRANSPORT_ALIASES}
        if kombus.lower() not in known and not set(".:") & set(kombus):
            raise ConfigurationError(
                f"unknown broker {maybe_sanitize_url(url)!r}; {nearest(kombus, TRANSPORT_ALIASES)}"
            )
    elif setting or "/" in url or url.partition(":")[0] in _TRANSPORTS:
        raise ConfigurationError(
            f"the broker {url!r} is no URL: write embedded:///path/to/folder, embedded:// for .gwi/, "
            "pubsub://project, or another of Kombu's URLs, such as redis://host"
        )
