"""Values <-> the bytes a store keeps: compressed JSON, with Celery's own JSON types.

What goes in comes out as JSON gives it back (a tuple as a list), at the first run as at every
later one, so that a job that resumes sees what it saw before.
"""

from __future__ import annotations

import zlib
from typing import Any

from kombu.utils import json

from gwi_celery.errors import NotSerializable, TooLarge

_PLAIN, _ZLIB = b"j", b"z"
#: Below this, compression costs more than it saves, bytes.
_COMPRESS_FROM = 512


def dump(value: Any, *, what: str, limit: int) -> bytes:
    """``value`` as bytes. ``what`` names it in errors; ``limit`` is of its JSON, in bytes.

    Raises NotSerializable, TooLarge.
    """
    try:
        text: str = json.dumps(value)
    except (TypeError, ValueError, RecursionError) as exc:
        raise NotSerializable(
            f"{what} has no JSON form ({exc}): return plain values (text, numbers, lists, dicts)"
        ) from exc
    raw = text.encode("utf-8")
    if len(raw) > limit:
        raise TooLarge(
            f"{what} is {len(raw):,} bytes of JSON, and the limit is {limit:,}: keep it in a file or "
            "bucket and return its name, or raise the limit (max_checkpoint_bytes, max_result_bytes)"
        )
    if len(raw) < _COMPRESS_FROM:
        return _PLAIN + raw
    return _ZLIB + zlib.compress(raw, 1)


def load(blob: bytes) -> Any:
    """The value of a blob that :func:`dump` made."""
    kind, body = blob[:1], blob[1:]
    return json.loads(zlib.decompress(body) if kind == _ZLIB else body)
