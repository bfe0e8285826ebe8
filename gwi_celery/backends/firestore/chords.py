"""How chords are kept and counted."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from gwi_celery.backends.base import (
    RENEW_CHORD_AFTER,
    Counted,
)
from gwi_celery.backends.firestore.values import BATCH, MANIFEST, TRIES, FirestoreValues
from gwi_celery.firestore import documents
from gwi_celery.firestore.client import Conflict
from gwi_celery.firestore.documents import Query, Write
from gwi_celery.stores.firestore import blobs
from gwi_celery.stores.firestore.paths import SECOND
from gwi_celery.stores.firestore.records import blob_of
from gwi_celery.stores.firestore.results import (
    PARTS,
    gc_at,
    has_expired,
    part_name,
    result_name,
)
from gwi_celery.stores.firestore.tries import Tries


class FirestoreChords(FirestoreValues):
    """Adds chords to values."""

    def open_chord(self, group_id: str, key: str, value: Any) -> None:
        name = self._chord_name(group_id)
        group = self._write(key, value, "", self.expires, None)
        fields = self._chord_fields(renewed=self.client.about_now())
        begun = [documents.create(name, fields)]
        tries = Tries("keep a chord's group")
        for _ in tries:
            with tries.once():
                try:
                    self.client.commit([group.write_over(), *group.pieces, *begun])
                except Conflict:  # the chord was opened before, or by this very commit
                    begun = self._begun_again(name, fields)
                    raise
                return

    def _begun_again(self, name: str, fields: Mapping[str, Any]) -> list[Write]:
        """The writes that restart the chord if the stored one has finished; else none."""
        read = self.client.read([name])
        document = read.documents.get(name)
        if document is None:
            return [documents.create(name, fields)]
        data = document.fields["data"]
        if not (data.get("sent") or has_expired(data["ttl"], document.update_time, read.read_time)):
            return []
        parts = self.client.query(Query(name, PARTS, mask=[])).documents
        for group in blobs.batches([documents.delete(part) for part in parts], BATCH):
            self.client.commit_surely(group, tries=TRIES)
        return [documents.replace(name, fields, document.update_time)]

    def keep_chord_size(self, group_id: str, size: int) -> None:
        fields = self._chord_fields(size=size)
        write = Write(self._chord_name(group_id), fields, mask=["gc_at", "data.ttl", "data.size"])
        self.client.commit_surely([write], tries=TRIES)

    def add_to_chord(self, chord_id: str, result: Any) -> None:
        # It has a document of its own, so it joins once, however often this is sent.
        name = self._chord_name(chord_id)
        joins = documents.create(part_name(name, f"joins:{result.id}"), self._chord_fields())
        self.retried(self._count, name, joins, "data.extra")

    def count_part(self, group_id: str, part: str) -> Counted:
        name = self._chord_name(group_id)
        create = documents.create(part_name(name, part), self._chord_fields(id=part))
        data = self._count(name, create, "data.count")
        renewed, ttl = data.get("renewed"), self.expires
        if renewed and ttl:
            since = (self.client.about_now() - renewed) / SECOND
            if since > ttl * RENEW_CHORD_AFTER:
                self._renew(group_id, name)
        return Counted(
            data.get("count", 0),
            data.get("sent", False),
            size=data.get("size") or None,
            extra=data.get("extra", 0),
        )

    def _count(self, name: str, create: Write, path: str) -> Mapping[str, Any]:
        """Create a document, and add one to the number at ``path``, in one commit; all numbers now."""
        # Adding 0 reads the number.
        numbers = ["data.count", "data.size", "data.extra", "data.renewed"]
        count = Write(
            name,
            self._chord_fields(),
            mask=["gc_at", "data.ttl"],
            increments=[(number, int(number == path)) for number in numbers],
        )
        tries = Tries("count a chord's part")
        for _ in tries:
            with tries.once():
                try:
                    totals = self.client.commit([create, count]).totals[1]
                except Conflict:  # it was counted before
                    document = self.client.read([name]).documents.get(name)
                    return {} if document is None else document.fields["data"]
                return dict(zip(("count", "size", "extra", "renewed"), totals, strict=True))
        raise AssertionError  # the tries end by themselves

    def parts(self, group_id: str) -> list[str]:
        found = self.client.query(Query(self._chord_name(group_id), PARTS, mask=["data.id"]))
        data = [document.fields.get("data", {}) for document in found.documents.values()]
        return [fields["id"] for fields in data if "id" in fields]

    def mark_sent(self, group_id: str) -> None:
        name = self._chord_name(group_id)
        write = Write(name, {"data": {"sent": True}}, mask=["data.sent"], exists=True)
        try:
            self.client.commit_surely([write], tries=TRIES)
        except Conflict:
            return  # it has expired and was deleted meanwhile

    def _chord_name(self, group_id: str) -> str:
        return result_name(self._paths, self.get_key_for_chord(group_id))

    def _chord_fields(self, **data: Any) -> dict[str, Any]:
        ttl = float(self.expires) if self.expires else None
        return {"gc_at": gc_at(self.client, ttl), "data": {"ttl": ttl, **data}}

    def _renew(self, group_id: str, chord: str) -> None:
        """Keep what a chord's last part needs for the TTL of a result from now on."""
        ids = self.parts(group_id)
        keys = [self.get_key_for_group(group_id), *map(self.get_key_for_task, ids)]
        names = [result_name(self._paths, key) for key in keys]
        names += [part_name(chord, part) for part in ids]
        fields = self._chord_fields()
        for some in blobs.batches(names, BATCH):
            read = self.client.read(some, ["data.id", *MANIFEST])
            for document in read.documents.values():
                data = document.fields["data"]
                if data["ttl"] is None or has_expired(
                    data["ttl"], document.update_time, read.read_time
                ):
                    continue
                blob = blob_of(data) if "sha" in data else None
                chunks = blob.chunk_names(document.name) if blob is not None else []
                writes = [
                    Write(document.name, fields, mask=["gc_at", "data.ttl"], exists=True),
                    *(Write(chunk, fields, mask=["gc_at"], exists=True) for chunk in chunks),
                ]
                with suppress(Conflict):  # it is gone
                    self.client.commit_surely(writes, tries=TRIES)
                self._shared.versions.pop(document.name, None)
        renewed = {"data": {"renewed": self.client.about_now()}}
        self.client.commit_surely([Write(chord, renewed, mask=["data.renewed"])], tries=TRIES)
