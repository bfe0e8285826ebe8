"""Celery's result API, on every result backend: what readers see, and what is never lost or doubled."""

from __future__ import annotations

import os
import threading
from asyncio import CancelledError
from typing import Any

import pytest
from celery import states
from celery.app.task import Context
from celery.canvas import signature
from celery.exceptions import ChordError, Reject, TimeoutError
from celery.result import AsyncResult, GroupResult
from celery.utils.functional import regen
from kombu.exceptions import OperationalError

from gwi_celery import broker_for
from gwi_celery.backends.tenants import owned
from gwi_celery.brokers.pubsub.options import STRICT_HOST
from gwi_celery.errors import BrokerUnavailable, MissingTenant, StoreUnavailable, TaskIdTaken
from gwi_celery.headers import TENANT_HEADER
from tests.contract.backends import BackendCase
from tests.machine import PATIENCE
from tests.workers import eventually

SUCCESS, FAILURE, STARTED, RETRY, PENDING = (
    states.SUCCESS,
    states.FAILURE,
    states.STARTED,
    states.RETRY,
    states.PENDING,
)


def result_of(results: BackendCase, task_id: str = "t1") -> AsyncResult:
    """As another process sees it: nothing remembered."""
    return AsyncResult(task_id, app=results.app, backend=results.another())


def exists(result: AsyncResult) -> bool:
    """What Celery 5.7 has as a method."""
    return result.backend.get(result.backend.get_key_for_task(result.id)) is not None


def request(task_id: str = "t1", **fields: Any) -> Context:
    return Context({"id": task_id, "task": "add", "args": (1, 2), "kwargs": {}, **fields})


# --- tenants ---------------------------------------------------------------------------------------


def of_tenant(tenant: str, task_id: str = "t1", **fields: Any) -> Context:
    return request(task_id, headers={TENANT_HEADER: tenant}, **fields)


@pytest.mark.parametrize("redelivered", [False, True])
def test_two_tenants_that_use_one_task_id_never_read_each_others_result(
    results: BackendCase, redelivered: bool
) -> None:
    info = {"delivery_info": {"redelivered": redelivered}}
    results.backend.store_result("t1", "acme's", SUCCESS, request=of_tenant("acme"))
    results.another().store_result("t1", "other's", SUCCESS, request=of_tenant("other", **info))
    results.another().store_result("t1", "other's", FAILURE, request=of_tenant("other", **info))

    def read_by(tenant: str) -> AsyncResult:
        return owned(result_of(results), tenant)

    assert read_by("acme").get(timeout=PATIENCE) == "acme's"
    assert result_of(results).get(timeout=PATIENCE) == "acme's", "who names no tenant"
    for read in (
        lambda result: result.get(timeout=PATIENCE),
        lambda result: result.state,
        lambda result: next(result.backend.get_many([result.id], timeout=PATIENCE)),
    ):
        with pytest.raises(TaskIdTaken, match="another tenant's"):
            read(read_by("other"))
    results.outlast_result()
    results.backend.store_result("t1", "other's", SUCCESS, request=of_tenant("other"))
    assert read_by("other").get(timeout=PATIENCE) == "other's"


def test_one_who_waits_is_not_given_another_tenants_result(results: BackendCase) -> None:
    failed: list[Exception] = []

    def wait() -> None:
        try:
            owned(result_of(results), "other").get(timeout=PATIENCE)
        except TaskIdTaken as exc:
            failed.append(exc)

    waiting = threading.Thread(target=wait)
    waiting.start()
    results.backend.store_result("t1", "acme's", SUCCESS, request=of_tenant("acme"))
    waiting.join(PATIENCE)
    assert len(failed) == 1


def test_a_result_without_a_tenant_is_everybodys_as_0_1_wrote_it(results: BackendCase) -> None:
    results.backend.store_result("t1", 1, STARTED, request=request())
    assert owned(result_of(results), "acme").state == STARTED
    results.backend.store_result("t1", 2, SUCCESS, request=of_tenant("acme"))
    assert owned(result_of(results), "acme").get(timeout=PATIENCE) == 2


