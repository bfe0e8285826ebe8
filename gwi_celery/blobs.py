"""Values <-> the bytes a store keeps: compressed JSON, with Celery's own JSON types.

Values come back as JSON returns them (a tuple as a list), at the first run as well as at later
ones, so that a resumed job sees the same values.
"""

from __future__ import annotations

import inspect
import zlib
from typing import Any

from celery.result import ResultBase
from kombu.utils import json

from gwi_celery.errors import NotSerializable, TooLarge
from gwi_celery.text import safe_text

_PLAIN, _ZLIB = b"j", b"z"
#: Below this, compression costs more than it saves, bytes.
_COMPRESS_FROM = 512


def dump(value: Any, *, what: str, limit: int) -> bytes:
    """``value`` as bytes. ``what`` names it in errors; ``limit`` is the longest JSON, in bytes.

    Raises NotSerializable, TooLarge.
    """
    if isinstance(value, ResultBase):
        value = value.as_tuple()  # as Celery does
    try:
        text: str = json.dumps(value)
    except (TypeError, ValueError, RecursionError) as exc:
        raise NotSerializable(
            f"{what} has no JSON form ({safe_text(exc)}): {_advice(value)}"
        ) from exc
    refuse_types(value, text, what=what)
    raw = text.encode("utf-8")
    if len(raw) > limit:
        raise TooLarge(
            f"{what} is {len(raw):,} bytes of JSON, and the limit is {limit:,}: keep it in a file or "
            "bucket and return its name, or raise the limit (max_checkpoint_bytes, max_result_bytes)"
        )
    return packed(raw)


def refuse_types(value: Any, encoded: Any, *, what: str) -> None:
    """Refuse a dict that would be decoded as something else, or not at all.

    Celery's JSON takes a dict with just these two keys for a value of another type. ``encoded`` is the
    value's JSON. Raises NotSerializable.
    """
    if (b"__type__" if isinstance(encoded, bytes) else "__type__") in encoded and _typed(value):
        raise NotSerializable(
            f"{what} has a dict whose keys are '__type__' and '__value__', which Celery's JSON takes "
            "for a value of another type: give one of them another name"
        )


def _typed(value: Any) -> bool:
    if isinstance(value, dict):
        return value.keys() == {"__type__", "__value__"} or any(map(_typed, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_typed, value))


def _advice(value: Any) -> str:
    if inspect.iscoroutine(value):
        value.close()  # or Python warns that nobody awaited it
        return "nothing awaits a task or a step, so call asyncio.run(...) in a plain function"
    if isinstance(value, BaseException):
        return "raise an exception rather than return it, or return its text"
    return "return plain values (text, numbers, lists, dicts), and an AsyncResult's id"


def load(blob: bytes) -> Any:
    """The value of a blob that :func:`dump` made."""
    return json.loads(unpacked(blob))


def packed(raw: bytes) -> bytes:
    """JSON bytes as they are kept: compressed, if there are many."""
    return _PLAIN + raw if len(raw) < _COMPRESS_FROM else _ZLIB + zlib.compress(raw, 1)


def unpacked(blob: bytes) -> bytes:
    """The JSON bytes that :func:`packed` was given."""
    kind, body = blob[:1], blob[1:]
    return zlib.decompress(body) if kind == _ZLIB else body
