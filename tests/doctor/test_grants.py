"""What Pub/Sub's service agent may do, by the policies of a topic and of its project: on the twin."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

from gwi_celery.brokers.pubsub.client import Client, pb
from gwi_celery.brokers.pubsub.options import PubSubOptions, parse
from gwi_celery.doctor import Finding, grants
from gwi_celery.doctor.grants import AGENT, Grants
from gwi_celery.testing.twin import Twin, start_twin

ROLE = "roles/pubsub.publisher"
OURS = "service-1@gcp-sa-pubsub.iam.gserviceaccount.com"
OTHERS = "service-2@gcp-sa-pubsub.iam.gserviceaccount.com"


@pytest.fixture(scope="module")
def started() -> Iterator[Twin]:
    with start_twin(faults=0, settle=0) as twin:
        yield twin


@pytest.fixture
def twin(started: Twin) -> Twin:
    """The agent may do nothing by the topic's own policy."""
    started.reset()
    started.deny("pubsub.topics.publish", who="agent")
    return started


@pytest.fixture
def options(started: Twin) -> PubSubOptions:
    return parse(f"pubsub://{started.endpoint}/p-{uuid.uuid4().hex[:20]}?emulator=strict")


def _made(options: PubSubOptions, name: str) -> str:
    path = f"projects/{options.project}/topics/{name}"
    client = Client(options)
    client.call("CreateTopic", pb["Topic"](name=path), path)
    client.close()
    return path


@pytest.fixture
def ask(twin: Twin, options: PubSubOptions) -> Callable[[], Finding]:
    topic = _made(options, "dead")

    def asked() -> Finding:
        with Grants(options) as each:
            return each.agents(topic, options.project, "it", ROLE, f"grant it to {AGENT}")

    return asked


def test_by_the_topic_itself(twin: Twin, ask: Callable[[], Finding]) -> None:
    twin.allow("pubsub.topics.publish", who="agent")
    found = ask()
    assert (found.holds, found.change) == (True, "")
    assert found.measured == f"{ROLE} of {OURS}, on the topic itself"


@pytest.mark.parametrize(
    ("role", "member"), [(ROLE, "agent"), ("roles/pubsub.editor", "agent"), (ROLE, "allUsers")]
)
def test_by_the_project(
    twin: Twin, options: PubSubOptions, ask: Callable[[], Finding], role: str, member: str
) -> None:
    twin.grant("roles/pubsub.serviceAgent")  # as each project has it
    twin.grant(role, member)
    found = ask()
    assert (found.holds, found.change) == (True, "")
    assert found.measured.endswith(f", on project {options.project}")


@pytest.mark.parametrize(
    ("role", "member", "condition", "told"),
    [
        ("roles/pubsub.serviceAgent", "agent", "", "not granted; a folder's"),
        ("roles/pubsub.subscriber", "agent", "", "not granted; a folder's"),
        (ROLE, "agent", "resource.name == 'x'", "only on the condition \"resource.name == 'x'\""),
        (ROLE, f"serviceAccount:{OTHERS}", "", f"another project's agent, {OTHERS}"),
        (ROLE, f"deleted:serviceAccount:{OURS}?uid=1", "", "not granted; a folder's"),
        (
            "roles/editor",
            "group:x@y.example",
            "",
            "group:x@y.example, whose members were not looked",
        ),
        (
            "projects/p/roles/own",
            "agent",
            "",
            "own, of which it is unknown whether it has pubsub.top",
        ),
    ],
)
def test_not_as_far_as_is_known(
    twin: Twin, ask: Callable[[], Finding], role: str, member: str, condition: str, told: str
) -> None:
    twin.grant(role, member, condition)
    found = ask()
    assert found.holds is None
    assert found.measured.startswith("the topic itself: not granted; project p-")
    assert told in found.measured
    assert found.measured.endswith(
        "a folder's and the organization's, which count as well: not asked"
    )
    assert found.change == f"grant it to {OURS}"


def test_what_the_caller_may_not_read_is_told_with_the_permission(
    twin: Twin, ask: Callable[[], Finding]
) -> None:
    twin.grant(ROLE)
    twin.deny("resourcemanager.projects.get")
    found = ask()
    assert found.holds is None
    assert "without resourcemanager.projects.get" in found.measured
    assert "--format='value(projectNumber)'" in found.change
    twin.deny("resourcemanager.projects.getIamPolicy")
    twin.deny("pubsub.topics.getIamPolicy")
    found = ask()
    assert found.holds is None
    itself, project, _ = found.measured.split("; ")
    needs = "not read, for which this account needs {} (roles/iam.securityReviewer has it)"
    assert itself == f"the topic itself: {needs.format('pubsub.topics.getIamPolicy')}"
    assert project.endswith(needs.format("resourcemanager.projects.getIamPolicy"))
    assert found.change == f"grant it to {AGENT}"


def test_each_policy_is_read_once(twin: Twin, options: PubSubOptions) -> None:
    topics = [_made(options, f"dead{n}") for n in range(3)]
    with Grants(options) as each:
        for topic in topics:
            each.agents(topic, options.project, "it", ROLE, "")
    rpcs = twin.cost()["rpcs"]
    assert rpcs["GetIamPolicy"] == 3
    assert (rpcs["Projects.GetIamPolicy"], rpcs["Projects.GetProject"]) == (1, 1)


def test_google_is_asked_for_a_project_of_google_only(
    monkeypatch: pytest.MonkeyPatch, options: PubSubOptions
) -> None:
    monkeypatch.setenv("GOOGLE_CLOUD_UNIVERSE_DOMAIN", "example.goog")
    asked: list[str] = []

    def connected(endpoint: str, scopes: tuple[str, ...], *, emulator: bool) -> None:
        asked.append(endpoint)
        raise ConnectionError

    monkeypatch.setattr(grants, "connected", connected)
    for each in (options, parse("pubsub://p", environ={})):
        with Grants(each) as opened, pytest.raises(ConnectionError):
            opened._resource_manager()
    assert asked == [options.endpoint, "cloudresourcemanager.example.goog:443"]
