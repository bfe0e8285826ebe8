"""``celery -A app gwi init``: make what the app's queues need, or print it as gcloud or Terraform."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import click

from gwi_celery import deployment
from gwi_celery.brokers.pubsub.topology.paths import id_of
from gwi_celery.cli.frame import reporting
from gwi_celery.cli.plan import plan_of, queues_of
from gwi_celery.deployment import Deployment, Grant, Queue
from gwi_celery.firestore import indexes
from gwi_celery.integration import broker_for


@click.command()
@click.option(
    "--print",
    "form",
    type=click.Choice(["gcloud", "terraform"]),
    help="Print what would be needed, and make nothing.",
)
@click.pass_context
def init(ctx: click.Context, form: str | None) -> None:
    """Make the app's queues and their dead letters, or print all that the app needs of Google Cloud.

    What is there already is left alone; what differs from the configuration is an error that says so.
    """
    app: Any = ctx.obj.app
    with reporting():
        app.finalize()
        if form is None:
            broker = broker_for(app)
            for spec in queues_of(app):
                broker.declare_queue(spec)
                click.echo(f"queue {spec.name!r} is there, and its dead letter")
            return
        needed = plan_of(app)
        for line in _gcloud(needed) if form == "gcloud" else _terraform(needed):
            click.echo(line)


def _grants(queue: Queue) -> Iterator[tuple[Grant, str, str]]:
    """(grant, kind, id) for each grant on a queue's own resources."""
    for grant, path in queue.grants():
        yield grant, "topic" if "/topics/" in path else "subscription", id_of(path)


# --- gcloud ---------------------------------------------------------------------------------------


def _gcloud(needed: Deployment) -> Iterator[str]:
    project = needed.options.project
    at = ["--project", project, "--quiet"]
    yield "# Who is who:"
    yield f"WORKER=serviceAccount:worker@{project}.iam.gserviceaccount.com"
    yield f"CALLER=serviceAccount:web@{project}.iam.gserviceaccount.com"
    yield (
        "AGENT=serviceAccount:$(gcloud beta services identity create "
        f"--service=pubsub.googleapis.com --project={project} --format='value(email)')"
    )
    yield shlex.join(["gcloud", "services", "enable", *deployment.APIS, *at])
    for queue in needed.queues:
        yield f"\n# Queue {queue.name}"
        for topic in (queue.topic, queue.dead_topic):
            yield shlex.join([*_make("topics", topic), *_topic_flags(needed), *at])
        for subscription in (queue.dead_subscription, *queue.subscriptions):
            yield shlex.join(
                [*_make("subscriptions", subscription.name), *_flags(subscription), *at]
            )
        for grant, kind, id in _grants(queue):
            command = ["gcloud", "pubsub", f"{kind}s", "add-iam-policy-binding", id]
            yield (
                f'{shlex.join(command)} --member="${grant.who.upper()}" --role={grant.role} '
                f"{shlex.join(at)}  # {grant.why}"
            )
    if needed.store is not None:
        yield "\n# Jobs, locks and results"
        kind = deployment.FIRESTORE["type"].lower().replace("_", "-")
        yield (
            "gcloud firestore databases create --location=LOCATION "
            + shlex.join(["--database", needed.store.database, f"--type={kind}", *at])
            + f" --edition={deployment.FIRESTORE['edition'].lower()}"
        )
        for grant in deployment.GRANTS:
            if grant.on == "project" and not grant.only:
                yield (
                    f"gcloud projects add-iam-policy-binding {project} "
                    f'--member="${grant.who.upper()}" --role={grant.role} --condition=None --quiet'
                    f"  # {grant.why}"
                )
        yield from indexes.commands(needed.store.project, needed.store.database)
    yield "\n# Messages are pulled. To have them pushed to a service: celery -A APP gwi push-to URL,"
    yield "# and the grants that docs/service.md lists."


def _make(kind: str, path: str) -> list[str]:
    return ["gcloud", "pubsub", kind, "create", id_of(path)]


def _topic_flags(needed: Deployment) -> list[str]:
    options, flags = needed.options, []
    if options.kms_key:
        flags += ["--topic-encryption-key", options.kms_key]
    if options.storage_regions:
        flags += ["--message-storage-policy-allowed-regions", ",".join(options.storage_regions)]
    if options.labels:
        flags += ["--labels", ",".join(f"{k}={v}" for k, v in sorted(options.labels.items()))]
    return flags


