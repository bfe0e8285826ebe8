"""A call that every worker would refuse, or that would do something else, is refused at once."""

from __future__ import annotations

import math
import sys
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery, chain, chord, group

from gwi_celery import ReliableTask, broker_for, store_for
from gwi_celery.errors import InvalidCall, NotSerializable
from gwi_celery.stores.base import JobRef, JobStatus
from gwi_celery.transport import envelope
from gwi_celery.worker.consumer import why_malformed
from tests.apps import fresh_app
from tests.machine import PATIENCE
from tests.threadworker import worker_in_thread

TENANT = {"tenant_id": "acme"}
NOW = datetime.now(timezone.utc)


@pytest.fixture
def app() -> Iterator[Celery]:
    app = fresh_app()

    @app.task(shared=False, base=ReliableTask, name="t")
    def t(*given: Any, tenant_id: str, x: Any = None) -> None: ...

    @app.task(shared=False, base=ReliableTask, bind=True, name="retrying")
    def retrying(self: Any, *, tenant_id: str, retry: dict[str, Any]) -> None:
        raise self.retry(**{k: float(v) if k == "countdown" else v for k, v in retry.items()})

    @app.task(shared=False, name="plain")
    def plain(**kwargs: Any) -> None: ...

    app.finalize()
    yield app
    app.close()


def sent(app: Celery) -> int:
    """Messages of its queue, those that wait for their time too."""
    broker = broker_for(app)
    return len(broker.peek("celery", 1000)) if broker.has_queue("celery") else 0


REFUSED: list[dict[str, Any]] = [
    *({"countdown": c} for c in ("5", math.nan, math.inf, 1e12, -1e12, 10**400, True, [], 7e9)),
    *({"eta": e} for e in ("tomorrow", "", 5.0, 0, datetime(9999, 12, 31), datetime(1, 1, 1))),
    *({"expires": e} for e in ("soon", math.nan, 1e12, [], True, datetime(9999, 12, 31))),
    *({"priority": p} for p in ("high", 2**40, 1.5)),
    *({"time_limit": s} for s in ("5", -1, math.nan)),
    *({"soft_time_limit": s} for s in ("5", -1)),
    *({"retries": r} for r in ("x", -1, 10**9)),
    *({"task_id": i} for i in (5, uuid.uuid4(), "  ", "\ud800")),
    *({"link": c} for c in ("plain", 5, [{"task": 5}])),
    *({"link_error": "plain"}, {"shadow": 5}, {"reply_to": 5}, {"ignore_result": "no"}),
    *(
        {"headers": {"eta": "x"}},
        {"headers": {"retries": "many"}},
        {"headers": {"get": 5}},
        {"compression": "nope"},
    ),
]
TAKEN: list[dict[str, Any]] = [
    *({"countdown": c} for c in (0, -5, 0.5, 10**9)),
    *({"eta": e} for e in (NOW, NOW - timedelta(days=9), NOW + timedelta(days=36_500))),
    *({"eta": e} for e in (NOW.replace(tzinfo=None), NOW.date(), "2026-11-27T00:00:00Z", None)),
    *({"expires": e} for e in (60, -1, NOW, "2099-01-01T00:00:00Z")),
    *({"priority": p} for p in (-1, 300)),
    *({"time_limit": 5}, {"ignore_result": True}, {"compression": "gzip"}, {"retries": 3}),
    *({"serializer": "json"}, {"message_id": "m"}, {"my_router": "x"}, {"headers": {"a": 1}}),
]


def test_what_every_worker_would_refuse_is_not_sent(app: Celery) -> None:
    for options in REFUSED:
        for call in (
            lambda options=options: app.tasks["t"].apply_async(kwargs=TENANT, **options),
            lambda options=options: app.tasks["plain"].apply_async(**options),
            lambda options=options: app.send_task("elsewhere", **options),
            lambda options=options: app.tasks["t"].s(**TENANT).set(**options).apply_async(),
        ):
            name = next(iter(options.get("headers", options)))
            with pytest.raises(InvalidCall, match=rf"{name}\b"):
                call()
    assert not sent(app)


