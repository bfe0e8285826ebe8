"""Permissions: which one each RPC needs on which resource, and how a call is refused.

https://cloud.google.com/pubsub/docs/access-control#permissions_and_roles. Everybody may do everything,
except what a test has denied; the service agent may also do what a test has granted on the project.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.iam.v1 import iam_policy_pb2, policy_pb2
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from gwi_celery.testing.twin.checks import Refused

#: RPC -> the permission that it needs on its resource.
PERMISSIONS = {
    "CreateTopic": "pubsub.topics.create",
    "GetTopic": "pubsub.topics.get",
    "UpdateTopic": "pubsub.topics.update",
    "ListTopics": "pubsub.topics.list",
    "ListTopicSubscriptions": "pubsub.topics.get",
    "DeleteTopic": "pubsub.topics.delete",
    "DetachSubscription": "pubsub.topics.detachSubscription",
    "Publish": "pubsub.topics.publish",
    "CreateSubscription": "pubsub.subscriptions.create",
    "GetSubscription": "pubsub.subscriptions.get",
    "UpdateSubscription": "pubsub.subscriptions.update",
    "ListSubscriptions": "pubsub.subscriptions.list",
    "DeleteSubscription": "pubsub.subscriptions.delete",
    "ModifyPushConfig": "pubsub.subscriptions.update",
    "Pull": "pubsub.subscriptions.consume",
    "StreamingPull": "pubsub.subscriptions.consume",
    "Acknowledge": "pubsub.subscriptions.consume",
    "ModifyAckDeadline": "pubsub.subscriptions.consume",
    "Seek": "pubsub.subscriptions.consume",
}
#: Who asks, and Pub/Sub's own service agent, which dead-letters.
CALLER, AGENT = "caller", "agent"
#: Kind of resource -> the role by which the agent may dead-letter, and the permission that it gives.
_AGENTS = {
    "topics": ("roles/pubsub.publisher", "pubsub.topics.publish"),
    "subscriptions": ("roles/pubsub.subscriber", "pubsub.subscriptions.consume"),
}
#: Every project's number, and its agent.
NUMBER = 1
AGENT_ACCOUNT = f"serviceAccount:service-{NUMBER}@gcp-sa-pubsub.iam.gserviceaccount.com"
#: Roles that give the agent both, on a project.
_BOTH = ("roles/pubsub.editor", "roles/pubsub.admin", "roles/editor", "roles/owner")
_ACT_AS = "iam.serviceAccounts.actAs"


class Rights:
    """What is denied to whom. Raises Refused."""

    def __init__(self) -> None:
        #: (who, permission, resource); resource "*" is every one.
        self._denied: set[tuple[str, str, str]] = set()
        #: (role, member, condition) that every project's own policy has; "agent" is the service agent.
        self.granted: list[tuple[str, str, str]] = []
        #: The project's API is switched off.
        self.disabled = False
        #: There is no project: https://github.com/potmat/homebridge-google-nest-sdm/pull/9
        self.no_project = False

    def clear(self) -> None:
        self._denied.clear()
        self.granted.clear()
        self.disabled = self.no_project = False

    def deny(self, permission: str, resource: str, who: str) -> None:
        self._denied.add((who, permission, resource))

    def allow(self, permission: str, resource: str, who: str) -> None:
        self._denied.discard((who, permission, resource))

    def has(self, permission: str, resource: str, who: str = CALLER) -> bool:
        if not self._is_denied(permission, resource, who):
            return True
        giving = {role for role, gives in _AGENTS.values() if gives == permission}
        wanted = {(role, AGENT, "") for role in (*giving, *_BOTH)}
        return who == AGENT and not wanted.isdisjoint(self.granted)

    def _is_denied(self, permission: str, resource: str, who: str) -> bool:
        """What is denied on a project is denied on all that is in it."""
        project = "/".join(resource.split("/")[:2])
        return bool(self._denied & {(who, permission, on) for on in (resource, project, "*")})

    def check(self, rpc: str, request: Any) -> None:
        """Raises Refused if the caller may not."""
        resource = resource_of(rpc, request)
        self.check_enabled(resource)
        for permission, on in [(PERMISSIONS[rpc], resource), *_besides(rpc, request)]:
            self.need(permission, on)

    def check_enabled(self, resource: str) -> None:
        project = resource.partition("/")[2].partition("/")[0]
        if self.no_project:
            raise Refused(
                "Requested project not found or user does not have access to it "
                f"(project={project}). Make sure to specify the unique project identifier and not the "
                "Google Cloud Console display name.",
                "NOT_FOUND",
            )
        if self.disabled:
            raise _ApiDisabled(project)

    def need(self, permission: str, on: str) -> None:
        """Raises Refused if the caller lacks it."""
        if self.has(permission, on):
            return
        text = "User not authorized to perform this action."
        if permission == _ACT_AS:
            account = on.rpartition("/")[2]
            text = f"Permission '{permission}' denied on service account {account}."
        raise Refused(text, "PERMISSION_DENIED")

    def held(self, request: Any) -> Any:
        """Those of the asked ones that the caller has. Nobody is refused."""
        has = [p for p in request.permissions if self.has(p, request.resource)]
        return iam_policy_pb2.TestIamPermissionsResponse(permissions=has)

    def policy(self, request: Any) -> Any:
        """GetIamPolicy: what the service agent is granted on that resource itself."""
        path = request.resource
        kind = "topics" if "/topics/" in path else "subscriptions"
        self.need(f"pubsub.{kind}.getIamPolicy", path)
        role, permission = _AGENTS[kind]
        members = [] if self._is_denied(permission, path, AGENT) else [AGENT_ACCOUNT]
        return policy_pb2.Policy(bindings=[{"role": role, "members": members}])

    def may_dead_letter(self, subscription: str, topic: str) -> bool:
        """Whether the service agent may: https://cloud.google.com/pubsub/docs/dead-letter-topics"""
        return self.has("pubsub.topics.publish", topic, AGENT) and self.has(
            "pubsub.subscriptions.consume", subscription, AGENT
        )


