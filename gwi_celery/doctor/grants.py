"""What accounts may do: whoever asks, and Pub/Sub's own service agent, which dead-letters.

TestIamPermissions knows all that an account may do, inherited grants too, but only the caller's. Of the
service agent there are the policies: that of a topic or subscription has what was granted on it, that of
its project what was granted on all of them. A folder's or an organization's is not read.

https://cloud.google.com/pubsub/docs/dead-letter-topics#grant_forwarding_permissions,
https://cloud.google.com/resource-manager/reference/rest/v3/projects/getIamPolicy (by gRPC, as Google's
own client does: https://cloud.google.com/python/docs/reference/cloudresourcemanager/latest),
https://cloud.google.com/iam/docs/roles-permissions/pubsub
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import grpc
from google.iam.v1 import iam_policy_pb2, policy_pb2
from google.longrunning import operations_pb2

from gwi_celery.brokers.pubsub.client import SCOPES
from gwi_celery.brokers.pubsub.options import PubSubOptions
from gwi_celery.deployment import PERMISSIONS
from gwi_celery.doctor.calls import NOT_THERE, call, connected, told
from gwi_celery.doctor.findings import Finding
from gwi_celery.errors import BrokerUnusable
from gwi_celery.gcp import refusals
from gwi_celery.gcp.endpoints import endpoint

#: Pub/Sub's service agent of a project.
AGENT: Final = "service-NUMBER@gcp-sa-pubsub.iam.gserviceaccount.com"
#: As a policy names it; other universes have a domain of their own in it.
_AGENT: Final = re.compile(
    r"serviceAccount:(service-(\d+)@gcp-sa-pubsub\.(?:[a-z0-9-]+\.)*iam\.gserviceaccount\.com)"
)
_EVERYBODY: Final = ("allUsers", "allAuthenticatedUsers")
#: Members that may include the agent: https://cloud.google.com/iam/docs/principal-identifiers
_SETS: Final = ("group:", "domain:", "principalSet:")
#: Roles that have all of PERMISSIONS; each role there has its own.
_ALL: Final = ("roles/pubsub.editor", "roles/pubsub.admin", "roles/editor", "roles/owner")
#: Roles that agents often have, with none of PERMISSIONS.
_NONE: Final = ("roles/pubsub.serviceAgent", "roles/pubsub.viewer", "roles/viewer")
#: Policies with conditions: https://cloud.google.com/iam/docs/policies#versions
_VERSION: Final = 3

_IAM: Final = "/google.iam.v1.IAMPolicy/"
_PROJECTS: Final = "/google.cloud.resourcemanager.v3.Projects/"
_PROJECTS_SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform.read-only",)
#: Its first field is ``name``, as that of GetProjectRequest and of Project.
_Named = operations_pb2.GetOperationRequest
#: A role that may read policies, of topics and of projects.
_READER: Final = "roles/iam.securityReviewer"


class Grants:
    """Asks who may do what in a project; a context, as it holds connections.

    Each policy is read once.
    """

    def __init__(self, options: PubSubOptions) -> None:
        self._options = options
        self._open = ExitStack()
        self._channels: dict[str, Any] = {}
        self._policies: dict[str, Any] = {}
        self._numbers: dict[str, str] = {}

    def __enter__(self) -> Grants:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._open.close()

    # --- whoever asks -------------------------------------------------------------------------

    def held(self, path: str, wanted: list[str]) -> list[str]:
        """Those permissions in ``wanted`` that the caller has on ``path``.

        Raises grpc.RpcError, and BrokerUnusable where there are no credentials.
        """
        request = iam_policy_pb2.TestIamPermissionsRequest(resource=path, permissions=wanted)
        answer = call(
            self._pubsub(),
            f"{_IAM}TestIamPermissions",
            request,
            iam_policy_pb2.TestIamPermissionsResponse,
            ("resource", path),
        )
        return list(answer.permissions)

    # --- the service agent --------------------------------------------------------------------

    def agents(self, path: str, project: str, what: str, role: str, mend: str) -> Finding:
        """Whether a project's service agent has ``role``'s permission on ``path``.

        Args:
            path: A topic or subscription.
            project: Of the subscription that it dead-letters from.
            what: The finding's.
            role: Of deployment.PERMISSIONS.
            mend: The command that grants it to AGENT.
        """
        found: list[str] = []
        number = ""
        for place in self._places(path):
            try:
                policy = place.read()
            except BrokerUnusable as exc:
                found.append(f"{place.name}: not read ({exc})")
                continue
            except grpc.RpcError as exc:
                if exc.code() in NOT_THERE and not found:
                    return unasked(what, exc)
                found.append(f"{place.name}: not read{place.why(exc)}")
                continue
            number = number or self._number(project)
            bound = _Bound(policy, PERMISSIONS[role], number)
            if bound.by:
                return _granted(what, f"{bound.by}, on {place.name}", project, number)
            found.append(f"{place.name}: {bound}")
        found.append("a folder's and the organization's, which count as well: not asked")
        if number:
            mend = mend.replace(AGENT, AGENT.replace("NUMBER", number))
        return Finding(what, None, "granted", "; ".join(found), mend, twin="granted")

    def _places(self, path: str) -> Iterator[_Place]:
        """What has a policy that counts for ``path``."""
        _, project, kind, _ = path.split("/")
        yield _Place(
            f"the {kind[:-1]} itself",
            project,
            f"pubsub.{kind}.getIamPolicy",
            ("Pub/Sub", "pubsub.googleapis.com"),
            lambda: self._policy(self._pubsub(), f"{_IAM}GetIamPolicy", path),
        )
        yield _Place(
            f"project {project}",
            project,
            "resourcemanager.projects.getIamPolicy",
            ("Cloud Resource Manager", "cloudresourcemanager.googleapis.com"),
            lambda: self._policy(
                self._resource_manager(), f"{_PROJECTS}GetIamPolicy", f"projects/{project}"
            ),
        )

    def _policy(self, channel: Any, method: str, path: str) -> Any:
        """Raises grpc.RpcError, the same one each time."""
        if path not in self._policies:
            request = iam_policy_pb2.GetIamPolicyRequest(
                resource=path, options={"requested_policy_version": _VERSION}
            )
            try:
                found = call(channel, method, request, policy_pb2.Policy, ("resource", path))
            except grpc.RpcError as exc:
                found = exc
            self._policies[path] = found
        found = self._policies[path]
        if isinstance(found, grpc.RpcError):
            raise found
        return found

    def _number(self, project: str) -> str:
        """A project's number; "" if the caller may not see that."""
        if project not in self._numbers:
            name = f"projects/{project}"
            request = _Named(name=name)
            try:
                found = call(
                    self._resource_manager(),
                    f"{_PROJECTS}GetProject",
                    request,
                    _Named,
                    ("name", name),
                )
                self._numbers[project] = found.name.removeprefix("projects/")
            except (grpc.RpcError, BrokerUnusable):
                self._numbers[project] = ""
        return self._numbers[project]

    # --- connections --------------------------------------------------------------------------

    def _pubsub(self) -> Any:
        return self._channel(self._options.endpoint, SCOPES)

    def _resource_manager(self) -> Any:
        """An emulator is asked itself: nothing is asked of Google on its behalf."""
        if self._options.emulator:
            return self._pubsub()
        return self._channel(endpoint("cloudresourcemanager"), _PROJECTS_SCOPES)

    def _channel(self, address: str, scopes: tuple[str, ...]) -> Any:
        if address not in self._channels:
            opened = connected(address, scopes, emulator=self._options.emulator)
            self._channels[address] = self._open.enter_context(opened)
        return self._channels[address]


