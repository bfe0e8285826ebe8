"""The part of Cloud Resource Manager that tells who was granted what on a whole project.

https://cloud.google.com/resource-manager/reference/rest/v3/projects: ``GetProject``, for the project's
number, and ``GetIamPolicy``. The real one has an endpoint of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.iam.v1 import iam_policy_pb2, policy_pb2
from google.longrunning import operations_pb2
from google.type import expr_pb2

from gwi_celery.testing.twin.checks import Refused
from gwi_celery.testing.twin.iam import AGENT, AGENT_ACCOUNT, NUMBER
from gwi_celery.testing.twin.world import World

_SERVICE = "google.cloud.resourcemanager.v3.Projects"
#: Its first field is ``name``, as that of GetProjectRequest and of Project.
_Named = operations_pb2.GetOperationRequest


def handler(world: World) -> Any:
    """gRPC's handler."""

    def project(request: Any) -> Any:
        world.rights.need("resourcemanager.projects.get", request.name)
        return _Named(name=f"projects/{NUMBER}")

    def policy(request: Any) -> Any:
        world.rights.need("resourcemanager.projects.getIamPolicy", request.resource)
        bindings = [
            policy_pb2.Binding(
                role=role,
                members=[AGENT_ACCOUNT if member == AGENT else member],
                condition=expr_pb2.Expr(expression=condition) if condition else None,
            )
            for role, member, condition in world.rights.granted
        ]
        return policy_pb2.Policy(version=3, bindings=bindings)

    def method(rpc: str, request: Any, answer: Callable[[Any], Any]) -> Any:
        async def handle(request: Any, context: Any) -> Any:
            world.costs.rpcs[f"Projects.{rpc}"] += 1
            try:
                return answer(request)
            except Refused as exc:
                await context.abort(getattr(grpc.StatusCode, exc.status), str(exc))

        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=request.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    return grpc.method_handlers_generic_handler(
        _SERVICE,
        {
            "GetProject": method("GetProject", _Named, project),
            "GetIamPolicy": method("GetIamPolicy", iam_policy_pb2.GetIamPolicyRequest, policy),
        },
    )
