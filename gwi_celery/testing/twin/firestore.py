"""A Firestore twin: a proxy for Google's emulator that is as strict, and as faulty, as the service.

It forwards every call as bytes, and parses only what it counts or checks.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections import Counter
from math import ceil
from typing import Any

import grpc
from google.cloud.firestore_v1 import types

from gwi_celery.firestore import indexes
from gwi_celery.testing.twin import firestore_admin
from gwi_celery.testing.twin.behaviour import FirestoreBehaviour
from gwi_celery.testing.twin.checks import Refused
from gwi_celery.testing.twin.server import Server

_SERVICE = "/google.firestore.v1.Firestore/"
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
]
_BIDI = frozenset({"Listen", "Write"})
_SERVER_STREAMS = frozenset({"BatchGetDocuments", "RunQuery", "RunAggregationQuery"})

#: Calls that write, or read, one document.
_OF_ONE = {
    "GetDocument": "reads",
    "CreateDocument": "writes",
    "UpdateDocument": "writes",
    "DeleteDocument": "deletes",
    "ListCollectionIds": "reads",
}

#: Requests with writes.
_WRITING: Any = {"Commit": types.CommitRequest.pb(), "BatchWrite": types.BatchWriteRequest.pb()}
_ListResponse: Any = types.ListDocumentsResponse.pb()
_RunQueryRequest: Any = types.RunQueryRequest.pb()
_RunQueryResponse: Any = types.RunQueryResponse.pb()
_CountRequest: Any = types.RunAggregationQueryRequest.pb()
_CountResponse: Any = types.RunAggregationQueryResponse.pb()
_BatchGetResponse: Any = types.BatchGetDocumentsResponse.pb()
_ListenResponse: Any = types.ListenResponse.pb()

_Operator: Any = types.StructuredQuery.FieldFilter.Operator
#: Filters that one field of an index serves, whatever follows it, and how that field is indexed. An "in"
#: is a query for each of its values.
_KINDS = {
    int(_Operator.EQUAL): {"order": "ASCENDING"},
    int(_Operator.IN): {"order": "ASCENDING"},
    int(_Operator.ARRAY_CONTAINS): {"arrayConfig": "CONTAINS"},
}
_ORDERS = {0: "ASCENDING", 1: "ASCENDING", 2: "DESCENDING"}

#: USD for each document read, written and deleted, in a multi-region:
#: https://cloud.google.com/firestore/pricing
_PRICES = {"reads": 0.06 / 100_000, "writes": 0.18 / 100_000, "deletes": 0.02 / 100_000}


class FirestoreProxy(grpc.GenericRpcHandler):  # grpc has no types
    """Answers all of Firestore's calls with the emulator's answers, or with a fault."""

    def __init__(self, emulator: str, behaviour: FirestoreBehaviour, seed: int) -> None:
        self.behaviour = behaviour
        self.rpcs: Counter[str] = Counter()
        self.documents: Counter[str] = Counter()
        self._emulator = emulator
        self._dice = random.Random(seed)  # noqa: S311 faults that can be repeated
        self._channel: Any = None

    def service(self, handler_call_details: Any) -> Any:
        method: str = handler_call_details.method
        if not method.startswith(_SERVICE):
            return None
        name = method[len(_SERVICE) :]

        async def handle(requests: Any, context: Any) -> None:
            try:
                await self._handle(name, context)
            except Refused as exc:
                await context.abort(getattr(grpc.StatusCode, exc.status), str(exc))
            except grpc.aio.AioRpcError as exc:
                trailing = tuple(exc.trailing_metadata() or ())
                await context.abort(exc.code(), exc.details() or "", trailing)

        return grpc.stream_stream_rpc_method_handler(handle)

    def report(self) -> dict[str, Any]:
        """Calls by name, documents as they are billed, and USD."""
        usd = sum(_PRICES[kind] * count for kind, count in self.documents.items())
        return {"rpcs": dict(self.rpcs), "documents": dict(self.documents), "usd": usd}

    async def _handle(self, name: str, context: Any) -> None:
        self.rpcs[name] += 1
        if self.behaviour.latency:
            await asyncio.sleep(self.behaviour.latency)
        # The emulator needs the auth and routing headers too.
        metadata = [(k, v) for k, v in context.invocation_metadata() if not k.startswith("grpc-")]
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._emulator, options=_OPTIONS)
        if name in _BIDI:
            await self._join(name, context, metadata)
            return
        request = await context.read()
        self._refuse_before(name, request)
        if name in _SERVER_STREAMS:
            answers = self._channel.unary_stream(_SERVICE + name)(request, metadata=metadata)
            await self._pass_on(name, answers, context)
            return
        answer = await self._channel.unary_unary(_SERVICE + name)(request, metadata=metadata)
        self._count(name, request, answer)
        if name in _WRITING:
            self._refuse_after()
        await context.write(answer)

    async def _pass_on(self, name: str, answers: Any, context: Any) -> None:
        """Forward the answers to a read, and count what it is billed: one document at least."""
        progress = name == "RunQuery" and self._chance(self.behaviour.progress)
        read = 0
        async for answer in answers:
            if progress:
                progress = False
                at = _RunQueryResponse.FromString(answer).read_time
                await context.write(_RunQueryResponse(read_time=at).SerializeToString())
            billed = _documents_read(name, answer)
            read += billed
            self.documents["reads"] += billed
            await context.write(answer)
        self.documents["reads"] += not read

    async def _join(self, name: str, context: Any, metadata: Any) -> None:
        """Forward both directions until one ends, or the stream is too old."""
        call = self._channel.stream_stream(_SERVICE + name)(metadata=metadata)

        async def there() -> None:
            while (request := await context.read()) is not grpc.aio.EOF:
                await call.write(request)
            await call.done_writing()

        async def back() -> None:
            async for answer in call:
                if name == "Listen":
                    changed = _ListenResponse.FromString(answer).HasField("document_change")
                    self.documents["reads"] += changed
                await context.write(answer)

        ways = [asyncio.ensure_future(there()), asyncio.ensure_future(back())]
        try:
            life = self.behaviour.listen_life or None
            done, _ = await asyncio.wait(ways[1:], timeout=life)
            if not done:
                raise Refused("The stream was reset.", "UNAVAILABLE")
            ways[1].result()
        finally:
            for way in ways:
                way.cancel()
            call.cancel()

    # --- faults and checks --------------------------------------------------------------------

    def _chance(self, share: float) -> bool:
        return self._dice.random() < share

    def _refuse_before(self, name: str, request: bytes) -> None:
        behaviour = self.behaviour
        if name in _WRITING and self._chance(behaviour.aborted):
            raise Refused("Too much contention on these documents. Please try again.", "ABORTED")
        if self._chance(behaviour.faults * (0.5 if name in _WRITING else 1.0)):
            raise Refused("The service is temporarily unavailable.", "UNAVAILABLE")
        if self._chance(behaviour.exhausted):
            raise Refused("Quota exceeded.", "RESOURCE_EXHAUSTED")
        query = _query_of(name, request) if behaviour.indexes else None
        if query is not None and not served(query):
            raise Refused("The query requires an index.", "FAILED_PRECONDITION")

    def _refuse_after(self) -> None:
        if self._chance(self.behaviour.faults * 0.5):
            raise Refused("The service is temporarily unavailable.", "UNAVAILABLE")
        if self._chance(self.behaviour.late):
            raise Refused("The deadline passed before the answer.", "DEADLINE_EXCEEDED")

    def _count(self, name: str, request: bytes, answer: bytes) -> None:
        """Count what a unary call is billed."""
        if name in _WRITING:
            for write in _WRITING[name].FromString(request).writes:
                self.documents["deletes" if write.delete else "writes"] += 1
        elif name == "ListDocuments":
            found = _ListResponse.FromString(answer).documents
            self.documents["reads"] += max(len(found), 1)
        elif name in _OF_ONE:
            self.documents[_OF_ONE[name]] += 1


def _documents_read(name: str, answer: bytes) -> int:
    """How many documents an answer is billed as: https://cloud.google.com/firestore/pricing#operations"""
    if name == "BatchGetDocuments":
        found = _BatchGetResponse.FromString(answer)
        return bool(found.missing or found.HasField("found"))  # one that is missing, too
    if name == "RunQuery":
        return int(_RunQueryResponse.FromString(answer).HasField("document"))
    counted = _CountResponse.FromString(answer).result.aggregate_fields.values()
    number = sum(int(each.integer_value) for each in counted)
    return max(ceil(number / 1000), 1)


