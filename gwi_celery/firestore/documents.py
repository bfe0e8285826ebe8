"""Documents, writes and queries as plain values, and their form on the wire.

Names are paths below the database's root: ``gwi/v1/gwi_jobs/abc``. Versions and times are whole
microseconds since the epoch, as Firestore keeps them: a document's version *is* its ``update_time``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from google.cloud.firestore_v1 import types as _types

_MILLION: Final = 1_000_000
#: The last one that Firestore knows: of the year 9999.
_LAST_SECOND: Final = 253_402_300_799
_Direction: Any = _types.StructuredQuery.Direction
_Operator: Any = _types.StructuredQuery.FieldFilter.Operator
_REQUEST_TIME: Final = 1


class Micros(int):
    """A point in time, as a field's value: microseconds since the epoch."""

    @classmethod
    def at(cls, seconds: float) -> Micros:
        """That many seconds since the epoch, or the nearest time from then on that Firestore knows."""
        return cls(round(min(max(seconds, 0.0), _LAST_SECOND) * _MILLION))


@dataclass(frozen=True)
class Document:
    name: str
    fields: Mapping[str, Any]
    #: Serves as the document's version.
    update_time: int
    create_time: int


@dataclass(frozen=True)
class Write:
    """One write of a commit; the commit fails as a whole unless every precondition holds."""

    name: str
    #: None deletes the document.
    fields: Mapping[str, Any] | None
    #: Dotted paths to write; a path that is not in ``fields`` is removed. None replaces the whole
    #: document. An empty mask changes nothing, not even the version: the write only checks.
    mask: Sequence[str] | None = None
    #: Fields that the server sets to its time of the request, in whole milliseconds.
    server_times: Sequence[str] = ()
    #: (path, what the server adds to the number there; without a number, to 0).
    increments: Sequence[tuple[str, int]] = ()
    #: Precondition: the document's version. None: no such condition.
    version: int | None = None
    #: Precondition: whether the document exists.
    exists: bool | None = None


def create(name: str, fields: Mapping[str, Any], server_times: Sequence[str] = ()) -> Write:
    """Write a document that must not exist yet."""
    return Write(name, fields, server_times=server_times, exists=False)


def replace(
    name: str, fields: Mapping[str, Any], version: int | None, server_times: Sequence[str] = ()
) -> Write:
    """Write a whole document over the one of that version; None: as :func:`create`."""
    if version is None:
        return create(name, fields, server_times)
    return Write(name, fields, server_times=server_times, version=version)


def change(
    name: str,
    fields: Mapping[str, Any],
    version: int,
    *,
    mask: Sequence[str],
    server_times: Sequence[str] = (),
) -> Write:
    """Write the paths in ``mask`` of the document of that version."""
    return Write(name, fields, mask=mask, server_times=server_times, version=version)


def check(name: str, version: int) -> Write:
    """Change nothing, but only if the document is at that version."""
    return Write(name, {}, mask=(), version=version)


def delete(name: str, version: int | None = None) -> Write:
    return Write(name, None, version=version)


@dataclass(frozen=True)
class Written:
    """A commit's answer, one entry for each write."""

    #: The documents' versions; 0 for what was deleted.
    versions: Sequence[int]
    #: The values of ``server_times``.
    server_times: Sequence[Sequence[Micros]]
    #: The values after ``increments``.
    totals: Sequence[Sequence[int]]
    commit_time: int


@dataclass(frozen=True)
class Read:
    """A read's answer."""

    #: Existing documents only, by name.
    documents: Mapping[str, Document]
    #: The server's time of the read.
    read_time: int


@dataclass(frozen=True)
class Filter:
    #: A path; ``==``, ``<=``, ``>=``, ``<``, ``in`` or ``array-contains``; and a value.
    path: str
    op: str
    value: Any


@dataclass(frozen=True)
class Query:
    """The documents of one collection id that match every filter, in an order."""

    #: The document below which they are; "" for the root.
    parent: str
    collection: str
    #: Whether they may be at any depth below the parent.
    descendants: bool = False
    filters: Sequence[Filter] = ()
    #: (path, "asc" or "desc"); the document's name settles ties, in the direction of the last path.
    order: Sequence[tuple[str, str]] = ()
    #: Start after this document: its values of ``order``'s paths, then its name.
    after: Sequence[Any] | None = None
    #: 0: no limit.
    limit: int = 0
    #: Paths to read; None: all. With an empty mask, only the names.
    mask: Sequence[str] | None = field(default=None)


_OPERATORS: Final[Mapping[str, Any]] = {
    "==": _Operator.EQUAL,
    "<=": _Operator.LESS_THAN_OR_EQUAL,
    ">=": _Operator.GREATER_THAN_OR_EQUAL,
    "<": _Operator.LESS_THAN,
    "in": _Operator.IN,
    "array-contains": _Operator.ARRAY_CONTAINS,
}


