"""Decompresses bodies up to a limit: one function for each of Kombu's codecs.

Kombu's own functions decompress whatever they are given: 0.3 MB can become 1.3 GB.
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import sys
import zlib
from collections.abc import Callable
from typing import Any, Final

from kombu import compression as kombus

from gwi_celery.errors import MalformedMessage

#: Most bytes for a codec's tables: xz's default preset needs a little less.
_TABLES: Final = 16_000_000


def decompress(body: bytes, codec: str, limit: int) -> bytes:
    """The body, of at most ``limit`` bytes. Raises MalformedMessage."""
    name = kombus._aliases.get(codec, codec)
    if name not in kombus._decoders:
        raise MalformedMessage("its compression is unknown here")
    bounded = _BOUNDED.get(name)
    if bounded is None:
        raise MalformedMessage("its compression has no decoder here that stops at a limit")
    try:
        return bounded(body, limit)
    except MalformedMessage:
        raise
    except Exception as exc:  # each library raises its own
        raise MalformedMessage(f"its body can't be decompressed ({type(exc).__name__})") from exc


def _too_large(limit: int) -> MalformedMessage:
    return MalformedMessage(f"its body is over {limit:,} bytes once decompressed: {ADVICE}")


#: What to do about a message that is too large for its worker.
ADVICE: Final = (
    "send less, or the place to load it from, or raise gwi_max_decoded_bytes on workers with the memory "
    "for it"
)


def _streams(make: Callable[[], Any], body: bytes, limit: int) -> bytes:
    """Decompress all streams in the body, with a decompressor that takes a limit."""
    pieces: list[bytes] = []
    left = limit + 1
    while body:
        decoder = make()
        while not decoder.eof:
            piece = decoder.decompress(body, left)
            body = b""
            pieces.append(piece)
            left -= len(piece)
            if left <= 0:
                raise _too_large(limit)
            if not piece and not decoder.eof and decoder.needs_input:
                raise EOFError("it ends too early")
        body = decoder.unused_data
    return b"".join(pieces)


def _zlib(body: bytes, limit: int) -> bytes:
    decoder = zlib.decompressobj()
    made = decoder.decompress(body, limit + 1)
    if len(made) > limit:
        raise _too_large(limit)
    if not decoder.eof:
        raise EOFError("it ends too early")
    return made


def _bz2(body: bytes, limit: int) -> bytes:
    return _streams(bz2.BZ2Decompressor, body, limit)


def _lzma(body: bytes, limit: int) -> bytes:
    return _streams(lambda: lzma.LZMADecompressor(memlimit=_TABLES), body, limit)


def _zstd(body: bytes, limit: int) -> bytes:
    module = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    zstd: Any = importlib.import_module(module)
    window = {zstd.DecompressionParameter.window_log_max: 24}
    return _streams(lambda: zstd.ZstdDecompressor(options=window), body, limit)


def _brotli(body: bytes, limit: int) -> bytes:
    brotli: Any = kombus.brotli
    decoder = brotli.Decompressor()
    process = getattr(decoder, "process", None) or decoder.decompress
    pieces: list[bytes] = []
    size = 0
    # Only brotli 1.2 and later takes a limit. But a few bytes of input become at most a block of 16 MB.
    for start in range(0, len(body), 4):
        pieces.append(process(body[start : start + 4]))
        size += len(pieces[-1])
        if size > limit:
            raise _too_large(limit)
    if not decoder.is_finished():
        raise EOFError("it ends too early")
    return b"".join(pieces)


#: Kombu's name of a codec -> its function.
_BOUNDED: Final[dict[str, Callable[[bytes, int], bytes]]] = {
    "application/x-gzip": _zlib,
    "application/x-bz2": _bz2,
    "application/x-lzma": _lzma,
    "application/x-brotli": _brotli,
    "application/zstd": _zstd,
}
