"""Does Google Cloud have what :mod:`gwi_celery.deployment` lists for an app? Only reads.

Google's emulators have neither IAM nor an admin API: a check that can't be made there says so, and
neither holds nor fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import grpc

from gwi_celery import deployment
from gwi_celery.brokers.pubsub.client import SCOPES, Client, pb
from gwi_celery.brokers.pubsub.options import PubSubOptions
from gwi_celery.brokers.pubsub.topology.paths import id_of
from gwi_celery.deployment import Deployment, Queue
from gwi_celery.doctor.findings import Finding
from gwi_celery.errors import BrokerError, BrokerUnusable, NotFound
from gwi_celery.firestore import indexes
from gwi_celery.firestore.url import FirestoreURL
from gwi_celery.gcp.credentials import Access, NoCredentials

_IAM: Final = "/google.iam.v1.IAMPolicy/"
_ADMIN: Final = "/google.firestore.admin.v1.FirestoreAdmin/"
_ADMIN_SCOPES: Final = ("https://www.googleapis.com/auth/datastore",)
_AGENT: Final = "@gcp-sa-pubsub.iam.gserviceaccount.com"
_TIMEOUT: Final = 15.0
_MAKE: Final = "celery -A APP gwi init --print gcloud"
#: What a server without that API answers.
_NOT_THERE: Final = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN)


def needs(wanted: Deployment) -> Iterator[Finding]:
    """One finding for each thing that is needed, with the command that mends it."""
    client = Client(wanted.options)
    try:
        with channel_to(wanted.options, SCOPES) as channel:
            for queue in wanted.queues:
                yield from _resources(client, queue)
                yield from _grants(channel, queue, wanted.options)
    finally:
        client.close()
    if wanted.store is not None and not wanted.store.database_per_tenant:
        yield from firestore(wanted.store)


# --- topics and subscriptions ---------------------------------------------------------------------


def _resources(client: Client, queue: Queue) -> Iterator[Finding]:
    for topic in (queue.topic, queue.dead_topic):
        request = pb["GetTopicRequest"](topic=topic)
        yield _there(client, "GetTopic", request, topic, lambda found: ())
    for subscription in (*queue.subscriptions, queue.dead_subscription):
        request = pb["GetSubscriptionRequest"](subscription=subscription.name)
        differences = partial(_differences, subscription)
        yield _there(client, "GetSubscription", request, subscription.name, differences)


def _there(
    client: Client, rpc: str, request: Any, path: str, differences: Callable[[Any], Iterable[str]]
) -> Finding:
    what = f"{path.split('/')[2][:-1]} {id_of(path)}"
    try:
        found = client.persist(rpc, request, path, _TIMEOUT)
    except (NotFound, BrokerUnusable) as exc:
        change = "celery -A APP gwi init" if isinstance(exc, NotFound) else "as it says"
        return Finding(what, False, measured=str(exc), change=change)
    except BrokerError as exc:
        return Finding(what, False, measured=str(exc), change="try again")
    wrong = ", ".join(differences(found))
    return Finding(
        what, not wrong, "as gwi init makes it", wrong or "is there", _MAKE if wrong else ""
    )


def _differences(wanted: Any, found: Any) -> Iterator[str]:
    """The differences that matter. Deadlines are left out: a push subscription has its own."""
    for name in ("topic", "filter", "enable_message_ordering", "enable_exactly_once_delivery"):
        if getattr(wanted, name) != getattr(found, name):
            yield f"{name} is {getattr(found, name)!r} and not {getattr(wanted, name)!r}"
    kept = found.message_retention_duration.seconds or 7 * 86_400
    if kept < wanted.message_retention_duration.seconds:
        days = wanted.message_retention_duration.seconds / 86_400
        yield f"keeps messages for {kept / 86_400:g} days and not for {days:g}"
    if not found.HasField("expiration_policy") or found.expiration_policy.ttl.seconds:
        yield "expires when it is not used"
    if wanted.dead_letter_policy.dead_letter_topic != found.dead_letter_policy.dead_letter_topic:
        yield f"dead-letters to {found.dead_letter_policy.dead_letter_topic or 'nothing'}"


# --- permissions ----------------------------------------------------------------------------------


def _grants(channel: Any, queue: Queue, options: PubSubOptions) -> Iterator[Finding]:
    """Our own grants, by TestIamPermissions; the service agent's, by the resource's policy."""
    for grant, path in queue.grants():
        kind = "topics" if "/topics/" in path else "subscriptions"
        mend = (
            f"gcloud pubsub {kind} add-iam-policy-binding {id_of(path)} --project="
            f"{path.split('/')[1]} --role={grant.role} --member=serviceAccount:"
        )
        what = f"{grant.role} of the {grant.who} on {id_of(path)}"
        if grant.who == "agent":
            yield agents(channel, path, what, grant.role, f"{mend}service-NUMBER{_AGENT}")
        elif grant.who == "worker":  # who asks; a caller may do less
            yield _ours(channel, path, what, deployment.PERMISSIONS[grant.role], f"{mend}NAME")


def _ours(channel: Any, path: str, what: str, permission: str, mend: str) -> Finding:
    try:
        has = permissions(channel, path, [permission])
    except grpc.RpcError as exc:
        return unasked(what, exc, mend)
    found = bool(has)
    measured = permission if found else f"not {permission}, as whoever asks here"
    return Finding(what, found, "granted", measured, "" if found else mend, twin="granted")


def permissions(channel: Any, path: str, wanted: list[str]) -> list[str]:
    """Those permissions in ``wanted`` that the caller has on ``path``. Raises grpc.RpcError."""
    from google.iam.v1 import iam_policy_pb2

    request = iam_policy_pb2.TestIamPermissionsRequest(resource=path, permissions=wanted)
    answer = _call(
        channel,
        f"{_IAM}TestIamPermissions",
        request,
        iam_policy_pb2.TestIamPermissionsResponse,
        ("resource", path),
    )
    return list(answer.permissions)


def agents(channel: Any, path: str, what: str, role: str, mend: str) -> Finding:
    """Whether Pub/Sub's service agent has ``role`` by the policy of ``path`` itself."""
    from google.iam.v1 import iam_policy_pb2, policy_pb2

    request = iam_policy_pb2.GetIamPolicyRequest(resource=path)
    try:
        policy = _call(
            channel, f"{_IAM}GetIamPolicy", request, policy_pb2.Policy, ("resource", path)
        )
    except grpc.RpcError as exc:
        return unasked(what, exc, mend)
    found = any(
        binding.role == role and any(member.endswith(_AGENT) for member in binding.members)
        for binding in policy.bindings
    )
    measured = "granted" if found else "not on it itself; the project's own policy may grant it"
    change = "" if found else mend
    return Finding(what, True if found else None, "granted", measured, change, twin="granted")


