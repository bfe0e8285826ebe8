"""Admin calls: they create, read, list and delete topics and subscriptions.

A *sign* is a subscription on a topic that is never published to: its name carries information. With
signs, connections tell one another what Pub/Sub doesn't record.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from gwi_celery.backoff import Backoff
from gwi_celery.brokers.pubsub import naming
from gwi_celery.brokers.pubsub.client import AlreadyExists, Client, ignoring_missing, pb
from gwi_celery.brokers.pubsub.options import PubSubOptions
from gwi_celery.errors import NotFound

_T = TypeVar("_T")
_PAGE = 1000
#: Tries to create something that other processes delete meanwhile, and seconds between two: the first
#: pause, and the longest. Without one, all of them may fall into one deletion, which is several calls.
_TRIES, _FIRST_PAUSE, _LONGEST_PAUSE = 8, 0.05, 1.0
#: Pub/Sub's name for the topic of a subscription whose topic was deleted.
_DELETED_TOPIC = "_deleted-topic_"


class Admin:
    """Admin calls for one connection's project and prefix."""

    def __init__(self, client: Client, options: PubSubOptions) -> None:
        self._client = client
        self._options = options
        id = naming.signs_topic_id(options.prefix)
        self.signs_topic = f"projects/{options.project}/topics/{id}"
        #: Path of a subscription -> the endpoint that it is pushed to, as last seen.
        self.pushed: dict[str, str] = {}

    def create_topic(self, path: str, labels: dict[str, str]) -> bool:
        """False if it existed already."""
        options = self._options
        topic = pb["Topic"](name=path, labels={**options.labels, **labels})
        if options.kms_key:
            topic.kms_key_name = options.kms_key
        if options.storage_regions:
            topic.message_storage_policy.allowed_persistence_regions.extend(options.storage_regions)
        try:
            self._client.persist("CreateTopic", topic, path)
        except AlreadyExists:
            return False
        return True

    def create_subscription(self, wanted: Any) -> bool:
        """False if it existed already. Raises NotFound if its topic doesn't exist."""
        try:
            self._client.persist("CreateSubscription", wanted, wanted.name)
        except AlreadyExists:
            return False
        return True

    def get_subscription(self, path: str) -> Any:
        """The subscription; None if it doesn't exist. One whose topic was deleted is deleted as well."""
        request = pb["GetSubscriptionRequest"](subscription=path)
        try:
            found = self._client.persist("GetSubscription", request, path)
        except NotFound:
            return None
        if found.topic == _DELETED_TOPIC:
            # It can never receive a message again; a new one needs its name.
            self.delete_subscription(path)
            return None
        self.note_push(path, found.push_config.push_endpoint)
        return found

    def note_push(self, path: str, endpoint: str) -> None:
        """Note the endpoint that the subscription is pushed to; empty: it is pulled."""
        if endpoint:
            self.pushed[path] = endpoint
        else:
            self.pushed.pop(path, None)

    def delete_subscription(self, path: str) -> None:
        request = pb["DeleteSubscriptionRequest"](subscription=path)
        with ignoring_missing():
            self._client.persist("DeleteSubscription", request, path)

    def delete_topic(self, path: str) -> None:
        with ignoring_missing():
            self._client.persist("DeleteTopic", pb["DeleteTopicRequest"](topic=path), path)

    def subscriptions(self) -> Iterator[Any]:
        """The project's subscriptions with this connection's prefix."""
        return self._listed("Subscriptions")

    def topics(self) -> Iterator[Any]:
        """The project's topics with this connection's prefix."""
        return self._listed("Topics")

    def _listed(self, kind: str) -> Iterator[Any]:
        project = f"projects/{self._options.project}"
        ours = f"{project}/{kind.lower()}/{self._options.prefix}"
        token = ""
        while True:
            request = pb[f"List{kind}Request"](project=project, page_size=_PAGE, page_token=token)
            page = self._client.persist(f"List{kind}", request, project)
            for found in getattr(page, kind.lower()):
                if found.name.startswith(ours):
                    yield found
            token = page.next_page_token
            if not token:
                return

    # --- signs --------------------------------------------------------------------------------

    def sign(self, path: str, labels: dict[str, str], expiration: int = 0) -> None:
        """Create a sign unless it exists. It expires after ``expiration`` unused seconds; 0: never."""
        wanted = pb["Subscription"](
            name=path,
            topic=self.signs_topic,
            labels={**self._options.labels, **labels},
            expiration_policy=pb["ExpirationPolicy"](),
        )
        if expiration:
            wanted.expiration_policy.ttl.seconds = expiration
            wanted.message_retention_duration.seconds = expiration
        try:
            self.create_subscription(wanted)
        except NotFound:
            self.create_topic(wanted.topic, {})
            self.create_subscription(wanted)

    def touch(self, path: str) -> None:
        """Use a sign, so that it doesn't expire. Raises NotFound."""
        request = pb["PullRequest"](subscription=path, max_messages=1, return_immediately=True)
        self._client.call("Pull", request, path)

    def ping(self) -> None:
        """A call that proves that Pub/Sub answers.

        Not an admin call: a project has 6,000 of those a minute, and probes ask often.
        """
        sign = f"{self.signs_topic.replace('/topics/', '/subscriptions/')}.ping"
        try:
            self.touch(sign)
        except NotFound:
            self.sign(sign, {})

    def signs(self) -> Iterator[str]:
        """Paths of all signs."""
        token = ""
        while True:
            request = pb["ListTopicSubscriptionsRequest"](
                topic=self.signs_topic, page_size=_PAGE, page_token=token
            )
            look = partial(
                self._client.persist, "ListTopicSubscriptions", request, self.signs_topic
            )
            try:
                page = look()
            except NotFound:
                if self.create_topic(self.signs_topic, {}):  # there never was one
                    return
                page = look()  # another connection's first sign: its topic was too new to be found
            yield from page.subscriptions
            token = page.next_page_token
            if not token:
                return


def made_though_deleted(make: Callable[[], _T]) -> _T:
    """Call ``make`` and return its result; call it again while other processes delete a part (NotFound).

    A deleted name can't be used again for some seconds; ``make``'s own calls wait for that.
    """
    pauses = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
    for _ in range(_TRIES - 1):
        try:
            return make()
        except NotFound:
            time.sleep(pauses.next())
    return make()