def _flags(wanted: Any) -> list[str]:
    flags = [
        f"--topic={wanted.topic}",
        f"--ack-deadline={wanted.ack_deadline_seconds}",
        "--expiration-period=never",
        f"--message-retention-duration={wanted.message_retention_duration.seconds}s",
    ]
    if wanted.filter:
        flags.append(f"--message-filter={wanted.filter}")
    if wanted.HasField("dead_letter_policy"):
        flags.append(f"--dead-letter-topic={wanted.dead_letter_policy.dead_letter_topic}")
        attempts = wanted.dead_letter_policy.max_delivery_attempts
        flags.append(f"--max-delivery-attempts={attempts}")
    if wanted.HasField("retry_policy"):
        shortest, longest = _backoff(wanted)
        flags += [f"--min-retry-delay={shortest}", f"--max-retry-delay={longest}"]
    if wanted.enable_exactly_once_delivery:
        flags.append("--enable-exactly-once-delivery")
    if wanted.enable_message_ordering:
        flags.append("--enable-message-ordering")
    if wanted.labels:
        labels = sorted(wanted.labels.items())
        flags.append("--labels=" + ",".join(f"{key}={value}" for key, value in labels))
    return flags


def _backoff(wanted: Any) -> tuple[str, str]:
    policy = wanted.retry_policy
    shortest, longest = policy.minimum_backoff, policy.maximum_backoff
    return f"{shortest.ToMilliseconds() / 1000:g}s", f"{longest.ToMilliseconds() / 1000:g}s"


# --- Terraform ------------------------------------------------------------------------------------


def _terraform(needed: Deployment) -> Iterator[str]:
    yield "# What the app needs beside its workers. infra/terraform is a module with these, too."
    project = needed.options.project
    for who in ("worker", "caller", "agent"):
        yield from _block(f'variable "{who}"', {"type": _Raw("string")})
    for api in deployment.APIS:
        yield from _block(
            f'resource "google_project_service" "{_name(api)}"',
            {"project": project, "service": api, "disable_on_destroy": False},
        )
    for queue in needed.queues:
        for topic in (queue.topic, queue.dead_topic):
            yield from _block(_resource("topic", topic), _topic(needed, topic))
        for subscription in (queue.dead_subscription, *queue.subscriptions):
            yield from _block(
                _resource("subscription", subscription.name), _subscription(project, subscription)
            )
        for grant, kind, id in _grants(queue):
            name = _name(f"{id}-{grant.who}-{grant.role.rpartition('.')[2]}")
            yield from _block(
                f'resource "google_pubsub_{kind}_iam_member" "{name}"',
                {
                    "project": project,
                    kind: _Raw(f"google_pubsub_{kind}.{_name(id)}.name"),
                    "role": grant.role,
                    "member": _Raw(f"var.{grant.who}"),
                },
            )
    if needed.store is not None:
        yield from _firestore(needed)


class _Raw(str):
    """An expression, which is not quoted."""


def _firestore(needed: Deployment) -> Iterator[str]:
    assert needed.store is not None
    where = {"project": needed.store.project, "database": needed.store.database}
    yield from _block('variable "location"', {"type": _Raw("string")})
    yield from _block(
        'resource "google_firestore_database" "jobs"',
        {
            "project": needed.store.project,
            "name": needed.store.database,
            "location_id": _Raw("var.location"),
            "type": deployment.FIRESTORE["type"],
            "database_edition": deployment.FIRESTORE["edition"],
        },
    )
    for grant in deployment.GRANTS:
        if grant.on == "project" and not grant.only:
            yield from _block(
                f'resource "google_project_iam_member" "{grant.who}"',
                {
                    "project": needed.store.project,
                    "role": grant.role,
                    "member": _Raw(f"var.{grant.who}"),
                },
            )
    content = indexes.load()
    after = {"depends_on": [_Raw("google_firestore_database.jobs")]}
    for index in content["indexes"]:
        paths = [field["fieldPath"] for field in index["fields"]]
        name = _name("-".join([index["collectionGroup"], index["queryScope"].lower(), *paths]))
        yield from _block(
            f'resource "google_firestore_index" "{name}"',
            {
                **where,
                "collection": index["collectionGroup"],
                "query_scope": index["queryScope"],
                **after,
            },
            [
                ("fields", {"field_path": f["fieldPath"], **_indexed(f)}, [])
                for f in index["fields"]
            ],
        )
    for field in content["fieldOverrides"]:
        name = _name(f"{field['collectionGroup']}-{field['fieldPath']}")
        orders: list[Any] = [
            ("indexes", {**_indexed(i), "query_scope": i["queryScope"]}, [])
            for i in field["indexes"]
        ]
        ttl: list[Any] = [("ttl_config", {}, [])] if field.get("ttl") else []
        yield from _block(
            f'resource "google_firestore_field" "{name}"',
            {
                **where,
                "collection": field["collectionGroup"],
                "field": field["fieldPath"],
                **after,
            },
            [("index_config", {}, orders), *ttl],
        )