def _query_of(name: str, request: bytes) -> Any:
    """The structured query of a query or a count; None of another request."""
    if name == "RunQuery":
        return _RunQueryRequest.FromString(request).structured_query
    if name == "RunAggregationQuery":
        return _CountRequest.FromString(request).structured_aggregation_query.structured_query
    return None


class FirestoreServer(Server):
    def __init__(
        self, address: str, behaviour: FirestoreBehaviour, seed: int, emulator: str
    ) -> None:
        super().__init__(address)
        self._proxy = FirestoreProxy(emulator, behaviour, seed)

    def handlers(self) -> list[Any]:
        return [firestore_admin.handler(lambda: self._proxy.behaviour.ready), self._proxy]

    def _do_switch(self, **switches: Any) -> dict[str, Any]:
        self._proxy.behaviour = self._proxy.behaviour.changed(**switches)
        return dataclasses.asdict(self._proxy.behaviour)

    def _do_cost(self) -> dict[str, Any]:
        return self._proxy.report()


def served(query: Any) -> bool:
    """Whether the package's index file serves a structured query, by Firestore's rules.

    https://cloud.google.com/firestore/docs/query-data/index-overview
    """
    (source,) = query.from_
    group = source.collection_id
    scope = "COLLECTION_GROUP" if source.all_descendants else "COLLECTION"
    order = [
        {"fieldPath": by.field.field_path, "order": _ORDERS[by.direction]}
        for by in query.order_by
        if by.field.field_path != "__name__"
    ]
    filters = [query.where] if query.where.HasField("field_filter") else []
    filters += query.where.composite_filter.filters
    kinds = [(f.field_filter.field.field_path, _KINDS.get(f.field_filter.op)) for f in filters]
    equal = [{"fieldPath": path, **kind} for path, kind in kinds if kind is not None]
    ranges = [path for path, kind in kinds if kind is None]
    # A range is served by the index of its order.
    if any(not order or order[0]["fieldPath"] != path for path in ranges):
        return False
    if not equal and not order:
        return True  # by name, for which no index is needed
    content = indexes.load()
    if not equal and len(order) == 1:
        wanted = {"order": order[0]["order"], "queryScope": scope}
        return any(
            wanted in field["indexes"]
            for field in content["fieldOverrides"]
            if (field["collectionGroup"], field["fieldPath"]) == (group, order[0]["fieldPath"])
        )
    # Equalities may be merged from several composite indexes with the same order at their end.
    return all(
        any(
            (index["collectionGroup"], index["queryScope"]) == (group, scope)
            and index["fields"] == [field, *order]
            for index in content["indexes"]
        )
        for field in equal
    )