class _ApiDisabled(Refused):
    """https://cloud.google.com/service-usage/docs/enable-disable, with its ErrorInfo."""

    def __init__(self, project: str) -> None:
        super().__init__(
            f"Cloud Pub/Sub API has not been used in project {project} before or it is disabled. Enable "
            "it, then retry. If you enabled this API recently, wait a few minutes.",
            "PERMISSION_DENIED",
        )
        info = {"service": "pubsub.googleapis.com", "consumer": f"projects/{project}"}
        self.trailing = error_info(7, str(self), "SERVICE_DISABLED", "googleapis.com", info)


def error_info(
    code: int, text: str, reason: str, domain: str, metadata: dict[str, str]
) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata with a google.rpc.ErrorInfo, as Google's clients read it."""
    info = error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata)
    detail = any_pb2.Any()
    detail.Pack(info)
    status = status_pb2.Status(code=code, message=text, details=[detail])
    return (("grpc-status-details-bin", status.SerializeToString()),)


def resource_of(rpc: str, request: Any) -> str:
    """The resource on which a call's permission is checked."""
    if rpc in ("CreateTopic", "CreateSubscription"):
        path = request.name or getattr(request, "topic", "")
        return str("/".join(path.split("/")[:2]))
    for field in ("topic", "subscription", "project"):
        value = getattr(request, field, None)
        if value is not None:
            return value if isinstance(value, str) else str(value.name)  # an update's
    return ""


def _besides(rpc: str, request: Any) -> Iterator[tuple[str, str]]:
    """The permissions that a call needs on other resources: (permission, resource)."""
    if rpc == "CreateSubscription":
        yield "pubsub.topics.attachSubscription", request.topic
    push = {
        "CreateSubscription": lambda: request.push_config,
        "ModifyPushConfig": lambda: request.push_config,
        "UpdateSubscription": lambda: request.subscription.push_config,
    }.get(rpc)
    # https://cloud.google.com/pubsub/docs/authenticate-push-subscriptions
    account = push().oidc_token.service_account_email if push is not None else ""
    if account:
        yield _ACT_AS, f"projects/-/serviceAccounts/{account}"
