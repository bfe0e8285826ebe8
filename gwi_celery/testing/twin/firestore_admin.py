"""The admin calls by which an operator sees a database: its edition, indexes and TTL policies.

https://cloud.google.com/firestore/docs/reference/rpc/google.firestore.admin.v1. Every database has
the indexes of the package's ``firestore.indexes.json``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.cloud.firestore_admin_v1 import types

from gwi_celery.firestore import indexes

SERVICE = "google.firestore.admin.v1.FirestoreAdmin"


def handler(ready: Callable[[], bool]) -> Any:
    """gRPC's handler. ``ready``: whether indexes and TTL policies serve; else they are being made."""

    def database(request: Any) -> Any:
        edition = types.Database.DatabaseEdition.STANDARD
        kind = types.Database.DatabaseType.FIRESTORE_NATIVE
        return types.Database(
            name=request.name, type_=kind, database_edition=edition, location_id="nam5"
        )

    def composite(request: Any) -> Any:
        state = types.Index.State.READY if ready() else types.Index.State.CREATING
        found = [
            types.Index(
                name=f"{_database(request)}/collectionGroups/{each['collectionGroup']}/indexes/{n}",
                query_scope=each["queryScope"],
                fields=[_field(field) for field in each["fields"]],
                state=state,
            )
            for n, each in enumerate(indexes.load()["indexes"])
        ]
        return types.ListIndexesResponse(indexes=found)

    def lifetimes(request: Any) -> Any:
        states = types.Field.TtlConfig.State
        config = types.Field.TtlConfig(state=states.ACTIVE if ready() else states.CREATING)
        found = [
            types.Field(
                name=f"{_database(request)}/collectionGroups/{each['collectionGroup']}/fields/"
                f"{each['fieldPath']}",
                ttl_config=config,
            )
            for each in indexes.load()["fieldOverrides"]
            if each.get("ttl")
        ]
        return types.ListFieldsResponse(fields=found)

    answers = {"GetDatabase": database, "ListIndexes": composite, "ListFields": lifetimes}
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            rpc: grpc.unary_unary_rpc_method_handler(
                _as_coroutine(answer),
                request_deserializer=getattr(types, f"{rpc}Request").deserialize,
                response_serializer=lambda message: type(message).serialize(message),
            )
            for rpc, answer in answers.items()
        },
    )


def _as_coroutine(answer: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    async def handle(request: Any, context: Any) -> Any:
        return answer(request)

    return handle


def _database(request: Any) -> str:
    return str("/".join(request.parent.split("/")[:4]))


def _field(field: dict[str, str]) -> dict[str, str]:
    kind = {"array_config": "CONTAINS"} if "arrayConfig" in field else {"order": field["order"]}
    return {"field_path": field["fieldPath"], **kind}
