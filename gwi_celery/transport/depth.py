"""How deep JSON is nested, known before it is parsed: a parser, and whatever walks what it made,
recurses, and so ends at some depth or other with an error of its own, or takes the process down.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Final

#: Most levels of lists and objects within each other that a message may have. Its body, a text within
#: the message, counts by itself.
MAX_DEPTH: Final = 200

_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def too_deep(data: str | bytes, limit: int = MAX_DEPTH) -> bool:
    """Whether JSON is nested deeper than ``limit``. One pass, whatever the data is."""
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogatepass")
    if data.count(b"[") + data.count(b"{") <= limit:
        return False
    # Brackets in texts don't count. Without its escapes, a text is what is between two quotes.
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = b"".join(plain.split(b'"')[::2]).translate(None, _NOT_BRACKETS)
    return any(depth > limit for depth in accumulate(map(_STEPS.__getitem__, brackets)))


def reason(limit: int = MAX_DEPTH) -> str:
    return f"its JSON is nested deeper than {limit} levels"
