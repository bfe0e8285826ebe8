"""How JSON is built, known before it is parsed: how deep, and how much memory it will take.

A parser, and whatever walks what it made, recurses, and so ends at some depth or other with an error of
its own, or takes the process down; and a few bytes of JSON can become fifty times as many. Both are told
in one pass over the bytes, block by block, which takes no more memory than the bytes do.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from gwi_celery.text import raw

#: Most levels of lists and objects within each other that a message may have. Its body, a text within
#: the message, counts by itself.
MAX_DEPTH: Final = 200

_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}

#: Bytes looked at in one go.
_BLOCK: Final = 65_536
# Bytes that CPython takes at most.
#: An object.
_OBJECT: Final = 240
#: A list.
_LIST: Final = 64
#: A name's place in an object.
_NAME: Final = 30
#: A place in a list, and a number there.
_ITEM: Final = 38
#: A text, beside its characters.
_TEXT: Final = 52
#: No JSON becomes more than this many times as large: that is of empty objects.
_WORST: Final = _OBJECT / 2


def too_deep(data: str | bytes, limit: int = MAX_DEPTH) -> bool:
    """Whether JSON is nested deeper than ``limit``. One pass, whatever the data is."""
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
    return f"its JSON is nested deeper than {limit} levels"


def decoded_size(data: str | bytes, enough: int = 0) -> int:
    """Bytes of memory that the JSON takes once it is parsed, at most about twice as many as it does.

    ``enough``: where the answer is surely no more than that, it is not worked out any further.
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
    """Bytes of a character in memory: a text has the width of its widest."""
    lowered = data if b"\\" not in data else data.replace(b"\\uD", b"\\ud")
    if b"\\ud" in lowered or any(data.find(lead) >= 0 for lead in _FOUR_BYTES):
        return 3  # four, of the texts that have such a one
    return 1 if data.isascii() and b"\\u" not in data else 2


_FOUR_BYTES: Final = [bytes([lead]) for lead in range(0xF0, 0xF5)]


def _without_texts(data: bytes) -> Iterator[bytes]:
    """What is not in a text, with the quotes around it."""
    plain = data
    if b"\\" in data:  # without its escapes, a text is what is between two quotes
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