def _granted(what: str, measured: str, project: str, number: str) -> Finding:
    if number:
        return Finding(what, True, "granted", measured, twin="granted")
    return Finding(
        what,
        None,
        "granted",
        f"{measured}; whether that is this project's own agent is not known without "
        "resourcemanager.projects.get",
        f"compare with `gcloud projects describe {project} --format='value(projectNumber)'`",
        twin="granted",
    )


@dataclass(frozen=True)
class _Place:
    """Something that has a policy of its own."""

    name: str
    project: str
    #: What reading it needs.
    permission: str
    #: Of the API: for people, and for gcloud.
    api: tuple[str, str]
    #: Raises grpc.RpcError, BrokerUnusable.
    read: Callable[[], Any]

    def why(self, exc: Any) -> str:
        """Why it was not read."""
        name, api = self.api
        cause = refusals.why(exc.details() or "", name=name, api=api, project=self.project)
        if cause is not None:
            return f": {cause}"
        if exc.code() is grpc.StatusCode.PERMISSION_DENIED:
            return f", for which this account needs {self.permission} ({_READER} has it)"
        return f" ({told(exc)})"


class _Bound:
    """What a policy says of a permission of the service agent; for people, by ``str()``."""

    def __init__(self, policy: Any, permission: str, number: str) -> None:
        giving = {*_ALL, *(role for role, gives in PERMISSIONS.items() if gives == permission)}
        #: The role by which it is granted without a condition, and to whom; "" if it isn't.
        self.by = ""
        self._but: list[str] = []
        for binding in policy.bindings:
            role, condition = binding.role, binding.condition.expression
            for member in binding.members:
                agent = _AGENT.fullmatch(member)
                ours = member in _EVERYBODY or (agent and number in ("", agent[2]))
                if role in giving and ours and not condition:
                    self.by = self.by or f"{role} of {agent[1] if agent else member}"
                elif role in giving and ours:
                    self._but.append(f"{role} only on the condition {condition!r}")
                elif role in giving and agent:
                    self._but.append(f"{role} of another project's agent, {agent[1]}")
                elif role in giving and member.startswith(_SETS):
                    self._but.append(f"{role} of {member}, whose members were not looked up")
                elif ours and role not in (*PERMISSIONS, *_NONE):
                    self._but.append(f"{role}, of which it is unknown whether it has {permission}")

    def __str__(self) -> str:
        return ", ".join(dict.fromkeys(self._but)) or "not granted"


def unasked(what: str, exc: Any, mend: str = "") -> Finding:
    """The finding for permissions that could not be asked for (an RpcError)."""
    if exc.code() in NOT_THERE:
        return Finding(what, None, "granted", "an emulator: there is no IAM to ask", twin="granted")
    measured = f"can't be asked here ({told(exc)})"
    return Finding(what, None, "granted", measured, mend, twin="granted")
