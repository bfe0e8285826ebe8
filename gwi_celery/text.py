"""Words for messages: of values whatever their ``__str__`` does, and of the name that was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Final

#: Bytes of UTF-8 that a reason may have: what one attribute of a Pub/Sub message holds, less a margin.
REASON_BYTES: Final = 1000


def safe_text(value: Any, limit: int = REASON_BYTES) -> str:
    """``str(value)`` in at most ``limit`` bytes of UTF-8; never raises.

    A value whose ``__str__`` raises is described by its type and by what was raised. What doesn't
    fit is cut, and the text says how much that was.
    """
    try:
        return cut(f"{value!s}", limit)
    except BaseException as exc:  # SystemExit too: it is the value's, and must not end the process
        return cut(f"<{_type_name(value)} whose text raises {_type_name(exc)}>", limit)


def safe_error(exc: BaseException, limit: int = REASON_BYTES) -> str:
    """``ValueError: its text``, as :func:`safe_text` has it."""
    return cut(f"{_type_name(exc)}: {safe_text(exc, limit)}", limit)


def cut(text: str, limit: int) -> str:
    """The text in at most ``limit`` bytes of UTF-8. Lone surrogates are spelt out."""
    if len(text) <= limit:
        data = text.encode("utf-8", "backslashreplace")
        if len(data) <= limit:
            return data.decode()
    # Of a text of megabytes, no more is encoded than may be kept.
    data = text[:limit].encode("utf-8", "backslashreplace")
    # Longer than the note that will stand there, which names no more characters than there are.
    room = max(limit - len(_note(len(text))), 0)
    kept = data[:room].decode("utf-8", "ignore")
    return kept + _note(max(len(text) - len(kept), 0))[: limit - len(kept.encode())]


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known name, and all of them."""
    names = sorted(known)
    match = difflib.get_close_matches(name, names, n=1) or [
        known_name for known_name in names if name and known_name.startswith(name)
    ]
    hint = f"did you mean {match[0]!r}? " if match else ""
    return f"{hint}Known: {', '.join(names)}"


def _note(missing: int) -> str:
    return f" ({missing} more characters)"


def _type_name(value: Any) -> str:
    # Not by attribute: a metaclass may have its own idea of a name.
    name: str = type.__dict__["__name__"].__get__(type(value))
    return name.encode("utf-8", "backslashreplace").decode()
