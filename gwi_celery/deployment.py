"""What an app needs of Google Cloud, as data: APIs, topics, subscriptions, grants, indexes.

The one list behind ``celery gwi init``, ``celery gwi doctor``, the Terraform module's test
(``infra/terraform``) and the documentation. Pure functions: nothing is called and nothing is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from gwi_celery.brokers.base import DEAD_LETTER_SUFFIX, QueueSpec, dead_letter_queue
from gwi_celery.brokers.checks import check_spec
from gwi_celery.brokers.pubsub.options import PubSubOptions
from gwi_celery.brokers.pubsub.topology.desired import Desired
from gwi_celery.brokers.pubsub.topology.paths import Paths
from gwi_celery.config import Settings
from gwi_celery.firestore.url import FirestoreURL

#: Google's APIs, and what for.
APIS: Final = {
    "pubsub.googleapis.com": "messages",
    "firestore.googleapis.com": "jobs, locks and results",
    "run.googleapis.com": "where workers run on Cloud Run",
    "monitoring.googleapis.com": "depths of queues, dashboards and alerts",
}
#: The database's edition and kind: others are not tested, and one can't be turned into the other.
FIRESTORE: Final = {"type": "FIRESTORE_NATIVE", "edition": "STANDARD"}
#: Seconds that dead letters are kept: Pub/Sub's longest, 31 days
#: (https://cloud.google.com/pubsub/docs/subscription-properties#message_retention).
DEAD_LETTER_RETENTION: Final = 2_678_400
#: Seconds that a push request may take, which is a push subscription's ack deadline.
PUSH_DEADLINE: Final = round(Settings.push_deadline)


@dataclass(frozen=True)
class Grant:
    """One role for one member, on the smallest resource that it can be granted on."""

    #: worker, caller, pusher (who signs push requests), agent (Pub/Sub's own service agent),
    #: deployer (who makes the push subscription), or autoscaler (who sets the number of workers).
    who: str
    role: str
    #: project, topic, dead topic, subscription, dead subscription, service, pool, or the account of
    #: the pusher or worker.
    on: str
    why: str
    #: "push" or "autoscaling", if it is needed for that alone.
    only: str = ""


#: The least that each needs in provisioned mode.
GRANTS: Final = (
    Grant("worker", "roles/datastore.user", "project", "keeps jobs, locks and results"),
    Grant("worker", "roles/pubsub.subscriber", "subscription", "takes messages"),
    Grant("worker", "roles/pubsub.subscriber", "dead subscription", "lists and redrives them"),
    Grant("worker", "roles/pubsub.publisher", "topic", "publishes retries and copies"),
    Grant("worker", "roles/pubsub.publisher", "dead topic", "publishes dead letters"),
    Grant("caller", "roles/pubsub.publisher", "topic", "calls tasks"),
    Grant("caller", "roles/datastore.user", "project", "reads results"),
    Grant("agent", "roles/pubsub.publisher", "dead topic", "Pub/Sub's own dead lettering"),
    Grant("agent", "roles/pubsub.subscriber", "subscription", "acks what it dead-letters"),
    Grant("pusher", "roles/run.invoker", "service", "may call the push service", only="push"),
    Grant(
        "deployer",
        "roles/iam.serviceAccountUser",
        "pusher",
        "actAs: to make a subscription that signs as the pusher",
        only="push",
    ),
    Grant("autoscaler", "roles/monitoring.viewer", "project", "reads depths", only="autoscaling"),
    Grant("autoscaler", "roles/run.developer", "pool", "sets instances", only="autoscaling"),
    Grant(
        "autoscaler",
        "roles/iam.serviceAccountUser",
        "worker",
        "actAs: to deploy what runs as the worker",
        only="autoscaling",
    ),
)


#: Role -> the one of its permissions that the doctor checks:
#: https://cloud.google.com/pubsub/docs/access-control#permissions_and_roles
PERMISSIONS: Final = {
    "roles/pubsub.subscriber": "pubsub.subscriptions.consume",
    "roles/pubsub.publisher": "pubsub.topics.publish",
}


@dataclass(frozen=True)
class Queue:
    """A queue with its dead letter, as Pub/Sub has it."""

    name: str
    topic: str
    #: Protobufs, lowest priority level first, as managed mode would make them.
    subscriptions: tuple[Any, ...]
    dead_topic: str
    dead_subscription: Any

    def grants(self) -> Iterator[tuple[Grant, str]]:
        """(grant, path) for each grant on the queue's own resources."""
        places = {
            "topic": [self.topic],
            "dead topic": [self.dead_topic],
            "subscription": [subscription.name for subscription in self.subscriptions],
            "dead subscription": [self.dead_subscription.name],
        }
        for grant in GRANTS:
            for path in places.get(grant.on, ()):
                yield grant, path


@dataclass(frozen=True)
class Deployment:
    """All that one app needs, by full names such as ``projects/P/topics/T``."""

    options: PubSubOptions
    store: FirestoreURL | None
    queues: tuple[Queue, ...]


def plan(
    options: PubSubOptions, queues: Iterable[QueueSpec], store: FirestoreURL | None
) -> Deployment:
    """What these queues need under these options.

    Args:
        queues: Task queues; temporary queues and dead letters are left out.
        store: None where jobs are not kept in Firestore.

    Raises ConfigurationError for a queue that can't work.
    """
    queues = list(queues)
    for spec in queues:
        check_spec(spec)
    paths = Paths(options)
    desired = Desired(options, paths)
    return Deployment(
        options,
        store,
        tuple(
            _queue(spec, paths, desired)
            for spec in queues
            if not spec.temporary and not spec.name.endswith(DEAD_LETTER_SUFFIX)
        ),
    )


def _queue(spec: QueueSpec, paths: Paths, desired: Desired) -> Queue:
    topic = paths.topic(spec.name)
    dead = QueueSpec(dead_letter_queue(spec.name))
    dead_topic = paths.mapped_dead_topic(spec.name) or paths.topic(dead.name)
    wanted = [made for _, made in desired.subscriptions(spec, topic)]
    for subscription in wanted:
        subscription.dead_letter_policy.dead_letter_topic = dead_topic
    [(_, dead_subscription)] = desired.subscriptions(dead, dead_topic)
    dead_subscription.message_retention_duration.seconds = DEAD_LETTER_RETENTION
    return Queue(spec.name, topic, tuple(wanted), dead_topic, dead_subscription)
