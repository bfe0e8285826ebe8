"""A plain job is Celery's message once it has arrived, or the reason why it can't be one."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import pytest
from celery.exceptions import Retry
from hypothesis import given
from hypothesis import strategies as st

from gwi_celery import ReliableTask
from gwi_celery.brokers.base import Delivery
from gwi_celery.errors import MalformedMessage
from gwi_celery.transport import envelope, jobformat
from tests.apps import fresh_app

JOB: dict[str, Any] = {
    "id": "job-1",
    "type": "shop.invoice",
    "tenantId": "acme",
    "runId": "r1",
    "payload": {"order": 7, "lines": [{"sku": "ü"}]},
}


def delivery(data: bytes, **attributes: str) -> Delivery:
    return Delivery("jobs", "ack-1", "m-1", data, attributes, 1, 0.0, 0, 10.0)


def decoded(**changes: Any) -> dict[str, Any]:
    return envelope.decode(delivery(json.dumps({**JOB, **changes}).encode()))


def test_a_plain_job_arrives_as_a_celery_message() -> None:
    message = decoded()
    assert json.loads(message["body"])[:2] == [[], JOB["payload"]]
    headers = message["headers"]
    assert (headers["task"], headers["id"], headers["retries"]) == ("shop.invoice", "job-1", 0)
    assert (headers["gwi_tenant"], headers["gwi_run"]) == ("acme", "r1")
    assert not {"gwi_deadline", "gwi_max_retries"} & headers.keys()
    properties = message["properties"]
    assert properties["correlation_id"] == "job-1"
    assert properties["delivery_info"] == {
        "exchange": "",
        "routing_key": "jobs",
        "redelivered": False,
    }
    assert properties["priority"] == 0
    assert properties["delivery_tag"] == "ack-1"
    assert message["content-type"] == "application/json"


def test_metadata_become_retries_priority_and_a_deadline() -> None:
    message = decoded(
        metadata={"maxRetries": 5, "retryCount": 2, "priority": 99, "deadline": 1_800_000_000_500}
    )
    headers = message["headers"]
    assert (headers["retries"], headers["gwi_max_retries"]) == (2, 5)
    assert headers["gwi_deadline"] == 1_800_000_000.5
    assert message["properties"]["priority"] == 9


@pytest.mark.parametrize(
    "text", ["2027-01-15T08:00:00Z", "2027-01-15T08:00:00.000Z", "2027-01-15T09:00:00+01:00"]
)
def test_a_deadline_may_be_an_iso_time(text: str) -> None:
    expected = datetime(2027, 1, 15, 8, tzinfo=timezone.utc).timestamp()
    assert decoded(metadata={"deadline": text})["headers"]["gwi_deadline"] == expected


def test_what_is_optional_may_be_missing_or_null() -> None:
    bare = {"id": "x", "type": "t"}
    for job in (bare, {**bare, "payload": None, "tenantId": None, "metadata": None}):
        message = envelope.decode(delivery(json.dumps(job).encode()))
        assert json.loads(message["body"])[:2] == [[], {}]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": None}, "'id' is missing"),
        ({"id": 5}, "'id' is 5: send a text"),
        ({"id": " "}, "'id' is empty"),
        ({"type": ""}, "'type' is empty"),
        ({"type": ["a"]}, "'type' is of type list"),
        ({"tenantId": 5}, "'tenantId' is 5"),
        ({"runId": ""}, "'runId' is empty"),
        ({"payload": [1]}, "'payload' is of type list: send an object"),
        ({"payload": "secret"}, "'payload' is an unusable text"),
        ({"metadata": 1}, "'metadata' is 1: send an object"),
        ({"metadata": {"retryCount": -1}}, "retryCount is -1: send a whole number"),
        ({"metadata": {"retryCount": True}}, "retryCount is True"),
        ({"metadata": {"maxRetries": 1.5}}, "maxRetries is 1.5"),
        ({"metadata": {"maxRetries": 10**9}}, "from 0 to 1000"),
        ({"metadata": {"priority": "high"}}, "priority is an unusable text"),
        ({"metadata": {"deadline": "soon"}}, "deadline is an unusable text"),
        ({"metadata": {"deadline": "2027-01-15T08:00:00"}}, "with its zone"),
        ({"metadata": {"deadline": 1e999}}, "deadline is inf"),
        ({"metadata": {"deadline": True}}, "deadline is True"),
    ],
)
def test_an_invalid_job_says_which_field_and_never_its_content(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(MalformedMessage) as caught:
        decoded(**changes)
    assert reason in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b"{",
        b"[" * 100_000,
        b'"a"',
        b"{}",
        b'{"__type__": "datetime", "__value__": 5}',
        b'{"__type__": ["x"], "__value__": 5}',
        b'{"__type__": "uuid", "__value__": 5}',
        b'{"__type__": "decimal", "__value__": "x"}',
    ],
)
def test_anything_else_is_malformed_and_nothing_worse(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        envelope.decode(delivery(data))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["id", "type", "tenantId", "runId", "payload", "metadata", "other"]),
        _json
        | st.dictionaries(
            st.sampled_from(["maxRetries", "retryCount", "priority", "deadline"]), _json
        ),
    )
)
def test_any_json_is_a_message_or_malformed(job: dict[str, Any]) -> None:
    try:
        message = envelope.decode(delivery(json.dumps(job).encode()))
    except MalformedMessage:
        return
    assert jobformat.is_job(job)
    assert message["headers"]["task"] == job["type"]


# --- and in the task ------------------------------------------------------------------------------


def test_the_publishers_limit_of_retries_goes_before_the_tasks() -> None:
    app = fresh_app()

    @app.task(shared=False, base=ReliableTask, bind=True, name="t", max_retries=9)
    def t(self: Any, *, tenant_id: str) -> None:
        raise self.retry(exc=RuntimeError("again"), countdown=0)

    def run(retries: int) -> None:
        t.push_request(
            id="x",
            retries=retries,
            called_directly=False,
            is_eager=True,
            args=[],
            kwargs={},
            headers={"gwi_max_retries": 2, "gwi_tenant": "acme"},
            delivery_info={},
        )
        try:
            t.retry(exc=RuntimeError("again"), countdown=0, throw=True)
        finally:
            t.pop_request()

    app.conf.task_always_eager = True
    with pytest.raises((Retry, RuntimeError)):
        run(1)
    with pytest.raises(RuntimeError, match="again"):
        run(2)
    assert not hasattr(t, "override_max_retries"), "nothing is left for other jobs to find"
    app.close()
