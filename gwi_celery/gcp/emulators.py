"""Which variables name an emulator's address, and the error of an emulator that doesn't answer."""

from __future__ import annotations

import os
from typing import Final

#: Google's names of the variables; each holds ``host:port``.
PUBSUB_HOST: Final = "PUBSUB_EMULATOR_HOST"
FIRESTORE_HOST: Final = "FIRESTORE_EMULATOR_HOST"


def unavailable(kind: str, variable: str, endpoint: str) -> str:
    """The text for an emulator that doesn't answer, with what to do."""
    named = os.environ.get(variable) == endpoint
    return (
        f"the {kind} emulator at {endpoint}{f' ({variable})' if named else ''} does not answer: start "
        f"one by `python -m gwi_celery.testing.emulators --only {kind.lower().replace('/', '')}` and "
        f"export what it prints, or {f'unset {variable}' if named else 'change the URL'} to use "
        "Google Cloud"
    )