# --- times ----------------------------------------------------------------------------------------


def micros(timestamp: Any) -> Micros:
    return Micros(timestamp.seconds * _MILLION + timestamp.nanos // 1000)


def set_micros(timestamp: Any, value: int) -> None:
    timestamp.seconds, rest = divmod(value, _MILLION)
    timestamp.nanos = rest * 1000


# --- values ---------------------------------------------------------------------------------------


def set_value(target: Any, value: Any) -> None:
    """Write ``value`` into a Value message. Raises TypeError for a type that this store doesn't use."""
    if value is None:
        target.null_value = 0
    elif isinstance(value, str):
        target.string_value = value
    elif isinstance(value, bytes):
        target.bytes_value = value
    elif isinstance(value, bool):
        target.boolean_value = value
    elif isinstance(value, Micros):
        set_micros(target.timestamp_value, value)
    elif isinstance(value, int):
        target.integer_value = value
    elif isinstance(value, float):
        target.double_value = value
    elif isinstance(value, Mapping):
        target.map_value.SetInParent()
        for key, each in value.items():
            set_value(target.map_value.fields[key], each)
    elif isinstance(value, (list, tuple)):
        target.array_value.SetInParent()
        for each in value:
            set_value(target.array_value.values.add(), each)
    else:
        raise TypeError(f"no field holds a {type(value).__name__}")


def get_value(message: Any) -> Any:
    kind = message.WhichOneof("value_type")
    if kind == "map_value":
        return {key: get_value(each) for key, each in message.map_value.fields.items()}
    if kind == "array_value":
        return [get_value(each) for each in message.array_value.values]
    if kind == "timestamp_value":
        return micros(message.timestamp_value)
    if kind == "null_value":
        return None
    return getattr(message, kind)


# --- messages -------------------------------------------------------------------------------------


def set_write(target: Any, write: Write, root: str) -> None:
    name = root + write.name
    if write.fields is None:
        target.delete = name
    else:
        target.update.name = name
        for key, value in write.fields.items():
            set_value(target.update.fields[key], value)
        if write.mask is not None:
            target.update_mask.SetInParent()
            target.update_mask.field_paths.extend(write.mask)
        for path in write.server_times:
            transform = target.update_transforms.add()
            transform.field_path = path
            transform.set_to_server_value = _REQUEST_TIME
        for path, by in write.increments:
            transform = target.update_transforms.add()
            transform.field_path = path
            transform.increment.integer_value = by
    if write.version is not None:
        set_micros(target.current_document.update_time, write.version)
    elif write.exists is not None:
        target.current_document.exists = write.exists


def get_written(response: Any) -> Written:
    return Written(
        [micros(result.update_time) for result in response.write_results],
        [
            [
                micros(v.timestamp_value)
                for v in result.transform_results
                if _is(v, "timestamp_value")
            ]
            for result in response.write_results
        ],
        [
            [v.integer_value for v in result.transform_results if _is(v, "integer_value")]
            for result in response.write_results
        ],
        micros(response.commit_time),
    )


def _is(value: Any, kind: str) -> bool:
    return bool(value.HasField(kind))


def get_document(message: Any, root: str) -> Document:
    return Document(
        message.name[len(root) :],
        {key: get_value(value) for key, value in message.fields.items()},
        micros(message.update_time),
        micros(message.create_time),
    )


def set_query(target: Any, query: Query, root: str) -> None:
    source = target.from_.add()  # as the generated library spells "from"
    source.collection_id = query.collection
    source.all_descendants = query.descendants
    if query.mask is not None:
        for path in query.mask or ["__name__"]:
            target.select.fields.add().field_path = path
    _set_filters(target.where, query.filters)
    for path, direction in query.order:
        by = target.order_by.add()
        by.field.field_path = path
        by.direction = _Direction.ASCENDING if direction == "asc" else _Direction.DESCENDING
    if query.order or query.after is not None:
        last = query.order[-1][1] if query.order else "asc"
        by = target.order_by.add()
        by.field.field_path = "__name__"
        by.direction = _Direction.ASCENDING if last == "asc" else _Direction.DESCENDING
    if query.after is not None:
        *values, name = query.after
        for value in values:
            set_value(target.start_at.values.add(), value)
        target.start_at.values.add().reference_value = root + name
        target.start_at.before = False
    if query.limit:
        target.limit.value = query.limit


def _set_filters(target: Any, filters: Iterable[Filter]) -> None:
    each = list(filters)
    if not each:
        return
    for one in each:
        place = target if len(each) == 1 else target.composite_filter.filters.add()
        place.field_filter.field.field_path = one.path
        place.field_filter.op = _OPERATORS[one.op]
        set_value(place.field_filter.value, one.value)
    if len(each) > 1:
        target.composite_filter.op = _types.StructuredQuery.CompositeFilter.Operator.AND
