"""Digests of users' ids; characters are never replaced.

Users' ids may hold anything: slashes, dots, emoji, two thousand characters. A digest over a
length-prefixed encoding never is the same for two inputs, and is a legal name everywhere.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from kombu.utils.json import JSONEncoder as _JSONEncoder


def digest(kind: str, *parts: str) -> str:
    """SHA-256, as 64 hex digits, of ``kind`` and ``parts``, each prefixed with its length.

    ``digest("x", "ab", "c")`` and ``digest("x", "a", "bc")`` differ. Lone surrogates, which JSON
    can carry and UTF-8 can't, are kept apart too.
    """
    h = hashlib.sha256()
    for part in (kind, *parts):
        raw = part.encode("utf-8", "surrogatepass")
        h.update(b"%d:" % len(raw))
        h.update(raw)
    return h.hexdigest()


def fingerprint(payload: object) -> str:
    """SHA-256, as 64 hex digits, of ``payload``'s canonical JSON: keys sorted at every depth.

    Takes what Celery's own JSON takes (dates, UUIDs, decimals and bytes as well). Raises TypeError
    for anything else.
    """
    text = _CANONICAL.encode(payload)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def as_json(payload: object) -> Any:
    """``payload`` as read back from JSON: tuples are lists, keys are texts, 1.0 is 1."""
    return json.loads(_PLAIN.encode(payload), parse_float=_number)


def _number(text: str) -> int | float:
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


_PLAIN = _JSONEncoder(ensure_ascii=False)
_CANONICAL = _JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
