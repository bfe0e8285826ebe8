"""One parser for the values of settings, URL options and transport options.

Each declared option has a :class:`Kind`, which accepts Python values and text (environment variables,
URLs) and refuses anything else, so that nothing wrong counts as false or as zero.
"""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import Any, Final
from urllib.parse import parse_qsl

from gwi_celery.errors import ConfigurationError
from gwi_celery.text import from_json, nearest, safe_repr

#: Longest time, seconds, of any option or setting: about 31 years, which every timer, clock and store can
#: handle. A thread that waits for 300 years ends with an OverflowError; Firestore's dates end in 9999.
LONGEST: Final = 1e9

_WORDS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


@dataclass(frozen=True)
class Kind:
    """How to read a value (raises TypeError or ValueError), and what is accepted, for messages."""

    read: Callable[[Any], Any]
    what: str

    def convert(self, value: Any, where: str, but: str = "not") -> Any:
        """The value as read. Raises ConfigurationError, which names ``where`` it was found."""
        try:
            return self.read(value)
        except (TypeError, ValueError, OverflowError, RecursionError):
            raise ConfigurationError(f"{where} is {safe_repr(value)}, {but} {self.what}") from None

    def called(self, what: str) -> Kind:
        return replace(self, what=what)


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    try:
        return _WORDS[str(value).strip().lower()]
    except KeyError:
        raise ValueError(value) from None


def _number(value: Any) -> float:
    number = float(_not_a_boolean(value))
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def _whole(value: Any) -> int:
    number = int(_not_a_boolean(value))
    if number != (value if isinstance(value, (int, float)) else number):
        raise ValueError(value)
    return number


def _not_a_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise TypeError(value)
    return value


def _text(value: Any) -> str:
    if isinstance(value, PathLike):
        value = fspath(value)
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _mapping(value: Any) -> dict[str, Any]:
    return dict(from_json(value) if isinstance(value, str) else value)


def _texts(value: Any) -> tuple[str, ...]:
    items = [x for x in value.split(",") if x.strip()] if isinstance(value, str) else value
    return tuple(_item(item) for item in items)


def _item(value: Any) -> str:
    if not isinstance(value, (str, int, float)):
        raise TypeError(value)
    return str(value).strip()


BOOLEAN = Kind(_boolean, "true or false")
NUMBER = Kind(_number, "a number")
SECONDS = NUMBER.called("a number of seconds")
WHOLE = Kind(_whole, "a whole number")
TEXT = Kind(_text, "a text")
MAPPING = Kind(_mapping, "a mapping (JSON in a URL)")
TEXTS = Kind(_texts, "a list (a,b,c in a URL)")


def argument(kind: Kind, lowest: float, highest: float) -> Callable[[str], Any]:
    """The ``type`` of argparse for a number in that range."""

    def read(text: str) -> Any:
        try:
            found = kind.read(text)
        except (ValueError, OverflowError):
            found = math.nan
        if not lowest <= found <= highest:  # NaN is in no range
            raise ArgumentTypeError(f"{text!r}: write {kind.what} from {lowest} to {highest}")
        return found

    return read


def listed(kind: Kind, what: str) -> Kind:
    """A list of values of ``kind``."""
    return Kind(lambda value: tuple(kind.read(item) for item in _texts(value)), what)


def optional(kind: Kind) -> Kind:
    """``kind``, or None."""
    return replace(kind, read=lambda value: None if value in (None, "") else kind.read(value))


def of(default: Any) -> Kind:
    """The kind of a setting, by its default."""
    return {bool: BOOLEAN, float: NUMBER, int: WHOLE, str: TEXT}[type(default)]


def check_known(names: Iterable[str], known: Collection[str], before: str, after: str = "") -> None:
    """Raises ConfigurationError for a name that isn't known: the text around it, and the nearest."""
    for name in names:
        if name not in known:
            raise ConfigurationError(f"{before}{name!r}{after}; {nearest(name, known)}")


def query(url: str, text: str, known: Collection[str] | None = None) -> dict[str, str]:
    """The options of a URL whose query is ``text``.

    Raises ConfigurationError for an option that is given twice, or is not ``known``.
    """
    pairs = parse_qsl(text, keep_blank_values=True)
    options = dict(pairs)
    if len(options) < len(pairs):
        twice = next(name for name in options if _count(name, pairs) > 1)
        raise ConfigurationError(f"{url!r} has the option {twice!r} twice: leave one out")
    if known is not None:
        check_known(options, known, f"{url!r}: unknown option ")
    return options


def _count(name: str, pairs: Iterable[tuple[str, str]]) -> int:
    return sum(1 for key, _ in pairs if key == name)
