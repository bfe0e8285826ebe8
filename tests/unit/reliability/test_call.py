"""Whose call it is, and what it is the same as."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwi_celery.errors import ConflictingIds, InvalidCall, MissingTenant
from gwi_celery.ids import digest, fingerprint
from gwi_celery.reliability.call import resolve_call
from gwi_celery.reliability.options import Reliable


def job(tenant_id: str, run_id: str | None = None, *, pr: Any = None) -> None: ...


def call(*args: Any, headers: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    options = kwargs.pop("options", Reliable())
    return resolve_call(job, "job", options, args, kwargs, headers or {}, "task-1")


def test_ids_are_found_in_positional_and_named_arguments_and_in_headers() -> None:
    by_position = call("acme", "r1")
    assert (by_position.tenant, by_position.run) == ("acme", "r1")
    assert call(tenant_id="acme", run_id="r1") == by_position
    in_headers = call(headers={"tenant_id": "acme", "gwi_run": "r1"})
    assert (in_headers.tenant, in_headers.run) == ("acme", "r1")
    assert in_headers.job == by_position.job


def test_the_fingerprint_does_not_depend_on_how_arguments_were_passed() -> None:
    assert (
        call("a", "r", pr={"id": 1}).fingerprint()
        == call(run_id="r", pr={"id": 1}, tenant_id="a").fingerprint()
    )


def test_nested_keys_count_in_the_fingerprint() -> None:
    assert fingerprint({"pr": {"id": 1}}) != fingerprint({"pr": {"id": 2}})
    assert fingerprint({"a": {"x": 1, "y": 2}}) == fingerprint({"a": {"y": 2, "x": 1}})
    assert fingerprint([date(2020, 1, 1)]) != fingerprint([date(2020, 1, 2)])


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


def test_parts_of_an_id_are_kept_apart() -> None:
    assert digest("job", "ab", "c") != digest("job", "a", "bc")
    assert digest("job", "a", "") != digest("job", "a")


texts = st.text(min_size=1, max_size=30)


@given(st.lists(texts, max_size=4), st.lists(texts, max_size=4))
def test_two_different_ids_never_meet(one: list[str], other: list[str]) -> None:
    assert (digest("job", *one) == digest("job", *other)) == (one == other)


@given(texts.filter(str.strip), texts.filter(str.strip))
def test_a_tenant_is_part_of_every_id(one: str, other: str) -> None:
    a, b = call(one, "r"), call(other, "r")
    assert (a.job.id == b.job.id) == (one == other)
    assert (a.lock.id == b.lock.id) == (one == other)