# --- states and results ---------------------------------------------------------------------------


def test_a_task_goes_through_its_states(results: BackendCase) -> None:
    assert result_of(results).state == PENDING
    assert not exists(result_of(results))
    results.backend.store_result("t1", {"pid": 1}, STARTED, request=request())
    assert (result_of(results).state, result_of(results).result) == (STARTED, {"pid": 1})
    results.backend.mark_as_retry("t1", ValueError("later"), traceback="tb")
    assert result_of(results).state == RETRY
    assert str(result_of(results).result) == "later"
    results.another().store_result("t1", [1, {"a": None}], SUCCESS, request=request(retries=1))
    done = result_of(results)
    assert (done.state, done.get(timeout=PATIENCE), exists(done)) == (
        SUCCESS,
        [1, {"a": None}],
        True,
    )
    assert done.date_done is not None
    assert done.name is None  # only with result_extended


@pytest.mark.parametrize("later", [SUCCESS, FAILURE, STARTED, RETRY])
def test_a_success_is_never_overwritten(results: BackendCase, later: str) -> None:
    results.backend.store_result("t1", "first", SUCCESS)
    for backend in (results.backend, results.another()):
        for again in (None, request(retries=1)):
            result = ValueError("no") if later in states.EXCEPTION_STATES else "second"
            backend.store_result("t1", result, later, request=again)
    assert result_of(results).get(timeout=PATIENCE) == "first"


@pytest.mark.parametrize("end", [FAILURE, states.REVOKED])
def test_an_end_is_overwritten_by_an_end_only(results: BackendCase, end: str) -> None:
    other = results.another()
    results.backend.store_result("t1", None, STARTED)
    results.backend.store_result("t1", ValueError("no"), end)
    for late in (STARTED, RETRY, PENDING, "PROGRESS"):
        other.store_result("t1", ValueError("later") if late == RETRY else None, late)
        assert result_of(results).state == end
    other.store_result("t1", ValueError("again"), FAILURE)
    assert str(result_of(results).result) == "again"
    results.backend.store_result("t1", 5, SUCCESS)
    assert result_of(results).get(timeout=PATIENCE) == 5


def test_what_has_expired_is_gone(results: BackendCase) -> None:
    results.backend.store_result("t1", 1, SUCCESS)
    results.backend.save_group("g", GroupResult("g", [AsyncResult("t1", app=results.app)]))
    results.outlast_result()
    gone = result_of(results)
    assert (gone.state, exists(gone)) == (PENDING, False)
    assert results.another().restore_group("g") is None
    assert list(results.another().get_many(["t1"], max_iterations=1)) == []
    with pytest.raises(TimeoutError):
        gone.get(timeout=0.1)
    results.another().store_result("t1", 2, SUCCESS)
    assert result_of(results).get(timeout=PATIENCE) == 2, (
        "an expired success stands in nobody's way"
    )


def test_a_cleanup_deletes_what_has_expired_only(results: BackendCase) -> None:
    results.backend.store_result("t1", "x" * 2_000_000, SUCCESS)
    results.backend.count_part("g1", "a")
    results.outlast_result()
    results.backend.store_result("t2", 2, SUCCESS)
    assert results.backend.count_part("g2", "a") == (1, False)
    results.backend.cleanup()
    assert result_of(results, "t2").get(timeout=PATIENCE) == 2
    assert results.backend.count_part("g2", "b") == (2, False)
    assert results.backend.count_part("g1", "a") == (1, False), "begins anew"
    assert not exists(result_of(results))


def test_results_may_be_kept_for_good_or_expire_sooner(results: BackendCase) -> None:
    results.backend.expires = None
    results.backend.store_result("t1", 1, SUCCESS)
    results.backend.store_result("t2", 2, SUCCESS)
    results.backend.expire(results.backend.get_key_for_task("t2"), 100)
    results.backend.expire(results.backend.get_key_for_task("unknown"), 100)
    results.advance(101)
    assert not exists(result_of(results, "t2"))
    results.outlast_result()
    assert result_of(results).get(timeout=PATIENCE) == 1


