"""``Reliable(limits=[...])`` in a worker of this process: what waits, and what that costs it."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, states
from celery.result import allow_join_result

from gwi_celery import Limit, Reliable, ReliableTask, broker_for, jobs, limits, store_for
from gwi_celery.brokers.base import OutgoingMessage
from gwi_celery.errors import ConfigurationError, InvalidCall, NotFound
from gwi_celery.jobs import JobStatus
from tests.apps import fresh_app
from tests.machine import PATIENCE
from tests.threadworker import worker_in_thread
from tests.workers import dead_letters, drained, eventually


@dataclass
class Bench:
    app: Celery
    crawl: Any = None
    go_on: threading.Event = field(default_factory=threading.Event)
    #: (run, the request's retries, priority, and headers) of each start.
    began: list[tuple[str, int, Any, dict[str, Any]]] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    most: int = 0
    tenant: str = ""

    def call(self, run: str, **options: Any) -> Any:
        return self.crawl.apply_async(
            kwargs={"tenant_id": self.tenant, "run_id": run, "site": f"s-{self.tenant}"}, **options
        )

    def runs(self) -> list[str]:
        return [run for run, *_ in self.began]

    def waits(self, result: Any) -> jobs.JobRecord:
        def waiting() -> bool:
            found = jobs.get(result, app=self.app)
            return found is not None and found.record.status is JobStatus.WAITING

        eventually(waiting, what="the job waits")
        found = jobs.get(result, app=self.app)
        assert found is not None
        return found.record


@pytest.fixture(scope="module")
def working() -> Iterator[Bench]:
    app = fresh_app(contention_delay=0.05, max_contention_delay=0.2)
    bench = Bench(app)
    of_site = [Limit("{tenant_id} {site}", max_running=2), Limit("{tenant_id}", rate="100/m")]

    @app.task(
        shared=False,
        base=ReliableTask,
        bind=True,
        name="crawl",
        max_retries=3,
        reliable=Reliable(limits=of_site),
    )
    def crawl(self: Any, *, tenant_id: str, run_id: str, site: str = "") -> str:
        request = self.request
        priority = (request.delivery_info or {}).get("priority")
        bench.began.append((run_id, request.retries, priority, dict(request.headers or {})))
        bench.running.add(run_id)
        bench.most = max(bench.most, len(bench.running))
        try:
            while not bench.go_on.wait(0.01):
                self.check()
        finally:
            bench.running.discard(run_id)
        return run_id

    bench.crawl = crawl
    with worker_in_thread(app, pool="threads", concurrency=6):
        yield bench


@pytest.fixture
def bench(working: Bench) -> Iterator[Bench]:
    working.tenant = uuid4().hex[:8]
    working.began.clear()
    working.most = 0
    working.go_on.clear()
    yield working
    working.go_on.set()
    eventually(lambda: drained(broker_for(working.app)), what="no message is left")


def two_that_run(bench: Bench) -> list[Any]:
    results = [bench.call(f"r{n}") for n in range(2)]
    eventually(lambda: len(bench.running) == 2, what="both run")
    return results


def test_over_the_limit_a_job_waits_at_no_cost(bench: Bench) -> None:
    results = two_that_run(bench)
    late = [bench.call(f"late{n}") for n in range(4)]
    record = bench.waits(late[0])
    assert record.waits is not None
    assert (record.waits.kind, record.waits.what) == ("limit", f"{bench.tenant} s-{bench.tenant}")
    assert late[0].state == states.PENDING
    told = jobs.explain(late[0], app=bench.app)
    assert told.startswith(
        f"waits for a place of limit {bench.tenant} s-{bench.tenant}, 2 of 2 held"
    )
    assert "; now by " in told
    assert "(job run:r0 of crawl)" in told
    bench.go_on.set()
    assert [r.get(timeout=PATIENCE) for r in (*results, *late)] == [
        *("r0", "r1", "late0", "late1", "late2", "late3")
    ]
    assert bench.most == 2
    for result in late:
        found = jobs.get(result, app=bench.app)
        assert found is not None
        assert (found.record.attempt, found.record.crashes) == (1, 0)
        assert len(found.record.attempts) == 1


def test_what_has_free_places_again_says_so(bench: Bench) -> None:
    two_that_run(bench)
    late = bench.call("late")
    record = bench.waits(late)
    for name in ("r0", "r1"):
        ref = jobs.JobRef(bench.tenant, "crawl", f"run:{name}")
        jobs.cancel(ref, "enough", app=bench.app)
    assert record.waits is not None
    eventually(lambda: "late" in bench.running, what="the one that waited runs")
    assert jobs.explain(late, app=bench.app).startswith("runs on ")


def test_a_job_whose_deadline_passes_while_it_waits_ends_as_any_other(bench: Bench) -> None:
    two_that_run(bench)
    late = bench.call("late", deadline=0.6)
    bench.waits(late)
    with pytest.raises(Exception, match="deadline") as raised:
        late.get(timeout=PATIENCE)
    assert type(raised.value).__name__ == "DeadlineExceeded"
    assert bench.running == {"r0", "r1"}, "it began nothing, and the others go on"
    found = jobs.get(late, app=bench.app)
    assert found is not None
    assert found.record.status is JobStatus.FAILED
    eventually(lambda: len(dead_letters(broker_for(bench.app))) == 1, what="it is a dead letter")
    broker_for(bench.app).purge("celery.dead")


def test_a_plain_job_keeps_its_metadata_while_it_waits(bench: Bench) -> None:
    two_that_run(bench)
    deadline = time.time() + 600
    job = {
        "id": f"plain-{bench.tenant}",
        "type": "crawl",
        "tenantId": bench.tenant,
        "runId": "plain",
        "payload": {"site": f"s-{bench.tenant}"},
        "metadata": {"maxRetries": 2, "retryCount": 1, "priority": 4, "deadline": deadline * 1000},
    }
    broker_for(bench.app).publish("", "celery", OutgoingMessage(json.dumps(job).encode(), {}, 4))
    result = bench.app.AsyncResult(job["id"])
    bench.waits(result)
    eventually(lambda: _holds(bench) >= 2, what="it has waited more than once")
    bench.go_on.set()
    assert result.get(timeout=PATIENCE) == "plain"
    [(_, retries, priority, headers)] = [each for each in bench.began if each[0] == "plain"]
    assert (retries, priority, headers["gwi_max_retries"]) == (1, 4, 2)
    assert headers["gwi_deadline"] == pytest.approx(deadline, abs=0.01)


def _holds(bench: Bench) -> int:
    found = []
    for message in broker_for(bench.app).browse("celery"):
        headers = json.loads(message.data)["headers"] if b'"headers"' in message.data else {}
        found.append(int(headers.get("gwi_holds") or 0))
    return max(found, default=0)


def test_a_rate_holds_across_attempts_and_tells_when_to_come_back(bench: Bench) -> None:
    bench.go_on.set()
    limits.set("{tenant_id}", rate="2/2s", of={"tenant_id": bench.tenant}, app=bench.app)
    began = time.monotonic()
    results = [bench.call(f"r{n}") for n in range(4)]
    assert {result.get(timeout=PATIENCE) for result in results} == {f"r{n}" for n in range(4)}
    assert time.monotonic() - began >= 2
    assert limits.clear("{tenant_id}", of={"tenant_id": bench.tenant}, app=bench.app) == 1


def test_who_holds_what_and_changing_it(bench: Bench) -> None:
    two_that_run(bench)
    states_ = {(s.name, s.of.get("tenant_id")): s for s in limits.find(app=bench.app)}
    coded = states_["{tenant_id} {site}", None]
    assert (coded.max_running, coded.set_by, coded.tasks) == (2, "", ["crawl"])
    state = states_["{tenant_id} {site}", bench.tenant]
    assert sorted(place.job.key for place in state.held) == ["run:r0", "run:r1"]
    assert states_["{tenant_id}", bench.tenant].rate == "100/m"
    late = bench.call("late")
    bench.waits(late)
    limits.set("{tenant_id} {site}", max_running=3, app=bench.app)
    eventually(lambda: len(bench.running) == 3, what="there is room for one more")
    assert limits.clear("{tenant_id} {site}", app=bench.app) == 1
    assert limits.clear("{tenant_id} {site}", app=bench.app) == 0
    trail = [(entry.what, entry.target) for entry in store_for(bench.app).list_actions(limit=2)]
    assert trail == [("clear limit", "{tenant_id} {site}"), ("set limit", "{tenant_id} {site}")]


@pytest.mark.parametrize(
    ("name", "given", "of", "says"),
    [
        ("{tenant}", {"rate": "1/m"}, None, "did you mean '{tenant_id}'"),
        ("{tenant_id}", {"max_running": 1}, None, "no task of this app has"),
        ("{tenant_id}", {"rate": "1/m"}, {"run_id": "x"}, "is filled with tenant_id"),
        ("{tenant_id}", {"rate": "1/m", "max_running": 1}, None, "either"),
        ("{tenant_id}", {}, None, "either"),
        ("{tenant_id}", {"rate": "many"}, None, "can't be read"),
    ],
)
def test_what_no_limit_can_be_set_to(
    working: Bench, name: str, given: dict[str, Any], of: Any, says: str
) -> None:
    with pytest.raises(InvalidCall, match=says):
        limits.set(name, of=of, app=working.app, **given)
    assert limits.changed(app=working.app) == []


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Limit("a"), "give either max_running"),
        (lambda: Limit("a", max_running=1, rate="1/m"), "give either max_running"),
        (lambda: Limit("a", max_running=0), "from 1 to"),
        (lambda: Limit("a", max_running=True), "from 1 to"),
        (lambda: Limit("a", max_running="3"), "from 1 to"),  # type: ignore[arg-type]
        (lambda: Limit("a", rate="500"), "500/m"),
        (lambda: Limit("a", rate="0/m"), "500/m"),
        (lambda: Limit("a", rate="5/fortnight"), "500/m"),
        (lambda: Limit("a", rate="5/0s"), "500/m"),
        (lambda: Limit("a", rate=f"{'9' * 5000}/s"), "500/m"),
        (lambda: Limit("a", rate=500), "500/m"),  # type: ignore[arg-type]
        (lambda: Limit("", max_running=1), "a name"),
        (lambda: Limit("{", max_running=1), "Limit"),
        (lambda: Limit("{}", max_running=1), "between braces"),
        (lambda: Limit("{0}", max_running=1), "between braces"),
        (lambda: Limit("{a.b}", max_running=1), "between braces"),
        (lambda: Limit("{a[b]}", max_running=1), "between braces"),
        (lambda: Limit("{a!r}", max_running=1), "between braces"),
        (lambda: Limit("{a:>9}", max_running=1), "between braces"),
        (lambda: Reliable(limits=Limit("a", max_running=1)), "use a list"),  # type: ignore[arg-type]
        (lambda: Reliable(limits=["a"]), "use a list"),  # type: ignore[list-item]
        (lambda: Reliable(limits=[Limit("a", max_running=n) for n in (1, 2)]), "twice"),
    ],
)
def test_what_can_be_no_limit_is_refused_where_it_is_written(
    make: Callable[[], object], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        make()


@pytest.mark.parametrize("rate", ["500/m", "10/s", "5/10s", "1000 per day", "3/hours", "1/min"])
def test_rates_as_people_write_them(rate: str) -> None:
    Limit("a", rate=rate)


def test_a_name_that_no_call_can_fill_is_refused_at_the_declaration() -> None:
    app = fresh_app()
    with pytest.raises(ConfigurationError, match="did you mean 'site'"):

        @app.task(
            shared=False,
            base=ReliableTask,
            name="t",
            reliable=Reliable(limits=[Limit("{sit}", max_running=1)]),
        )
        def t(*, tenant_id: str, site: str) -> None: ...

        t.name  # noqa: B018 a task is bound when it is used first


def _of_model(arguments: Any) -> str:
    return str(arguments["model"])


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        (Limit("a", rate="60/m"), Limit("a", rate="1/s"), "rate='1/s', and in t.one rate='60/m'"),
        (
            Limit("{tenant_id}", max_running=3),
            Limit("{tenant_id}", max_running=5),
            "Limit('{tenant_id}') has max_running=5, and in t.one max_running=3",
        ),
        (Limit(_of_model, max_running=3), Limit(_of_model, max_running=5), "max_running=3"),
        (Limit("a", rate="60/m"), Limit("a", rate="60 per minute"), None),
        (Limit("a", max_running=3), Limit("a", rate="3/m"), None),
        (Limit("a", max_running=3), Limit("{a}", max_running=5), None),
    ],
)
def test_tasks_that_share_a_limit_give_it_one_number(
    one: Limit, other: Limit, says: str | None
) -> None:
    """Else it would be the number of whichever job asks."""
    app = fresh_app()

    def define(name: str, limit: Limit) -> Any:
        @app.task(shared=False, base=ReliableTask, name=name, reliable=Reliable(limits=[limit]))
        def task(*, tenant_id: str, model: str = "", a: str = "") -> None: ...

        return task

    define("t.one", one)
    defined = define("t.other", other)
    if says is None:
        app.finalize()
        return
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        app.finalize()
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        defined.delay(tenant_id="acme")
    assert "t.other" not in app.tasks


def test_two_functions_that_name_one_limit_agree_on_its_number() -> None:
    app = fresh_app()
    limits = [Limit(lambda arguments: "m", max_running=1), Limit(_of_model, max_running=2)]

    @app.task(shared=False, base=ReliableTask, name="t", reliable=Reliable(limits=limits))
    def t(*, tenant_id: str, model: str) -> None: ...

    assert len(t.resolve_call((), {"tenant_id": "a", "model": "n"}, {}, "id").limits) == 2
    with pytest.raises(InvalidCall, match="the name 'm' in this call, and different numbers"):
        t.delay(tenant_id="a", model="m")


@pytest.mark.parametrize(
    ("name", "call", "says"),
    [
        ("{run_id}", {}, "run_id"),
        ("{site}", {"site": None}, "must be a text"),
        ("{site}", {"site": "x" * 501}, "at most 500"),
        (lambda arguments: arguments["nothing"], {}, "nothing"),
        (lambda arguments: 7.5, {}, "must be a text"),
    ],
)
def test_a_call_that_fills_no_limit_is_refused(name: Any, call: dict[str, Any], says: str) -> None:
    app = fresh_app()

    @app.task(
        shared=False,
        base=ReliableTask,
        name="t",
        reliable=Reliable(limits=[Limit(name, max_running=1)]),
    )
    def t(*, tenant_id: str, site: Any = 7, run_id: str | None = None) -> None: ...

    with pytest.raises(InvalidCall, match=says):
        t.delay(tenant_id="acme", **call)
    with pytest.raises(NotFound):
        broker_for(app).size("celery")  # nothing was ever published


def test_what_a_name_is_filled_with() -> None:
    app = fresh_app()
    named = [
        Limit("{tenant_id}/{site}", max_running=1),
        Limit(lambda arguments: f"fn {arguments['site']}", rate="1/s"),
        Limit("{{braces}}", max_running=1),
    ]

    @app.task(shared=False, base=ReliableTask, name="t", reliable=Reliable(limits=named))
    def t(*, tenant_id: str, site: Any = 7) -> None: ...

    headers = {"tenant_id": "{acme}"}
    found = t.resolve_call((), {}, headers, "id").limits
    assert [limit.text for limit in found] == ["{acme}/7", "fn 7", "{{braces}}"]


def test_eager_calls_have_nowhere_to_wait() -> None:
    app = fresh_app()
    app.conf.task_always_eager = True
    app.conf.task_eager_propagates = True

    @app.task(
        shared=False,
        base=ReliableTask,
        name="t",
        reliable=Reliable(limits=[Limit("all", max_running=1), Limit("often", rate="1/d")]),
    )
    def t(*, tenant_id: str, deeper: int) -> int:
        if not deeper:
            return 0
        with allow_join_result():
            return int(t.delay(tenant_id=tenant_id, deeper=deeper - 1).get()) + 1

    assert t.delay(tenant_id="acme", deeper=2).get() == 2
