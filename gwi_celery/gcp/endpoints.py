"""The addresses of Google's services, in the universe that the environment names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

GOOGLE: Final = "googleapis.com"
#: Google's variable with the domain of all endpoints, if that isn't googleapis.com.
UNIVERSE: Final = "GOOGLE_CLOUD_UNIVERSE_DOMAIN"


def domain(environ: Mapping[str, str] | None = None) -> str:
    """The domain of all endpoints."""
    return (os.environ if environ is None else environ).get(UNIVERSE) or GOOGLE


def endpoint(service: str, environ: Mapping[str, str] | None = None) -> str:
    """``host:port`` of a service, such as ``pubsub``."""
    return f"{service}.{domain(environ)}:443"