def test_what_is_forgotten_is_gone(results: BackendCase) -> None:
    results.backend.store_result("t1", 1, SUCCESS)
    result_of(results).forget()
    assert result_of(results).state == PENDING
    result_of(results).forget()
    results.backend.store_result("t1", 2, SUCCESS)
    assert result_of(results).get(timeout=PATIENCE) == 2


def test_an_exception_comes_back_with_its_traceback(results: BackendCase) -> None:
    error = ValueError("no such thing", 42)
    results.backend.mark_as_failure("t1", error, traceback="Traceback: line 1")
    failed = result_of(results)
    with pytest.raises(ValueError, match="no such thing") as caught:
        failed.get(timeout=PATIENCE)
    assert caught.value.args == ("no such thing", 42)
    assert failed.traceback == "Traceback: line 1"
    assert isinstance(result_of(results).get(timeout=PATIENCE, propagate=False), ValueError)
    results.backend.mark_as_revoked("t2", "not wanted")
    assert result_of(results, "t2").state == states.REVOKED


def test_one_that_is_no_exception_is_a_failure_too(results: BackendCase) -> None:
    """A job may raise asyncio.CancelledError, or a kind of its own."""
    results.backend.mark_as_failure("t1", CancelledError("stopped"))
    found = result_of(results)
    assert found.state == FAILURE
    assert "CancelledError" in repr(found.result)
    assert "stopped" in str(found.result)


def test_extended_results_and_children(results: BackendCase) -> None:
    results.app.conf.result_extended = True
    child = AsyncResult("child", app=results.app)
    about = request(
        hostname="w1", retries=2, delivery_info={"routing_key": "celery"}, _children=[child]
    )
    about.group, about.parent_id = "g", "parent"
    results.backend.store_result("t1", 3, SUCCESS, request=about)
    done = result_of(results)
    assert (done.name, done.args, done.kwargs) == ("add", [1, 2], {})
    assert (done.worker, done.retries, done.queue) == ("w1", 2, "celery")
    assert [c.id for c in done.children] == ["child"]
    meta = done.backend.get_task_meta("t1")
    assert (meta["group_id"], meta["parent_id"]) == ("g", "parent")


@pytest.mark.parametrize("task_id", ["a/b", "..", "ключ 🔑", "x" * 3000])
def test_any_text_is_an_id(results: BackendCase, task_id: str) -> None:
    results.backend.store_result(task_id, "mine", SUCCESS)
    results.backend.store_result(task_id + "/", "other", SUCCESS)
    assert result_of(results, task_id).get(timeout=PATIENCE) == "mine"