def unasked(what: str, exc: Any, mend: str = "") -> Finding:
    """The finding for permissions that could not be asked for (an RpcError)."""
    if exc.code() in _NOT_THERE:
        return Finding(what, None, "granted", "an emulator: there is no IAM to ask", twin="granted")
    told = f"{exc.code().name}: {exc.details()}"
    return Finding(what, None, "granted", f"can't be asked here ({told})", mend, twin="granted")


# --- Firestore ------------------------------------------------------------------------------------


def firestore(url: FirestoreURL) -> Iterator[Finding]:
    """Edition and mode, indexes and TTL policies of a database."""
    from google.cloud.firestore_admin_v1 import types

    path = f"projects/{url.project}/databases/{url.database}"
    commands = "\n".join(indexes.commands(url.project, url.database))
    with channel_to(url, _ADMIN_SCOPES) as channel:

        def ask(rpc: str, answer: str, **fields: Any) -> Any:
            request = getattr(types, f"{rpc}Request").pb()(**fields)
            [place] = [value for name, value in fields.items() if name in ("name", "parent")]
            route = ("name" if rpc.startswith("Get") else "parent", place)
            return _call(channel, _ADMIN + rpc, request, getattr(types, answer).pb(), route)

        checks: dict[str, Callable[[], Finding]] = {
            "Firestore's edition and mode": lambda: _database(ask, path),
            "Firestore's indexes": lambda: _indexes(ask, path, commands),
            "Firestore's TTL policies": lambda: _lifetimes(ask, path, commands),
        }
        for what, check in checks.items():
            try:
                yield check()
            except grpc.RpcError as exc:
                told, change = f"can't be asked here ({exc.code().name}: {exc.details()})", ""
                if exc.code() in _NOT_THERE:
                    told = "an emulator: there is no admin API to ask"
                else:
                    change = "roles/datastore.viewer, and datastore.indexes.list, to see them"
                yield Finding(what, None, f"as {_MAKE} has it", told, change, twin="the same")


_Ask = Callable[..., Any]


