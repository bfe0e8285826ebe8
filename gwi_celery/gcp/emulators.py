"""Which variables name an emulator's address, and the error of an emulator that doesn't answer."""

from __future__ import annotations

import os
from ipaddress import ip_address
from typing import Final

#: Google's names of the variables; each holds ``host:port``.
PUBSUB_HOST: Final = "PUBSUB_EMULATOR_HOST"
FIRESTORE_HOST: Final = "FIRESTORE_EMULATOR_HOST"


def loopback(host: str) -> bool:
    """Whether a host, by its name or address, is this machine. False for an empty one."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def unavailable(kind: str, variable: str, endpoint: str) -> str:
    """The text for an emulator that doesn't answer, or answers UNAVAILABLE, with what to do."""
    named = os.environ.get(variable) == endpoint
    where = f"the {kind} emulator at {endpoint}{f' ({variable})' if named else ''}"
    otherwise = f"{f'unset {variable}' if named else 'change the URL'} to use Google Cloud"
    if not loopback(endpoint.rpartition(":")[0] or endpoint):
        return (
            f"{where} is unavailable: check that it runs there and that this machine reaches it, or "
            f"{otherwise}"
        )
    return (
        f"{where} does not answer: start one by `python -m gwi_celery.testing.emulators --only "
        f"{kind.lower().replace('/', '')}` and export what it prints, or {otherwise}"
    )
