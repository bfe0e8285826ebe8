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
    #: What Google documents, or what the strict twin does where the documentation leaves it open.
    expected: str = ""
    measured: str = ""
    #: Which option to change, or what else to do.
    change: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        mark = {True: "holds  ", False: "BROKEN ", None: "       "}[self.holds]
        text = f"{mark} {self.what}"
        text += f": {self.measured}" if self.measured else ""
        text += f" (expected: {self.expected})" if self.expected else ""
        return text + (f"\n        -> {self.change}" if self.change else "")