@pytest.mark.parametrize("size", [899_000, 2_000_000, 7_000_000])
def test_a_large_result_comes_back_whole(results: BackendCase, size: int) -> None:
    first, second = os.urandom(size // 2).hex(), os.urandom(size // 2).hex()
    results.backend.store_result("t1", first, STARTED)
    assert result_of(results).result == first
    results.another().store_result("t1", second, SUCCESS)
    done = result_of(results)
    assert done.get(timeout=PATIENCE) == second
    done.forget()
    assert not exists(result_of(results))


def test_a_result_that_cannot_be_stored_has_its_message_redelivered(
    results: BackendCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*args: Any) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(results.backend, "put", away)
    monkeypatch.setattr(results.backend, "count_part", away)
    monkeypatch.setattr(results.backend, "max_retries", 1)
    with pytest.raises(Exception, match="failed to store"):
        results.backend.store_result("t1", 1, SUCCESS)
    monkeypatch.setattr(type(results.app), "current_worker_task", object())
    with pytest.raises(Reject) as rejected:
        results.backend.store_result("t1", 1, SUCCESS, request=request())
    assert rejected.value.requeue
    part = request(group="g", chord=signature("sum", app=results.app))
    with pytest.raises(Reject) as rejected:
        results.backend.on_chord_part_return(part, SUCCESS, 1)
    assert rejected.value.requeue


# --- waiting --------------------------------------------------------------------------------------


def test_a_wait_ends_when_the_result_is_there(results: BackendCase) -> None:
    writer, asked = results.another(), []

    def on_interval() -> None:
        asked.append(1)
        if len(asked) == 1:
            writer.store_result("t1", None, STARTED)
        if len(asked) == 2:
            writer.store_result("t1", 3, SUCCESS)

    meta = results.backend.wait_for("t1", timeout=60, interval=0.05, on_interval=on_interval)
    assert meta["result"] == 3
    assert len(asked) >= 2
    assert result_of(results).get(timeout=PATIENCE) == 3


def test_of_a_failure_its_parents_is_raised(results: BackendCase) -> None:
    """Both came between two looks: the caller learns of the cause."""
    writer = results.another()
    body = AsyncResult("t1", app=results.app, backend=results.another())
    body.parent = AsyncResult("t0", app=results.app, backend=results.another())

    def on_interval(*args: Any) -> None:
        writer.mark_as_failure("t0", ValueError("the cause"))
        writer.mark_as_failure("t1", ChordError("what became of it"))

    with pytest.raises(ValueError, match="the cause"):
        body.get(timeout=PATIENCE, interval=0.05, on_interval=on_interval)


def test_a_wait_may_end_before(results: BackendCase) -> None:
    for timeout in (0, 0.1):
        with pytest.raises(TimeoutError):
            result_of(results).get(timeout=timeout, interval=0.01)
    group = GroupResult("g", [AsyncResult("t1", app=results.app)])
    with pytest.raises(TimeoutError):
        group.get(timeout=0.1, interval=0.01)


def test_many_wait_for_one_and_one_for_many(results: BackendCase) -> None:
    got: list[Any] = []
    ids = [f"t{n}" for n in range(8)]
    waiting = threading.Semaphore(0)

    def wait() -> None:
        group = GroupResult("g", [AsyncResult(task_id, app=results.app) for task_id in ids])
        got.append(group.get(timeout=PATIENCE, interval=0.05, on_interval=waiting.release))

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert waiting.acquire(timeout=30)
    writer = results.another()
    for n, task_id in reversed(list(enumerate(ids))):
        writer.store_result(task_id, n, SUCCESS)
    for thread in threads:
        thread.join(timeout=PATIENCE)
    assert got == [list(range(8))] * 4


# --- groups ---------------------------------------------------------------------------------------


def test_a_group_is_saved_restored_and_deleted(results: BackendCase) -> None:
    members = [AsyncResult(f"t{n}", app=results.app) for n in range(150)]
    GroupResult("g", members, app=results.app).save()
    restored = GroupResult.restore("g", backend=results.another(), app=results.app)
    assert [r.id for r in restored] == [r.id for r in members]
    for n, member in enumerate(members):
        results.backend.store_result(member.id, n, SUCCESS)
    assert restored.get(timeout=PATIENCE) == list(range(150))
    restored.delete(backend=results.another())
    assert GroupResult.restore("g", backend=results.another(), app=results.app) is None


def test_a_failure_in_a_group(results: BackendCase) -> None:
    results.backend.store_result("t0", 0, SUCCESS)
    results.backend.mark_as_failure("t1", ValueError("no"))
    group = GroupResult("g", [AsyncResult(f"t{n}", app=results.app) for n in range(2)])
    with pytest.raises(ValueError, match="no"):
        group.get(timeout=PATIENCE)
    one, two = group.get(timeout=PATIENCE, propagate=False)
    assert one == 0
    assert isinstance(two, ValueError)


# --- chords ---------------------------------------------------------------------------------------


class Chord:
    """A chord of three, and its body, which nobody runs."""

    def __init__(self, results: BackendCase, size: int | None = 3) -> None:
        self.results = results
        self.ids = [f"part-{n}" for n in range(3)]
        header = ["g", [AsyncResult(task_id, app=results.app) for task_id in self.ids]]
        self.body = signature("sum", app=results.app, task_id="body")
        if size is not None:
            self.body["chord_size"] = size
        results.backend.apply_chord(header, self.body)

    def returns(self, n: int, result: Any = 1, state: str = SUCCESS) -> None:
        """A part's end, as a worker of its own sees it."""
        backend = self.results.another()
        about = request(self.ids[n], group="g", chord=dict(self.body))
        backend.store_result(self.ids[n], result, state, request=about)
        backend.on_chord_part_return(about, state, result)


@pytest.mark.parametrize("size", [3, None])
def test_a_part_counts_once_and_the_body_is_sent_once(
    results: BackendCase, size: int | None
) -> None:
    chord = Chord(results, size)
    for n in (0, 1, 1, 0, 1):
        chord.returns(n)
    assert results.sent() == 0
    chord.returns(2)
    assert results.sent() == 1
    for n in (2, 0):
        chord.returns(n)
    assert results.sent() == 1


def test_a_worker_killed_before_the_body_was_sent_has_it_sent_later(results: BackendCase) -> None:
    chord = Chord(results)
    chord.returns(0)
    chord.returns(1)
    assert results.another().count_part("g", "part-2") == (3, False)  # and died
    assert results.sent() == 0
    chord.returns(2)
    assert results.sent() == 1
    assert results.backend.count_part("g", "part-2") == (3, True)


def test_a_part_that_fails_fails_the_body(results: BackendCase) -> None:
    chord = Chord(results)
    chord.returns(0)
    chord.returns(1, ValueError("broken part"), FAILURE)
    chord.returns(2)
    assert results.sent() == 0
    body = result_of(results, "body")
    with pytest.raises(ChordError, match="broken part"):
        body.get(timeout=PATIENCE)


def test_a_chord_whose_group_is_gone_fails_its_body(results: BackendCase) -> None:
    chord = Chord(results)
    results.backend.delete_group("g")
    for n in range(3):
        chord.returns(n)
    with pytest.raises(ChordError, match="is gone"):
        result_of(results, "body").get(timeout=PATIENCE)


def nested(results: BackendCase) -> tuple[Any, list[str]]:
    """A chord whose header is a chain that ends in a group, and a task; its body and its parts."""
    ids = ["inner-0", "inner-1", "last"]
    inner = GroupResult("inner", [AsyncResult(id, app=results.app) for id in ids[:2]])
    body = signature("sum", app=results.app, task_id="body")
    results.backend.apply_chord(["g", [inner, AsyncResult("last", app=results.app)]], body)
    return body, ids


def part_returns(results: BackendCase, body: Any, task_id: str, result: Any = 1) -> None:
    backend = results.another()
    about = request(task_id, group="g", chord=dict(body))
    backend.store_result(task_id, result, SUCCESS, request=about)
    backend.on_chord_part_return(about, SUCCESS, result)


@pytest.mark.parametrize("told", [True, False])
def test_a_chord_waits_for_all_parts_of_a_group_within_it(results: BackendCase, told: bool) -> None:
    body, ids = nested(results)
    if told:
        results.another().set_chord_size("g", 3)
    for task_id in ids[:2]:
        part_returns(results, body, task_id)
    assert results.sent() == 0
    part_returns(results, body, ids[2])
    assert results.sent() == 1


def test_a_header_is_sent_while_a_generator_makes_it(results: BackendCase) -> None:
    made: list[int] = []

    def header() -> Any:
        for n in range(3):
            made.append(n)
            yield AsyncResult(f"not its id {n}", app=results.app)

    body = signature("sum", app=results.app, task_id="body")
    results.backend.apply_chord(["g", regen(header())], body)
    assert not made
    for n in (2, 0, 1):
        if n == 1:
            results.backend.set_chord_size("g", 3)
        assert results.sent() == 0
        backend = results.another()
        about = request(f"part-{n}", group="g", chord=dict(body), group_index=n)
        backend.store_result(about.id, n * 11, SUCCESS, request=about)
        backend.on_chord_part_return(about, SUCCESS, n * 11)
    assert results.sent() == 1
    (message,) = broker_for(results.app).peek("celery")
    assert "[[0, 11, 22]]" in message.data.decode()


def test_a_part_may_join_a_chord(results: BackendCase) -> None:
    body, ids = nested(results)
    results.backend.set_chord_size("g", 3)
    results.another().add_to_chord("g", AsyncResult("joined", app=results.app))
    for task_id in ids:
        part_returns(results, body, task_id)
    assert results.sent() == 0
    part_returns(results, body, "joined", 7)
    assert results.sent() == 1
    (message,) = broker_for(results.app).peek("celery")
    assert "[[[1, 1], 1, 7]]" in message.data.decode()


def test_a_chord_that_was_over_may_be_applied_again(results: BackendCase) -> None:
    for sent in (1, 2):
        chord = Chord(results, None)
        chord.returns(0)
        results.another().set_chord_size("g", 3)
        chord.returns(1)
        assert results.sent() == sent - 1
        chord.returns(2)
        assert results.sent() == sent


def test_a_chord_lives_as_long_as_its_parts_return(results: BackendCase) -> None:
    chord = Chord(results, None)
    results.backend.set_chord_size("g", 3)
    for n in range(3):
        assert results.sent() == 0
        results.advance(0.7 * results.backend.expires)
        results.backend.cleanup()
        chord.returns(n, "x" * 1_000_000)
    assert results.sent() == 1


class OnlyPart:
    """A chord of one part, which is being worked on."""

    def __init__(self, results: BackendCase, monkeypatch: pytest.MonkeyPatch, body: Any) -> None:
        self.results, self.body = results, body

        @results.app.task(shared=False, acks_late=True)
        def working() -> None: ...

        monkeypatch.setattr(type(results.app), "current_worker_task", working)
        results.backend.apply_chord(["g", [AsyncResult("part", app=results.app)]], body)

    def returns(self) -> None:
        part_returns(self.results, self.body, "part")


@pytest.mark.parametrize(
    "raised", [TypeError("takes 2 arguments"), MissingTenant("whose?"), RuntimeError("odd")]
)
def test_a_body_that_can_not_be_called_fails(
    results: BackendCase, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    @results.app.task(shared=False, name="body")
    def body(numbers: Any) -> None: ...

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise raised

    monkeypatch.setattr(body, "apply_async", refuse)
    part = OnlyPart(results, monkeypatch, body.s().set(task_id="body"))
    part.returns()
    part.returns()
    failed = result_of(results, "body")
    assert failed.state == states.FAILURE
    with pytest.raises(ChordError, match=str(raised).replace("?", ".")):
        failed.get(timeout=PATIENCE)


@pytest.mark.parametrize("raised", [OperationalError("away"), BrokerUnavailable("away")])
def test_a_body_is_sent_later_where_the_broker_is_unavailable(
    results: BackendCase, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    @results.app.task(shared=False, name="body")
    def body(numbers: Any) -> None: ...

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise raised

    part = OnlyPart(results, monkeypatch, body.s().set(task_id="body"))
    with monkeypatch.context() as away:
        away.setattr(body, "apply_async", refuse)
        with pytest.raises(Reject) as rejected:
            part.returns()
    assert rejected.value.requeue
    assert result_of(results, "body").state == PENDING
    part.returns()
    assert results.sent() == 1


def test_parts_counted_at_the_same_time(results: BackendCase) -> None:
    counted: list[tuple[int, bool]] = []
    backends = [results.another() for _ in range(4)]

    def count(backend: Any, first: int) -> None:
        counted.extend(backend.count_part("g", f"part-{n}") for n in range(first, 40, 4))

    threads = [threading.Thread(target=count, args=(b, n)) for n, b in enumerate(backends)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(counted) == 40)
    for thread in threads:
        thread.join()
    assert sorted(counted)[-1] == (40, False)
    numbers = {n for n, _ in counted}
    assert numbers <= set(range(1, 41))
    # Counted by a commit that wasn't answered, a part reads the number of a later one.
    assert len(numbers) == 40 or STRICT_HOST in os.environ
