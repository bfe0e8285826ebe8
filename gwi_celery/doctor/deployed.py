"""Does Google Cloud have what :mod:`gwi_celery.deployment` lists for an app? Only reads.

Google's emulators have neither IAM nor an admin API: a check that can't be made there says so, and
neither holds nor fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import grpc

from gwi_celery import deployment
from gwi_celery.brokers.pubsub.client import Client, pb
from gwi_celery.brokers.pubsub.topology.paths import id_of
from gwi_celery.deployment import Deployment, Queue
from gwi_celery.doctor.calls import NOT_THERE, TIMEOUT, call, connected, told
from gwi_celery.doctor.findings import Finding
from gwi_celery.doctor.grants import AGENT, Grants, unasked
from gwi_celery.errors import BrokerError, BrokerUnavailable, BrokerUnusable, NotFound
from gwi_celery.firestore import indexes
from gwi_celery.firestore.url import FirestoreURL
from gwi_celery.gcp import refusals
from gwi_celery.gcp.credentials import NO_TOKEN

_ADMIN: Final = "/google.firestore.admin.v1.FirestoreAdmin/"
_ADMIN_SCOPES: Final = ("https://www.googleapis.com/auth/datastore",)
_Status = grpc.StatusCode
_MAKE: Final = "celery -A APP gwi init --print gcloud"


def needs(wanted: Deployment) -> Iterator[Finding]:
    """One finding for each thing that is needed, with the command that mends it."""
    client = Client(wanted.options)
    try:
        client.ready(TIMEOUT)  # else each of the calls would be tried for that long
        with Grants(wanted.options) as grants:
            for queue in wanted.queues:
                missing: set[str] = set()
                yield from _resources(client, queue, missing)
                yield from _grants(grants, queue, missing)
    except (BrokerUnavailable, BrokerUnusable) as exc:
        yield Finding("topics and subscriptions", False, measured=str(exc), change="as it says")
    finally:
        client.close()
    if wanted.store is not None and not wanted.store.database_per_tenant:
        yield from firestore(wanted.store)


# --- topics and subscriptions ---------------------------------------------------------------------


def _resources(client: Client, queue: Queue, missing: set[str]) -> Iterator[Finding]:
    """Adds the paths of those that don't exist to ``missing``."""
    there = partial(_there, client, missing)
    for topic in (queue.topic, queue.dead_topic):
        yield there("GetTopic", pb["GetTopicRequest"](topic=topic), topic, lambda found: ())
    for subscription in (*queue.subscriptions, queue.dead_subscription):
        request = pb["GetSubscriptionRequest"](subscription=subscription.name)
        differences = partial(_differences, subscription)
        yield there("GetSubscription", request, subscription.name, differences)


def _there(
    client: Client,
    missing: set[str],
    rpc: str,
    request: Any,
    path: str,
    differences: Callable[[Any], Iterable[str]],
) -> Finding:
    what = f"{path.split('/')[2][:-1]} {id_of(path)}"
    try:
        found = client.persist(rpc, request, path, TIMEOUT)
    except (NotFound, BrokerUnusable) as exc:
        if isinstance(exc.__cause__, grpc.RpcError) and exc.__cause__.code() is _Status.NOT_FOUND:
            missing.add(path)
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


def _grants(grants: Grants, queue: Queue, missing: set[str]) -> Iterator[Finding]:
    """Our own grants, by TestIamPermissions; the service agent's, by the policies.

    Nobody is granted anything on what is ``missing``.
    """
    agents_project = queue.subscriptions[0].name.split("/")[1]
    for grant, path in queue.grants():
        if path in missing:
            continue
        kind = "topics" if "/topics/" in path else "subscriptions"
        mend = (
            f"gcloud pubsub {kind} add-iam-policy-binding {id_of(path)} --project="
            f"{path.split('/')[1]} --role={grant.role} --member=serviceAccount:"
        )
        what = f"{grant.role} of the {grant.who} on {id_of(path)}"
        if grant.who == "agent":
            yield grants.agents(path, agents_project, what, grant.role, f"{mend}{AGENT}")
        elif grant.who == "worker":  # who asks; a caller may do less
            yield _ours(grants, path, what, deployment.PERMISSIONS[grant.role], f"{mend}NAME")


def _ours(grants: Grants, path: str, what: str, permission: str, mend: str) -> Finding:
    try:
        has = grants.held(path, [permission])
    except grpc.RpcError as exc:
        return unasked(what, exc, mend)
    found = bool(has)
    measured = permission if found else f"not {permission}, as whoever asks here"
    return Finding(what, found, "granted", measured, "" if found else mend, twin="granted")


# --- Firestore ------------------------------------------------------------------------------------


