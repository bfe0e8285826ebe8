"""The mark of a redrive: which death it takes a message back from, and from which step its job goes on.

An operator's seal is attached to it; see ``authority``. Steps are as in ``Replay.from_step``: "" keeps
all that is recorded, None nothing.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

from gwi_celery.errors import InvalidCall
from gwi_celery.ids import digest

_START: Final = "start"
_STEP: Final = "step-"
#: Between a mark and an operator's seal; no mark has one.
_SEALED: Final = "~"
#: Bytes of a step's name: a mark is an attribute of a message, which have 1,024.
_LONGEST: Final = 500


def mark(death: str, from_step: str | None = "") -> str:
    """The one mark of a death and a step. Raises InvalidCall if the step's name is too long for it."""
    made = digest("redrive", death)[:32]
    if from_step == "":
        return made
    if from_step is None:
        return f"{made}.{_START}"
    name = from_step.encode("utf-8", "surrogatepass")
    if len(name) > _LONGEST:
        raise InvalidCall(
            f"the step's name is {len(name)} bytes long, and a redrive can carry {_LONGEST}: use "
            "`gwi jobs replay --from-step`"
        )
    return f"{made}.{_STEP}{base64.urlsafe_b64encode(name).decode('ascii')}"


def sealed(mark: str, seal: str) -> str:
    return f"{mark}{_SEALED}{seal}"


def parts(redrive: str) -> tuple[str, str]:
    """The mark, and the seal that should prove it."""
    made, _, seal = redrive.partition(_SEALED)
    return made, seal


def step_of(redrive: str) -> str | None:
    """The step from which the job goes on. The seal is not checked."""
    _, _, start = parts(redrive)[0].partition(".")
    if start == _START:
        return None
    try:
        name = base64.urlsafe_b64decode(start.removeprefix(_STEP))
        return name.decode("utf-8", "surrogatepass") if start.startswith(_STEP) else ""
    except (binascii.Error, ValueError):
        return ""  # no such mark is ever sealed
