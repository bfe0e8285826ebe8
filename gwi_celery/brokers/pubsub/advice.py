"""Error texts for Pub/Sub that name the next step: resource, role, command. Pure functions."""

from __future__ import annotations

import re

from gwi_celery.brokers.base import DEAD_LETTER_SUFFIX
from gwi_celery.brokers.pubsub import naming
from gwi_celery.brokers.pubsub.options import PubSubOptions
from gwi_celery.gcp import emulators, refusals
from gwi_celery.gcp.emulators import PUBSUB_HOST

#: RPC -> the role that it needs on its topic or subscription; every other needs the editor role.
_ROLES = {
    "Publish": "roles/pubsub.publisher",
    "Pull": "roles/pubsub.subscriber",
    "StreamingPull": "roles/pubsub.subscriber",
    "Acknowledge": "roles/pubsub.subscriber",
    "ModifyAckDeadline": "roles/pubsub.subscriber",
}
_EDITOR = "roles/pubsub.editor"
#: The permission on an account, and a role with it, that having pushes signed by that account needs.
_ACT_AS, _SIGN = "iam.serviceAccounts.actAs", "roles/iam.serviceAccountUser"

#: Google's text for a project that it doesn't know; comes with NOT_FOUND.
PROJECT_UNKNOWN = re.compile(r"project not found", re.IGNORECASE)


def unavailable(options: PubSubOptions) -> str:
    """For UNAVAILABLE and DEADLINE_EXCEEDED, whether a server answered so or nobody answered."""
    if options.emulator:
        return emulators.unavailable("Pub/Sub", PUBSUB_HOST, options.endpoint)
    hint = ""
    if not options.endpoint.endswith(".googleapis.com:443"):
        hint = "; if that is an emulator, say so: ?emulator=true"
    return (
        f"Pub/Sub at {options.endpoint} is unavailable: check this machine's network, and the "
        f"endpoint if the broker's URL names one{hint}"
    )


def pushed(queue: str, resource: str, endpoint: str) -> str:
    """For a consumer of a queue that Pub/Sub pushes."""
    return (
        f"queue {queue!r} is not pulled: {resource} is a push subscription, whose messages Pub/Sub posts "
        f"to {endpoint}. Run the push service there (celery gwi serve), or have the queue pulled "
        f"again by `celery -A APP gwi push-to '' -Q {queue}`"
    )


def no_project(options: PubSubOptions, details: str) -> str:
    """For NOT_FOUND of the project itself."""
    return (
        f"there is no Google Cloud project {options.project!r}, or this account may not see it "
        f"({details}): check GCP_PROJECT_ID, or the project in the broker's URL"
    )


def not_ready(options: PubSubOptions) -> str:
    """For a project so new that topics can't be created in it."""
    forbids = "leaves no region for messages"
    if options.storage_regions:
        forbids = f"forbids one of storage_regions ({', '.join(options.storage_regions)})"
    return (
        f"project {options.project} is not ready for Pub/Sub yet: a new project takes some minutes, and "
        "this is retried. If it lasts, the organization policy constraints/gcp.resourceLocations "
        f"{forbids}"
    )


def by_project(resource: str, details: str) -> str | None:
    """For a refusal whose cause is the project or its organization; None if it isn't."""
    project, _, _ = _parts(resource)
    return refusals.why(details, name="Pub/Sub", api="pubsub.googleapis.com", project=project)


def forbidden(options: PubSubOptions, rpc: str, resource: str, details: str) -> str:
    """For PERMISSION_DENIED."""
    role = _ROLES.get(rpc, _EDITOR)
    project, kind, id = _parts(resource)
    if _ACT_AS in details:
        return (
            f"not allowed to have pushes signed by that account ({details}): grant {_SIGN} on it, by "
            "`gcloud iam service-accounts add-iam-policy-binding ACCOUNT "
            f"--member=serviceAccount:NAME --role={_SIGN}`"
        )
    cause = by_project(resource, details)
    if cause is not None:
        return cause
    if role == _EDITOR:
        command = f"gcloud projects add-iam-policy-binding {project}"
        hint = ", or use mode='provisioned', which makes no such call" if options.managed else ""
        if rpc == "ModifyPushConfig":
            hint = f", and {_SIGN} on the account that signs its pushes"
    else:
        command = f"gcloud pubsub {kind} add-iam-policy-binding {id} --project={project}"
        hint = ""
    return (
        f"not allowed to {rpc} on {resource} ({details}): grant {role}, by `{command} "
        f"--member=serviceAccount:NAME --role={role}`{hint}"
    )


def no_credentials(details: str) -> str:
    """For credentials that are missing, revoked or of the wrong kind."""
    return (
        f"no Google Cloud credentials that Pub/Sub accepts ({details}): run `gcloud auth "
        "application-default login`, attach a service account, set GOOGLE_APPLICATION_CREDENTIALS, or, "
        f"for an emulator, {PUBSUB_HOST}"
    )


def unauthenticated(rpc: str, resource: str, details: str) -> str:
    """For UNAUTHENTICATED."""
    return (
        f"the credentials were not accepted for {rpc} on {resource} ({details}): run `gcloud auth "
        "application-default login`, attach a service account, or set GOOGLE_APPLICATION_CREDENTIALS"
    )


def missing(options: PubSubOptions, resource: str) -> str:
    """For NOT_FOUND in mode "provisioned"."""
    project, kind, id = _parts(resource)
    if kind == "topics":
        command = f"gcloud pubsub topics create {id} --project={project}"
    else:
        queue, topic = _behind(options, resource, id)
        command = (
            f"gcloud pubsub subscriptions create {id} --topic={topic} --project={project} "
            f"--ack-deadline={round(options.lease_seconds)} --expiration-period=never"
        )
        if options.ordering:
            command += " --enable-message-ordering"  # which can't be added later
        if options.exactly_once:
            command += " --enable-exactly-once-delivery"
        if queue.endswith(DEAD_LETTER_SUFFIX):
            command += " --message-retention-duration=31d"  # the longest; 7 days by default
        else:
            if options.retention:
                command += f" --message-retention-duration={options.retention:g}s"
            dead = options.queues.get(queue, {}).get("dead_letter_topic")
            dead = dead or topic + DEAD_LETTER_SUFFIX
            command += f" --dead-letter-topic={dead} --max-delivery-attempts=100"
    return (
        f"{resource} does not exist, and mode='provisioned' makes nothing: create it by "
        f"`{command}`, or name another in the transport option 'queues'"
    )


def _behind(options: PubSubOptions, path: str, id: str) -> tuple[str, str]:
    """The queue of a subscription, and the id of its topic."""
    plain = re.sub(r"~p\d$", "", id)
    for queue, mapping in options.queues.items():
        if mapping.get("subscription") in (plain, path):
            return queue, mapping.get("topic") or naming.topic_id(options.prefix, queue)
    # Unless they are mapped, a queue's topic and its subscription have one id.
    return plain, plain


def _parts(resource: str) -> tuple[str, str, str]:
    """(project, kind, id) of projects/P/KIND/ID, or of projects/P."""
    _, project, kind, id = (*resource.split("/", 3), "", "")[:4]
    return project, kind, id