def firestore(url: FirestoreURL) -> Iterator[Finding]:
    """Edition and mode, indexes and TTL policies of a database."""
    from google.cloud.firestore_admin_v1 import types

    path = f"projects/{url.project}/databases/{url.database}"
    commands = "\n".join(indexes.commands(url.project, url.database))
    with connected(url.endpoint, _ADMIN_SCOPES, emulator=url.emulator) as channel:

        def ask(rpc: str, answer: str, **fields: Any) -> Any:
            request = getattr(types, f"{rpc}Request").pb()(**fields)
            [place] = [value for name, value in fields.items() if name in ("name", "parent")]
            route = ("name" if rpc.startswith("Get") else "parent", place)
            return call(channel, _ADMIN + rpc, request, getattr(types, answer).pb(), route)

        checks: dict[str, Callable[[], Finding]] = {
            "Firestore's edition and mode": lambda: _database(ask, path),
            "Firestore's indexes": lambda: _indexes(ask, path, commands),
            "Firestore's TTL policies": lambda: _lifetimes(ask, path, commands),
        }
        for what, check in checks.items():
            try:
                yield check()
            except grpc.RpcError as exc:
                unanswered = _unanswered(what, exc, url)
                yield unanswered
                if unanswered.holds is False:  # as all others would be
                    return


def _unanswered(what: str, exc: Any, url: FirestoreURL) -> Finding:
    """For an admin call that failed; it doesn't hold if nothing of the database can be used."""
    expected, details = f"as {_MAKE} has it", exc.details() or ""
    if exc.code() in NOT_THERE:
        measured = "an emulator: there is no admin API to ask"
        return Finding(what, None, expected, measured, twin="the same")
    mend = refusals.why(
        details, name="Firestore", api="firestore.googleapis.com", project=url.project
    )
    if mend is None and exc.code() is _Status.NOT_FOUND:
        mend = (
            f"gcloud firestore databases create --project={url.project} --database='{url.database}' "
            "--type=firestore-native --edition=standard --location=LOCATION, or name one that exists: "
            "firestore://PROJECT?database=NAME"
        )
    if mend is None and (details.startswith(NO_TOKEN) or exc.code() is _Status.UNAUTHENTICATED):
        mend = "gcloud auth application-default login, or attach a service account"
    if mend is None and exc.code() in (_Status.UNAVAILABLE, _Status.DEADLINE_EXCEEDED):
        mend = (
            f"check that this machine reaches {url.endpoint}, and that the store's URL means that"
        )
    if mend is not None:
        return Finding(what, False, expected, told(exc), mend, twin="the same")
    mend = "roles/datastore.viewer, and datastore.indexes.list, to see them"
    return Finding(what, None, expected, f"can't be asked here ({told(exc)})", mend, "the same")


_Ask = Callable[..., Any]


def _database(ask: _Ask, path: str) -> Finding:
    found = ask("GetDatabase", "Database", name=path)
    type, edition = _named(found, "type_"), _named(found, "database_edition")
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
        scope = _named(index, "query_scope")
        fields = [
            (field.field_path, "CONTAINS" if field.array_config else _order(field))
            for field in index.fields
            if field.field_path != "__name__"
        ]
        states[_spelt(index.name.split("/")[5], scope, fields)] = _named(index, "state")
    wanted = [
        _spelt(
            each["collectionGroup"],
            each["queryScope"],
            [(f["fieldPath"], f.get("order", "CONTAINS")) for f in each["fields"]],
        )
        for each in indexes.load()["indexes"]
    ]
    return _ready("Firestore's indexes", wanted, states, "READY", commands)


def _named(message: Any, field: str) -> str:
    """The name of an enum's value; its number if it is newer than Google's library here."""
    value = getattr(message, field)
    known = message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number
    return str(known[value].name if value in known else value)


def _order(field: Any) -> str:
    """Of an index's field; "VECTOR" or the like if it has none, as in indexes of other applications."""
    return _named(field, "order") if field.order else str(field.WhichOneof("value_mode")).upper()


def _spelt(group: str, scope: str, fields: list[tuple[str, str]]) -> str:
    paths = ", ".join(f"{path} {order.lower()}" for path, order in fields)
    return f"{group} ({paths}; {scope.lower()})"


def _lifetimes(ask: _Ask, path: str, commands: str) -> Finding:
    states: dict[str, str] = {}
    filter = "ttlConfig:*"
    for field in _pages(ask, "ListFields", "fields", f"{path}/collectionGroups/-", filter=filter):
        parts = field.name.split("/")
        states[f"{parts[5]}.{parts[7]}"] = _named(field.ttl_config, "state")
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
    found = [f"missing: {'; '.join(missing)}"] if missing else []
    found += making
    good = f"{len(wanted)} are {ready}"
    change = commands if missing else ("wait: it may take an hour" if making else "")
    return Finding(what, not found, good, ". ".join(found) or good, change, twin=good)


def _pages(ask: _Ask, rpc: str, field: str, parent: str, **fields: Any) -> Iterator[Any]:
    token = ""
    while True:
        answer = ask(rpc, f"{rpc}Response", parent=parent, page_token=token, **fields)
        yield from getattr(answer, field)
        token = answer.next_page_token
        if not token:
            return
