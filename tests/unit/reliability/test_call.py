"""Whose call it is, and what it is the same as."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwi_celery.errors import ConflictingIds, InvalidCall, MissingTenant
from gwi_celery.headers import DUE_HEADER
from gwi_celery.reliability.call import resolve_call, with_ids
from gwi_celery.reliability.options import Reliable


def job(tenant_id: str, run_id: str | None = None, *, pr: Any = None) -> None: ...


def call(*args: Any, headers: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    options = kwargs.pop("options", Reliable())
    return resolve_call(job, "job", options, args, kwargs, headers or {}, "task-1")


def test_ids_are_found_in_positional_and_named_arguments_and_in_headers() -> None:
    by_position = call("acme", "r1")
    assert (by_position.tenant, by_position.run) == ("acme", "r1")
    assert call(tenant_id="acme", run_id="r1") == by_position
    for names in (("tenant_id", "gwi_run"), ("gwi_tenant", "run_id")):
        in_headers = call(headers=dict(zip(names, ("acme", "r1"), strict=True)))
        assert in_headers == by_position
        assert in_headers.fingerprint() == by_position.fingerprint()


def invoice(order: int, *, tenant_id: str, run_id: str | None = None) -> None: ...


def test_a_function_that_does_not_take_the_ids_is_not_given_them() -> None:
    def free(order: int, **rest: Any) -> None: ...

    headers = {"gwi_tenant": "acme", "gwi_run": "r1"}
    assert with_ids(free, Reliable(), (7,), {}, headers) == {}
    assert with_ids(invoice, Reliable(), (7,), {"tenant_id": "x"}, headers) == {
        "tenant_id": "x",
        "run_id": "r1",
    }
    assert with_ids(invoice, Reliable(), (1, 2, 3), {}, headers) == {}, "Celery says it better"


@pytest.mark.parametrize("tenant", [None, "", "   "])
def test_a_missing_or_empty_tenant_is_refused(tenant: str | None) -> None:
    with pytest.raises(MissingTenant, match="tenant"):
        call(tenant_id=tenant)


def test_ids_that_are_not_text_are_refused() -> None:
    with pytest.raises(InvalidCall, match="pass it as text"):
        call(5)  # type: ignore[arg-type]


def test_arguments_and_headers_that_differ_are_refused() -> None:
    with pytest.raises(ConflictingIds, match=r"'r1'.*'r2'"):
        call("acme", "r1", headers={"run_id": "r2"})
    assert call("acme", "r1", headers={"run_id": "r1"}).run == "r1"


def test_without_a_run_the_job_is_its_task_id_and_excludes_nobody() -> None:
    one = resolve_call(job, "job", Reliable(), ("acme",), {}, {}, "t1")
    two = resolve_call(job, "job", Reliable(), ("acme",), {}, {}, "t2")
    assert one.job != two.job
    assert one.lock != two.lock


def test_lock_scopes() -> None:
    assert call("acme", "r1").lock.scope == ("run", "r1")
    assert call("acme", "r1", options=Reliable(lock="type")).lock.scope == ("type", "job", "r1")
    by_key = call("acme", "r1", pr="x", options=Reliable(lock=lambda a: a["pr"]))
    assert by_key.lock.scope == ("key", "x")
    assert call("acme", "r1", options=Reliable(lock=None)).lock.scope[0] == "job"
    with pytest.raises(InvalidCall, match="needs the argument 'nope'"):
        call("acme", options=Reliable(lock=lambda a: a["nope"]))


def test_a_key_given_with_the_call_goes_first() -> None:
    options = Reliable(idempotency=lambda a: a["run_id"])
    given = call("acme", "r1", options=options, headers={"gwi_key": "k"})
    assert given.job.key == "key:k"
    assert call("acme", "r1", options=options).job.key == "key:r1"
    # A key never meets a run or a task of the same name.
    assert len({call("acme", "k").job, given.job, call("acme").job}) == 3


def test_a_call_of_beats_is_a_job_of_its_own_under_the_same_lock() -> None:
    first, second = ({DUE_HEADER: f"2026-11-2{day}T00:00:00+00:00"} for day in (6, 7))
    plain = call("acme", "r1")
    for headers in ({}, {"gwi_key": "k"}):
        once, other = (call("acme", "r1", headers={**headers, **due}) for due in (first, second))
        assert len({once.job, other.job, plain.job}) == 3
        assert once.lock == other.lock == plain.lock
    redelivered = {"gwi_key": "k", **first}
    again = resolve_call(job, "job", Reliable(), ("acme", "r1"), {}, redelivered, "task-2")
    assert again == call("acme", "r1", headers=redelivered)


texts = st.text(min_size=1, max_size=30)


@given(texts.filter(str.strip), texts.filter(str.strip))
def test_a_tenant_is_part_of_every_id(one: str, other: str) -> None:
    a, b = call(one, "r"), call(other, "r")
    assert (a.job.id == b.job.id) == (one == other)
    assert (a.lock.id == b.lock.id) == (one == other)