def test_what_a_worker_takes_is_sent(app: Celery) -> None:
    for options in TAKEN:
        app.tasks["t"].apply_async(kwargs=TENANT, **options)
        app.tasks["plain"].apply_async(**options)
        app.send_task("elsewhere", **options)
    assert sent(app) == 3 * len(TAKEN)


def test_canvases_are_sent_as_they_were(app: Celery) -> None:
    one, plain = app.tasks["t"].s(**TENANT), app.tasks["plain"].s()
    stamped = one.clone()
    stamped.stamp(coutdown="a stamp may be called anything")
    for canvas in (
        stamped,
        one.clone().set(link=[plain, plain], link_error=plain),
        chain(one.clone(), one.clone(), app=app),
        chain(one.clone(), group([one.clone(), one.clone()], app=app), app=app),
        group([one.clone(), chain(one.clone(), plain.clone(), app=app)], app=app),
        chord([one.clone(), one.clone()], chain(one.clone(), one.clone(), app=app)),
    ):
        canvas.apply_async()
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        messages = list(iter(lambda: channel.basic_get("celery"), None))
    assert len(messages) == 8
    assert [why_malformed(message) for message in messages] == [None] * 8


def test_protocol_1_is_checked_as_well(app: Celery) -> None:
    app.conf.task_protocol = 1
    with pytest.raises(InvalidCall, match="retries"):
        app.tasks["plain"].apply_async(retries="x")
    with pytest.raises(InvalidCall, match="link"):
        app.tasks["plain"].apply_async(link="plain")
    app.tasks["plain"].apply_async(countdown=5)
    assert sent(app) == 1


def test_a_reliable_task_refuses_what_would_break_its_promise_or_do_nothing(app: Celery) -> None:
    for options, said in (
        ({"serializer": "pickle"}, "JSON"),
        ({"coutdown": 5}, "'countdown'"),
        ({"idempotencykey": "k"}, "'idempotency_key'"),
        ({"deadlin": 5}, "'deadline'"),
    ):
        for call in (
            lambda options=options: app.tasks["t"].apply_async(kwargs=TENANT, **options),
            lambda options=options: app.send_task("t", kwargs=TENANT, **options),
        ):
            with pytest.raises(InvalidCall, match=said):
                call()
    assert not sent(app)


def test_a_number_of_too_many_digits_is_an_argument_without_a_json_form(app: Celery) -> None:
    huge = 10 ** (sys.get_int_max_str_digits() + 1)
    with pytest.raises(NotSerializable, match="argument 'x'"):
        app.tasks["t"].delay(**TENANT, x=huge)
    assert sent(app) == 0


def test_how_deep_a_compressed_call_is_nested_is_known(app: Celery) -> None:
    deep: Any = 5
    for _ in range(250):
        deep = [deep]
    for compression in (None, "gzip", "bzip2", "lzma"):
        with pytest.raises(NotSerializable, match="200 levels"):
            app.tasks["plain"].apply_async(kwargs={"x": deep}, compression=compression)
    # Bytes of another codec's that would be taken for brackets.
    body = b"\xff" + b"[" * 300
    headers = {"task": "t", "id": "1", "compression": "other"}
    parts = {"content-type": "application/json", "content-encoding": "utf-8", "properties": {}}
    data, _ = envelope.encode({"body": body, "headers": headers, **parts})
    assert b'"other"' in data


def test_a_retry_that_can_never_be_sent_fails_its_job(app: Celery) -> None:
    retries = [{"countdown": "1e12"}, {"eta": "tomorrow"}, {"priority": "x"}]
    results = [app.tasks["retrying"].delay(**TENANT, retry=retry) for retry in retries]
    with worker_in_thread(app):
        for result in results:
            with pytest.raises(InvalidCall):
                result.get(timeout=PATIENCE)
    for result in results:
        record = store_for(app).get_job(JobRef("acme", "retrying", f"task:{result.id}"))
        assert record.status is JobStatus.FAILED
        assert record.attempt == 1
