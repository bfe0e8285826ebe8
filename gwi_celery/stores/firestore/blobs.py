"""Bytes of any size in documents of at most 1 MiB, written by commits of at most 4 MiB.

A blob that one document can't hold is cut into chunks under a fresh random name. They become visible
with the commit that writes their manifest, which is conditional. Chunks that never become visible are
deleted with their record, or by the TTL policy. With a bucket, a blob that needs more than one commit
is an object there instead, made visible in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final, TypeVar

from gwi_celery.errors import StoreUnusable
from gwi_celery.firestore import documents
from gwi_celery.firestore.client import Client
from gwi_celery.firestore.documents import Micros, Write
from gwi_celery.stores.firestore.paths import CHUNKS
from gwi_celery.stores.firestore.records import Blob, checksum
from gwi_celery.text import raw

#: The largest blob that stays in the document itself, and the size of a chunk, bytes.
INLINE: Final = 900_000
#: The same for a call that is kept with its record: it is read whenever the record is.
ENVELOPE_INLINE: Final = 20_000
#: Bytes of other texts for which there is room in the same document.
_BESIDE: Final = 50_000
#: Chunks in one commit, which stays below 3.5 MB with its other writes.
_CHUNKS_PER_COMMIT: Final = 3
#: Chunks in one read.
_CHUNKS_PER_READ: Final = 10
#: Tries of a commit of chunks that gets no answer.
_TRIES: Final = 3


def pack(
    client: Client,
    blob: bytes,
    era_name: str,
    gc_at: int,
    beside: Iterable[str | None] = (),
    *,
    inline: int = INLINE,
) -> tuple[Blob, list[Write]]:
    """The blob's field, and the writes that belong in the same commit.

    Most chunks of a large blob are written here already. ``beside`` are the other texts of the same
    document, of any length: they leave less room for the blob. Raises StoreUnavailable, StoreUnusable.
    """
    sha = checksum(blob)
    taken = sum(len(raw(text)) for text in beside if text)
    if len(blob) <= inline - max(taken - _BESIDE, 0):
        return Blob(sha, blob, size=len(blob)), []
    name = os.urandom(8).hex()
    if client.bucket is not None and len(blob) > _CHUNKS_PER_COMMIT * INLINE:
        stored_as = f"{era_name}/{name}"
        client.bucket.put(stored_as, blob)
        return Blob(sha, None, size=len(blob), stored_as=stored_as), []
    pieces = [blob[start : start + INLINE] for start in range(0, len(blob), INLINE)]
    packed = Blob(sha, None, name, len(pieces), len(blob))
    writes = [
        Write(chunk, {"gc_at": Micros(gc_at), "data": {"blob": piece}})
        for chunk, piece in zip(packed.chunk_names(era_name), pieces, strict=True)
    ]
    return packed, send_ahead(client, writes)


def send_ahead(client: Client, writes: list[Write]) -> list[Write]:
    """Write all chunks but the last few, and return these for the commit that makes all visible."""
    while len(writes) > _CHUNKS_PER_COMMIT:
        group, writes = writes[:_CHUNKS_PER_COMMIT], writes[_CHUNKS_PER_COMMIT:]
        client.commit_surely(group, tries=_TRIES)
    return writes


def deletions(blob: Blob | None, era_name: str) -> list[Write]:
    """The writes that delete the blob's chunks."""
    return [] if blob is None else [documents.delete(name) for name in blob.chunk_names(era_name)]


def drop(client: Client, blobs: Iterable[Blob | None]) -> None:
    """Delete the bucket's objects of blobs that are no longer visible. Never raises."""
    if client.bucket is not None:
        client.bucket.delete([blob.stored_as for blob in blobs if blob and blob.stored_as])


def unpack(client: Client, era_name: str, blobs: Sequence[Blob]) -> list[bytes]:
    """The bytes of each blob; reads the chunks or objects of those that are not inline.

    Raises StoreUnusable when some of the bytes are missing, or a checksum is wrong.
    """
    names = [name for blob in blobs for name in blob.chunk_names(era_name)]
    pieces: dict[str, bytes] = {}
    for group in batches(names, _CHUNKS_PER_READ):
        for name, document in client.read(group).documents.items():
            pieces[name] = document.fields["data"]["blob"]
    return [_whole(client, blob, era_name, pieces) for blob in blobs]


def _whole(client: Client, blob: Blob, era_name: str, pieces: dict[str, bytes]) -> bytes:
    if blob.inline is not None:
        whole = blob.inline
    elif blob.stored_as:
        whole = _object(client, blob)
    else:
        names = blob.chunk_names(era_name)
        missing = [name for name in names if name not in pieces]
        if missing:
            raise StoreUnusable(
                f"{len(missing)} of {len(names)} {CHUNKS} of a large value are gone, the first is "
                f"{missing[0]}: replay its job from the start"
            )
        whole = b"".join(pieces[name] for name in names)
    if checksum(whole) != blob.sha:
        raise StoreUnusable(
            f"a value of {len(whole):,} bytes below {era_name} is not what was written: its "
            "checksum differs. Replay its job from the start"
        )
    return whole


def _object(client: Client, blob: Blob) -> bytes:
    if client.bucket is None:
        raise StoreUnusable(
            f"a value of {blob.size:,} bytes is in a bucket, as {blob.stored_as}, and the store's URL "
            "names no bucket: add ?gcs_bucket=..."
        )
    whole = client.bucket.get(blob.stored_as)
    if whole is None:
        raise StoreUnusable(
            f"{blob.stored_as} is gone from bucket {client.bucket.name}: replay its job from the start"
        )
    return whole


T = TypeVar("T")


def batches(items: Iterable[T], size: int) -> Iterable[list[T]]:
    left = iter(items)
    while group := list(islice(left, size)):
        yield group
