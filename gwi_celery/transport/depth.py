"""Estimates, before JSON is parsed, how deep it is nested and how much memory it will take.

A parser recurses, and so does code that walks the parsed value: at some depth it raises an error, or
takes the process down. And a few bytes of JSON can become fifty times as many. Both are found in one pass
over the bytes, block by block, which takes no more memory than the bytes do.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from gwi_celery.text import raw

#: Most nested levels of lists and objects in a message. Its body, a text within the message, is counted
#: separately.
MAX_DEPTH: Final = 200

_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}

#: Bytes in one block.
_BLOCK: Final = 65_536
# The following are bytes of memory that CPython takes at most.
#: For an object.
_OBJECT: Final = 240
#: For a list.
_LIST: Final = 64
#: For a name's place in an object.
_NAME: Final = 30
#: For a place in a list, and a number in it.
_ITEM: Final = 38
#: For a text, in addition to its characters.
_TEXT: Final = 52
#: JSON grows at most by this factor, which empty objects reach.
_WORST: Final = _OBJECT / 2


def too_deep(data: str | bytes, limit: int = MAX_DEPTH) -> bool:
    """Whether JSON is nested deeper than ``limit``. The data may be anything."""
    data = _bytes(data)
    if data.count(b"[") + data.count(b"{") <= limit:
        return False
    depth = 0
    for block in _without_texts(data):
        depths = list(accumulate(map(_STEPS.__getitem__, _brackets(block)), initial=depth))
        if max(depths) > limit:
            return True
        depth = depths[-1]
    return False


def _brackets(block: bytes) -> bytes:
    return block.translate(None, _NOT_BRACKETS)


def reason(limit: int = MAX_DEPTH) -> str:
    """The reason for the dead letter of a message that is nested too deep."""
    return f"its JSON is nested deeper than {limit} levels"


def decoded_size(data: str | bytes, enough: int = 0) -> int:
    """An estimate of the bytes that the parsed JSON takes: rather too high, by a factor of two at most.

    Args:
        enough: If a rough bound is no more than this, it is returned without a closer look.
    """
    data = _bytes(data)
    if (most := round(len(data) * _WORST)) <= enough:
        return most
    objects = lists = names = items = texts = outside = 0
    for block in _without_texts(data):
        objects += block.count(b"{")
        lists += block.count(b"[")
        names += block.count(b":")
        items += block.count(b",")
        texts += block.count(b'"')
        outside += len(block)
    numbers = objects * _OBJECT + lists * _LIST + names * _NAME + items * _ITEM + texts * _TEXT // 2
    return numbers + (len(data) - outside) * _width(data)


def _width(data: bytes) -> int:
    """Bytes of memory for a character: CPython stores each text at the width of its widest one."""
    lowered = data if b"\\" not in data else data.replace(b"\\uD", b"\\ud")
    if b"\\ud" in lowered or any(data.find(lead) >= 0 for lead in _FOUR_BYTES):
        return 3  # four in texts with such a character, fewer in all others
    return 1 if data.isascii() and b"\\u" not in data else 2


_FOUR_BYTES: Final = [bytes([lead]) for lead in range(0xF0, 0xF5)]


def _without_texts(data: bytes) -> Iterator[bytes]:
    """The data without the contents of its texts, but with their quotes."""
    plain = data
    if b"\\" in data:  # without escaped quotes, a text is what stands between two quotes
        plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    inside = False
    for start in range(0, len(plain), _BLOCK):
        parts = plain[start : start + _BLOCK].split(b'"')
        outside = parts[1::2] if inside else parts[::2]
        quotes = len(parts) - 1
        inside ^= bool(quotes % 2)
        yield b"".join(outside) + b'"' * quotes


def _bytes(data: str | bytes) -> bytes:
    return raw(data) if isinstance(data, str) else data
