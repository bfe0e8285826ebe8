"""An exception at every line: what a signal, or a kill, may do to library code."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import gwi_celery
from tests import machine

PACKAGE = str(Path(gwi_celery.__file__).parent)

#: File and line.
Place = tuple[str, int]


def lines_of(operation: Callable[[], object]) -> list[Place]:
    """The places in this package that the operation passes, each once, in order."""
    places: dict[Place, None] = {}

    def look(frame: FrameType, event: str, _: Any) -> Any:
        if not _ours(frame):
            return None
        if event == "line":
            places.setdefault((frame.f_code.co_filename, frame.f_lineno))
        return look

    _traced(operation, look)
    return list(places)


def some(places: list[Place]) -> list[Place]:
    """All of them; for ``make test`` every third."""
    return places[:: 3 if machine.examples(100) < 100 else 1]


def at(place: Place, strike: Callable[[], object], operation: Callable[[], object]) -> object:
    """Do the operation; ``strike`` when it first comes to ``place``."""
    struck = False

    def look(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal struck
        if struck or not _ours(frame):
            return None
        if event == "line" and (frame.f_code.co_filename, frame.f_lineno) == place:
            struck = True
            strike()
        return look

    return _traced(operation, look)


def _ours(frame: FrameType) -> bool:
    """Python swallows what is raised in a ``__del__``: that says nothing."""
    if not frame.f_code.co_filename.startswith(PACKAGE):
        return False
    caller: FrameType | None = frame
    while caller is not None and caller.f_code.co_name != "__del__":
        caller = caller.f_back
    return caller is None


def _traced(operation: Callable[[], object], look: Any) -> object:
    """Without the garbage collector: it may close what an earlier test dropped in the midst of this."""
    before, collects = sys.gettrace(), gc.isenabled()
    gc.disable()
    sys.settrace(look)
    try:
        return operation()
    finally:
        sys.settrace(before)
        if collects:
            gc.enable()


def short(place: Place) -> str:
    return f"{place[0].removeprefix(PACKAGE)}:{place[1]}"
