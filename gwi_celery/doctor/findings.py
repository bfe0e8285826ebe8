"""What a trial of a real project found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    what: str
    #: True: as this package needs it. False: it would fail here. None: it differs, or was only measured,
    #: and this package copes.
    holds: bool | None
    #: What Google documents.
    expected: str = ""
    measured: str = ""
    #: Which option to change, or what else to do.
    change: str = ""
    #: What :mod:`gwi_celery.testing.twin` does, as it is by default.
    twin: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        mark = {True: "holds  ", False: "BROKEN ", None: "       "}[self.holds]
        text = f"{mark} {self.what}"
        text += f": {self.measured}" if self.measured else ""
        known = [("documented", self.expected), ("twin", self.twin)]
        told = [f"{who}: {what}" for who, what in known if what]
        text += f" ({'; '.join(told)})" if told else ""
        return text + (f"\n        -> {self.change}" if self.change else "")