def _indexed(field: dict[str, str]) -> dict[str, str]:
    """How a field is indexed: by its order, or by what an array holds."""
    if "order" in field:
        return {"order": field["order"]}
    return {"array_config": field["arrayConfig"]}


def _topic(needed: Deployment, path: str) -> dict[str, Any]:
    options = needed.options
    wanted: dict[str, Any] = {"project": path.split("/")[1], "name": id_of(path)}
    if options.kms_key:
        wanted["kms_key_name"] = options.kms_key
    if options.labels:
        wanted["labels"] = dict(options.labels)
    if options.storage_regions:
        wanted["message_storage_policy"] = (
            "message_storage_policy",
            {"allowed_persistence_regions": list(options.storage_regions)},
        )
    return wanted


def _subscription(project: str, wanted: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "project": project,
        "name": id_of(wanted.name),
        "topic": _Raw(f"google_pubsub_topic.{_name(id_of(wanted.topic))}.id"),
        "ack_deadline_seconds": wanted.ack_deadline_seconds,
        "message_retention_duration": f"{wanted.message_retention_duration.seconds}s",
        "enable_exactly_once_delivery": wanted.enable_exactly_once_delivery,
        "enable_message_ordering": wanted.enable_message_ordering,
        "labels": dict(wanted.labels),
        "expiration_policy": ("expiration_policy", {"ttl": ""}),
    }
    if wanted.filter:
        values["filter"] = wanted.filter
    if wanted.HasField("dead_letter_policy"):
        policy = wanted.dead_letter_policy
        topic = _Raw(f"google_pubsub_topic.{_name(id_of(policy.dead_letter_topic))}.id")
        values["dead_letter_policy"] = (
            "dead_letter_policy",
            {"dead_letter_topic": topic, "max_delivery_attempts": policy.max_delivery_attempts},
        )
    if wanted.HasField("retry_policy"):
        shortest, longest = _backoff(wanted)
        values["retry_policy"] = (
            "retry_policy",
            {"minimum_backoff": shortest, "maximum_backoff": longest},
        )
    return values


def _resource(kind: str, path: str) -> str:
    return f'resource "google_pubsub_{kind}" "{_name(id_of(path))}"'


def _name(id: str) -> str:
    """An id as a Terraform identifier; no two ids share one."""
    return re.sub(r"[^A-Za-z0-9-]", lambda m: "_" if m[0] == "." else f"_{ord(m[0]):x}", id)


def _block(
    head: str, values: dict[str, Any], blocks: list[Any] | None = None, indent: str = ""
) -> Iterator[str]:
    """A block of HCL; a value that is a pair (name, values) is a block inside."""
    yield f"{indent}{head} {{"
    inner = indent + "  "
    nested = list(blocks or [])
    for name, value in values.items():
        if isinstance(value, tuple):
            nested.append((*value, []))
        else:
            yield f"{inner}{name} = {_value(value)}"
    for name, content, deeper in nested:
        yield from _block(name, content, deeper, inner)
    yield f"{indent}}}" + ("" if indent else "\n")


def _value(value: Any) -> str:
    if isinstance(value, _Raw):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + escaped.replace("${", "$${").replace("%{", "%%{") + '"'
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_value(k)} = {_value(v)}" for k, v in value.items()) + " }"
    return "[" + ", ".join(_value(v) for v in value) + "]"
