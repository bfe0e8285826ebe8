"""What a message may ask for, by who published it: each right is closed by default but to the app."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, chain, chord, group

from gwi_celery import ReliableTask, broker_for, setup
from gwi_celery.authority import SIGNATURE
from gwi_celery.brokers.base import Delivery, OutgoingMessage, QueueSize
from gwi_celery.errors import ConfigurationError, NotAllowed
from gwi_celery.integration import integration
from gwi_celery.signing import MESSAGE, Keys
from gwi_celery.transport import envelope, handover
from gwi_celery.worker.consumer import why_malformed
from gwi_celery.worker.policy import Policy
from tests.apps import fresh_app
from tests.machine import PATIENCE
from tests.threadworker import worker_in_thread
from tests.workers import dead_letters, drained, eventually

SECRET = {"k1": "s" * 32}
CALL = {"task": "other", "args": [], "kwargs": {}, "options": {}, "subtask_type": None}
RELIABLE = {**CALL, "task": "pay"}


def make(**settings: Any) -> Celery:
    app = fresh_app(**settings)

    @app.task(shared=False, name="add")
    def add(*numbers: Any) -> int:
        return sum(n if isinstance(n, int) else sum(n) for n in numbers)

    @app.task(shared=False, name="other")
    def other(*args: Any) -> str:
        return "other"

    @app.task(shared=False, base=ReliableTask, name="pay")
    def pay(*, tenant_id: str) -> str:
        return "paid"

    @app.task(shared=False, bind=True, name="again", max_retries=1)
    def again(self: Any) -> int:
        if not self.request.retries:
            raise self.retry(countdown=0)
        return int(self.request.retries)

    app.finalize()
    return app


def job(task: str, /, **payload: Any) -> dict[str, Any]:
    return {"id": str(uuid4()), "type": task, "tenantId": "t", "payload": payload}


def message(
    task: str,
    /,
    *args: Any,
    embed: dict[str, Any] | None = None,
    headers: dict[str, Any] | None = None,
    info: dict[str, Any] | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    return {
        "body": json.dumps([args, kwargs, embed or {}]),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": task, "id": str(uuid4()), **(headers or {})},
        "properties": {"delivery_info": info} if info else {},
    }


def marked(raw: dict[str, Any]) -> dict[str, str]:
    return {"task": raw["headers"]["task"], "task_id": raw["headers"]["id"]}


def judged(
    app: Celery,
    raw: dict[str, Any],
    attributes: dict[str, str] | None = None,
    queue: str = "celery",
) -> tuple[Any, str | None]:
    """The message as a worker takes it, and why it is refused."""
    data = json.dumps(raw).encode()
    delivery = Delivery(queue, "a", "m", data, attributes or {}, 1, 0.0, 0, 30.0)
    channel = SimpleNamespace(
        authority=integration(app).authority,
        decode_body=lambda body, encoding=None: body,
        no_ack_consumers=None,
    )
    taken = handover.decode(delivery, channel)
    assert why_malformed(taken) is None
    return taken, Policy(app).refusal(taken, taken.payload)


@pytest.fixture(scope="module")
def app() -> Celery:
    return make()


FOREIGN = {
    "celery.group": lambda: job("celery.group", tasks=[CALL], result=[], group_id="g"),
    "celery.chord": lambda: job("celery.chord", header=[CALL], body=CALL),
    "celery.chunks": lambda: job("celery.chunks", task=CALL, it=[[1]], n=1),
    "celery.map": lambda: job("celery.map", task=RELIABLE, it=[1]),
    "celery.starmap": lambda: job("celery.starmap", task=RELIABLE, it=[[1]]),
    "celery.chord_unlock": lambda: job("celery.chord_unlock", group_id="g", interval=0),
    "celery.backend_cleanup": lambda: job("celery.backend_cleanup"),
    "a built-in by a message": lambda: message("celery.backend_cleanup"),
    "callbacks": lambda: message("add", embed={"callbacks": [CALL]}),
    "errbacks": lambda: message("add", embed={"errbacks": [CALL]}),
    "one callback": lambda: message("add", embed={"callbacks": CALL}),
    "chain": lambda: message("add", embed={"chain": [CALL]}),
    "chord": lambda: message("add", embed={"chord": CALL}),
    **{
        name: lambda name=name, value=value: message("pay", tenant_id="t", headers={name: value})
        for name, value in {
            "gwi_key": "another's",
            "gwi_holds": 5,
            "gwi_due": "2026-01-01T00:00:00",
            "gwi_payload": "x",
            "gwi_new": 1,
        }.items()
    },
}


@pytest.mark.parametrize("what", list(FOREIGN))
def test_a_foreign_publisher_has_no_right_to(app: Celery, what: str) -> None:
    refused = judged(app, FOREIGN[what]())[1]
    assert refused, what


def test_a_foreign_publisher_may_ask_for_the_apps_own_tasks(app: Celery) -> None:
    assert judged(app, job("pay"))[1] is None
    ours = {"gwi_tenant": "t", "gwi_run": "r", "gwi_deadline": 4e9, "gwi_max_retries": 2}
    raw = message("pay", headers={**ours, "timelimit": [1e9, 1e9]})
    raw["properties"]["reply_to"] = "anybody"
    taken, refused = judged(app, raw)
    assert refused is None
    assert taken.headers["timelimit"] == [None, None], "how long it may run is its task's to say"
    assert "reply_to" not in taken.properties


def test_the_apps_own_messages_may_more(app: Celery) -> None:
    for what in ("callbacks", "errbacks", "one callback", "chain", "chord", "gwi_key", "gwi_holds"):
        raw = FOREIGN[what]()
        assert judged(app, raw, marked(raw))[1] is None, what


@pytest.mark.parametrize(
    "raw",
    [
        message("celery.chord_unlock", "g", CALL, interval=0, result=[]),
        message("celery.starmap", task=RELIABLE, it=[[1]]),
        message("celery.map", RELIABLE, [1]),
        message("celery.chunks", task=RELIABLE, it=[[1]], n=1),
        message("celery.group", tasks=[{**CALL, "task": "no.such"}], result=[], group_id="g"),
        message("celery.group", [{**CALL, "options": {"queue": "new"}}], [], "g"),
        message("celery.chord", header=[CALL], body={**CALL, "task": "no.such"}),
    ],
    ids=lambda raw: raw["headers"]["task"],
)
def test_nobody_may_have_celerys_own_tasks_do_harm(app: Celery, raw: dict[str, Any]) -> None:
    assert judged(app, raw, marked(raw))[1]


@pytest.mark.parametrize(
    ("interval", "good"), [(1, True), (None, True), (0, False), (-5, False), ("x", False)]
)
def test_a_chord_that_is_looked_for_is_looked_for_slowly(interval: Any, good: bool) -> None:
    app = make()
    app.conf.result_backend = "cache+memory://"
    raw = message("celery.chord_unlock", "g", CALL, interval=interval, result=[])
    assert (judged(app, raw, marked(raw))[1] is None) is good


@pytest.mark.parametrize(
    "info",
    [
        {"exchange": "", "routing_key": "evil"},
        {"exchange": "evil", "routing_key": "celery"},
        {"exchange": None, "routing_key": None},
        {},
    ],
)
def test_copies_go_back_to_where_the_message_is_from(app: Celery, info: dict[str, Any]) -> None:
    taken = judged(app, message("again", info=info), queue="celery")[0]
    place = taken.delivery_info["exchange"], taken.delivery_info["routing_key"]
    assert place == ("", "celery")


def test_an_exchange_of_the_apps_own_stays(app: Celery) -> None:
    info = {"exchange": "celery", "routing_key": "any"}
    taken = judged(app, message("again", info=info))[0]
    assert taken.delivery_info["exchange"] == "celery"


def test_a_queue_may_have_rights_of_its_own() -> None:
    app = make(
        queue_rights={
            "inbox": {"tasks": ["ad*"], "formats": ["plain"]},
            "open": {"headers": ["gwi_key"], "exchanges": ["reports", "celery"]},
            "*": {"formats": "celery"},
        }
    )
    in_inbox = {"queue": "inbox"}
    assert judged(app, job("add"), **in_inbox)[1] is None
    assert "no right to the task" in str(judged(app, job("pay"), **in_inbox)[1])
    raw = message("add")
    assert "plain jobs only" in str(judged(app, raw, marked(raw), **in_inbox)[1])
    assert "no plain jobs" in str(judged(app, job("add"))[1])

    def to(queue: str, task: str = "other") -> dict[str, Any]:
        options = {"queue": queue} if queue else {}
        return message("add", embed={"callbacks": [{**CALL, "task": task, "options": options}]})

    for attributes in ({}, None):
        for queue, good in (("reports", True), ("", True), ("evil", False)):
            raw = to(queue)
            given = attributes if attributes is None else marked(raw)
            assert (judged(app, raw, given, "open")[1] is None) is good, (queue, attributes)
    assert judged(app, to("reports", "celery.group"), None, "open")[1], "built in, and foreign"
    nested = {
        **CALL,
        "options": {"queue": "reports", "link": [{**CALL, "options": {"queue": "x"}}]},
    }
    assert judged(app, message("add", embed={"callbacks": [nested]}), None, "open")[1]
    assert judged(app, message("pay", headers={"gwi_key": "k"}), None, "open")[1] is None
    assert judged(app, message("pay", headers={"gwi_run": "k"}), None, "open")[1]


@pytest.mark.parametrize(
    ("rights", "error"),
    [
        ({"q": {"task": ["x"]}}, "did you mean 'tasks'"),
        ({"q": {"formats": ["xml"]}}, "xml"),
        ({"q": ["x"]}, "takes a mapping"),
        ("[", "a mapping"),
        ({"q": {"signed": "perhaps"}}, "true or false"),
    ],
)
def test_wrong_rights_are_refused(rights: Any, error: str) -> None:
    with pytest.raises(ConfigurationError, match=error):
        make(queue_rights=rights)


# --- signed ---------------------------------------------------------------------------------------


def test_with_keys_only_what_is_signed_is_taken() -> None:
    app = make(signing_keys=SECRET, queue_rights={"inbox": {"signed": False}})
    authority = integration(app).authority
    raw = message("add", embed={"callbacks": [CALL]})
    data = json.dumps(raw).encode()
    good = authority.sign(data, "celery")
    assert good is not None
    assert judged(app, raw, {SIGNATURE: good})[1] is None
    plain = job("add")
    by_hand = Keys({"k1": SECRET["k1"].encode()}).sign(MESSAGE, json.dumps(plain).encode())
    assert judged(app, plain, {SIGNATURE: by_hand})[1] is None
    for attributes, error in (
        (marked(raw), "not signed"),
        ({SIGNATURE: good + "x"}, "signature is wrong"),
        ({SIGNATURE: by_hand}, "signature is wrong"),
        ({SIGNATURE: "k2:" + good[3:]}, "by a key that"),
        ({SIGNATURE: "store:" + good[3:]}, "signature is wrong"),
    ):
        with pytest.raises(NotAllowed, match=error):
            judged(app, raw, attributes)
    # Where that is allowed, who doesn't sign is foreign, whatever the message looks like.
    assert judged(app, job("add"), None, "inbox")[1] is None
    assert judged(app, raw, marked(raw), "inbox")[1]
    assert judged(app, raw, {SIGNATURE: good}, "inbox")[1] is None


def test_what_is_not_signed_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    app = make(signing_keys=SECRET)
    monkeypatch.setattr(envelope, "decode", lambda delivery: pytest.fail("it was parsed"))
    with pytest.raises(NotAllowed):
        judged(app, message("add"))


def test_a_broker_of_anothers_has_no_signatures() -> None:
    app = Celery("redis", set_as_current=False, broker="memory://")
    with pytest.raises(ConfigurationError, match="signing_keys and queue_rights"):
        setup(app, signing_keys=SECRET, store_url="embedded://:memory:/redis")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"signing_keys": SECRET},
        {"queue_rights": {"celery": {"formats": ["plain"]}}},
    ],
    ids=["as it is", "signed", "plain jobs only"],
)
def test_canvas_retries_and_plain_jobs_between_an_apps_own_workers(settings: Any) -> None:
    app = make(**settings)
    tasks = app.tasks
    broker = broker_for(app)
    with worker_in_thread(app):
        add = tasks["add"]
        assert chain(add.s(1, 2), add.s(3), group(add.s(1), add.s(2)))().get(timeout=PATIENCE) == [
            7,
            8,
        ]
        assert chord([add.s(1), add.s(2)], add.s())().get(timeout=PATIENCE) == 3
        assert add.starmap([(1, 2), (3, 4)]).delay().get(timeout=PATIENCE) == [3, 7]
        assert add.chunks([(1, 2), (3, 4)], 1).group().delay().get(timeout=PATIENCE) == [[3], [7]]
        assert tasks["pay"].delay(tenant_id="t").get(timeout=PATIENCE) == "paid"
        assert tasks["again"].delay().get(timeout=PATIENCE) == 1
        plain = {**job("again"), "id": uuid4().hex}
        data = json.dumps(plain).encode()
        keys = integration(app).authority.keys
        attributes = {SIGNATURE: keys.sign(MESSAGE, data)} if keys else {}
        broker.publish("", "celery", OutgoingMessage(data, attributes))
        assert app.AsyncResult(plain["id"]).get(timeout=PATIENCE) == 1, "its retry is of the worker"
        assert len(app.control.ping(timeout=PATIENCE, limit=1)) == 1, (
            "remote control is signed as well"
        )
        eventually(lambda: drained(broker), what="no message is left")
        assert not dead_letters(broker)

        broker.publish("", "celery", OutgoingMessage(json.dumps(message("add")).encode()))
        eventually(lambda: drained(broker), what="no message is left")
        refused = bool(dead_letters(broker))
        assert refused is bool(settings)


def test_an_eta_of_a_foreign_publisher_waits_in_the_broker_and_not_in_memory() -> None:
    app = make()
    broker = broker_for(app)
    with worker_in_thread(app):
        late, soon = (datetime.now(timezone.utc) + timedelta(seconds=n) for n in (3600, 1))
        ids = []
        for eta in (late.isoformat(), late.replace(tzinfo=None).isoformat(), soon.isoformat()):
            raw = message("other", headers={"eta": eta})
            ids.append(raw["headers"]["id"])
            broker.publish("", "celery", OutgoingMessage(json.dumps(raw).encode()))
        assert app.AsyncResult(ids[-1]).get(timeout=PATIENCE) == "other"
        eventually(lambda: broker.size("celery") == QueueSize(0, 2, 0), what="two wait")
        assert not dead_letters(broker)
