"""Texts: to and from bytes, of any value, cut to a size, and for error messages."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable
from typing import Any, Final

from celery.exceptions import InvalidTaskError
from kombu.exceptions import ContentDisallowed, DecodeError

#: Bytes of UTF-8 that a reason may have: what one attribute of a Pub/Sub message holds, less a margin.
REASON_BYTES: Final = 1000


def raw(text: str) -> bytes:
    """Any string as bytes, lone surrogates too."""
    return text.encode("utf-8", "surrogatepass")


def unraw(raw: bytes) -> str:
    """The string that :func:`raw` was given."""
    return raw.decode("utf-8", "surrogatepass")


def safe_text(value: Any, limit: int = REASON_BYTES) -> str:
    """``str(value)`` in at most ``limit`` bytes of UTF-8; never raises.

    A value whose ``__str__`` raises is described by its type and by what was raised. A longer text is
    cut, and says how much is missing.
    """
    return _safe("{!s}".format, value, limit)


def safe_repr(value: Any, limit: int = REASON_BYTES) -> str:
    """``repr(value)``, as :func:`safe_text` has it."""
    return _safe("{!r}".format, value, limit)


def _safe(made: Callable[[Any], str], value: Any, limit: int) -> str:
    try:
        return cut(made(value), limit)
    except BaseException as exc:  # SystemExit too: it is the value's, and must not end the process
        return cut(f"<{_type_name(value)} whose text raises {_type_name(exc)}>", limit)


def from_json(text: str | bytes) -> Any:
    """The value of JSON that others wrote. Raises ValueError, also for what is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def safe_error(exc: BaseException, limit: int = REASON_BYTES) -> str:
    """``ValueError: its text``, as :func:`safe_text` has it."""
    return cut(f"{_type_name(exc)}: {safe_text(exc, limit)}", limit)


#: Errors whose texts quote nothing of what is decoded.
_PLAIN = (json.JSONDecodeError, UnicodeError, ContentDisallowed, DecodeError, InvalidTaskError)


def public_error(exc: BaseException, limit: int = REASON_BYTES) -> str:
    """What is wrong with a message, without a value from it: a codec's error quotes what it can't read.

    Errors of this package quote no values, nor do those of JSON and of text encodings.
    """
    inner = exc.args[0] if exc.args else None
    if isinstance(exc, DecodeError) and isinstance(inner, BaseException):
        return public_error(inner, limit)  # Kombu's own wrapping
    ours = type(exc).__module__.partition(".")[0] == __name__.partition(".")[0]
    if ours or isinstance(exc, _PLAIN):
        return safe_error(exc, limit)
    return cut(f"{_type_name(exc)} in {_place(exc)}", limit)


def _place(exc: BaseException) -> str:
    """Module and line that raised it."""
    tb = exc.__traceback__
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    return "?" if tb is None else f"{tb.tb_frame.f_globals.get('__name__', '?')}:{tb.tb_lineno}"


def shown(value: Any) -> str:
    """A value in an error message: a number as it is, anything else by its kind only.

    Messages are logged, which arguments must not be; and a text may have megabytes.
    """
    if isinstance(value, int) and abs(value) >= 10**18:
        return "a huge number"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, str):
        return f"a text of {len(value)} characters" if value else "empty"
    return f"of type {_type_name(value)}"


def cut(text: str, limit: int) -> str:
    """The text in at most ``limit`` bytes of UTF-8. Lone surrogates are spelt out."""
    if len(text) <= limit:
        data = text.encode("utf-8", "backslashreplace")
        if len(data) <= limit:
            return data.decode()
    # Of a text of megabytes, no more is encoded than may be kept.
    data = text[:limit].encode("utf-8", "backslashreplace")
    # Room for the longest possible note; the real one counts no more characters.
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