def _database(ask: _Ask, path: str) -> Finding:
    found = ask("GetDatabase", "Database", name=path)
    kinds = found.DESCRIPTOR.fields_by_name
    type = kinds["type_"].enum_type.values_by_number[found.type_].name
    edition = kinds["database_edition"].enum_type.values_by_number[found.database_edition].name
    wanted = deployment.FIRESTORE
    holds = (type, edition) == (wanted["type"], wanted["edition"])
    return Finding(
        "Firestore's edition and mode",
        holds,
        f"{wanted['type']}, {wanted['edition']}",
        f"{type}, {edition}, in {found.location_id}",
        "" if holds else "another database: one can't be turned into the other (?database=NAME)",
        twin=f"{wanted['type']}, {wanted['edition']}",
    )


def _indexes(ask: _Ask, path: str, commands: str) -> Finding:
    """Whether our composite indexes are ready."""
    states: dict[str, str] = {}
    for index in _pages(ask, "ListIndexes", "indexes", f"{path}/collectionGroups/-"):
        kinds = index.DESCRIPTOR.fields_by_name
        scope = kinds["query_scope"].enum_type.values_by_number[index.query_scope].name
        fields = [
            (field.field_path, "CONTAINS" if field.array_config else _ORDER[field.order])
            for field in index.fields
            if field.field_path != "__name__"
        ]
        state = kinds["state"].enum_type.values_by_number[index.state].name
        states[_spelt(index.name.split("/")[5], scope, fields)] = state
    wanted = [
        _spelt(
            each["collectionGroup"],
            each["queryScope"],
            [(f["fieldPath"], f.get("order", "CONTAINS")) for f in each["fields"]],
        )
        for each in indexes.load()["indexes"]
    ]
    return _ready("Firestore's indexes", wanted, states, "READY", commands)


_ORDER: Final = {1: "ASCENDING", 2: "DESCENDING"}


def _spelt(group: str, scope: str, fields: list[tuple[str, str]]) -> str:
    paths = ", ".join(f"{path} {order.lower()}" for path, order in fields)
    return f"{group} ({paths}; {scope.lower()})"


def _lifetimes(ask: _Ask, path: str, commands: str) -> Finding:
    states: dict[str, str] = {}
    filter = "ttlConfig:*"
    for field in _pages(ask, "ListFields", "fields", f"{path}/collectionGroups/-", filter=filter):
        parts = field.name.split("/")
        kind = field.ttl_config.DESCRIPTOR.fields_by_name["state"].enum_type
        states[f"{parts[5]}.{parts[7]}"] = kind.values_by_number[field.ttl_config.state].name
    wanted = [
        f"{field['collectionGroup']}.{field['fieldPath']}"
        for field in indexes.load()["fieldOverrides"]
        if field.get("ttl")
    ]
    return _ready("Firestore's TTL policies", wanted, states, "ACTIVE", commands)


def _ready(
    what: str, wanted: list[str], states: Mapping[str, str], ready: str, commands: str
) -> Finding:
    missing = [name for name in wanted if name not in states]
    making = [f"{n} is {states[n]}" for n in wanted if n in states and states[n] != ready]
    told = [f"missing: {'; '.join(missing)}"] if missing else []
    told += making
    good = f"{len(wanted)} are {ready}"
    change = commands if missing else ("wait: it may take an hour" if making else "")
    return Finding(what, not told, good, ". ".join(told) or good, change, twin=good)


def _pages(ask: _Ask, rpc: str, field: str, parent: str, **fields: Any) -> Iterator[Any]:
    token = ""
    while True:
        answer = ask(rpc, f"{rpc}Response", parent=parent, page_token=token, **fields)
        yield from getattr(answer, field)
        token = answer.next_page_token
        if not token:
            return


# --- calls ----------------------------------------------------------------------------------------


@contextmanager
def channel_to(where: PubSubOptions | FirestoreURL, scopes: tuple[str, ...]) -> Iterator[Any]:
    """A channel with the environment's credentials. Raises BrokerUnusable if there are none."""
    if where.emulator:
        channel = grpc.insecure_channel(where.endpoint, [("grpc.enable_http_proxy", 0)])
    else:
        try:
            channel = Access(scopes).channel(where.endpoint, [])
        except NoCredentials as exc:
            raise BrokerUnusable(f"no Google Cloud credentials: {exc}") from exc
    with channel:
        yield channel


def _call(channel: Any, method: str, request: Any, answer: Any, route: tuple[str, str]) -> Any:
    stub = channel.unary_unary(
        method,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=answer.FromString,
    )
    metadata = (("x-goog-request-params", f"{route[0]}={route[1]}"),)
    return stub(request, timeout=_TIMEOUT, metadata=metadata)
