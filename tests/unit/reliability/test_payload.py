"""When two calls have the same payload, however they are spelt, and whatever the release."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

import pytest

from gwi_celery.ids import fingerprint
from gwi_celery.reliability.payload import Payload
from gwi_celery.stores.protocol import same_payload


def job(
    repo: Any, depth: int = 1, *more: Any, dry: Any = None, tags: Any = (), **rest: Any
) -> None: ...


def payload(*args: Any, function: Callable[..., Any] = job, **kwargs: Any) -> Payload:
    return Payload.of(function, args, kwargs)


def same(one: Payload, other: Payload) -> bool:
    answer = same_payload(one.fingerprint(), other.fingerprint())
    assert answer == same_payload(other.fingerprint(), one.fingerprint())
    assert one.key() != other.key() or answer
    return answer


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (payload("r", 2), payload(repo="r", depth=2)),
        (payload("r"), payload("r", 1, dry=None, tags=())),
        (payload("r"), payload(repo="r", depth=1.0, tags=[])),
        (payload([1, (2, 3)]), payload((1.0, [2, 3]))),
        (payload({"a": {"x": 1, "y": 2.0}}), payload({"a": {"y": 2, "x": 1}})),
        (payload({1: "x"}), payload({"1": "x"})),
        (payload("r", new=1, old=2), payload("r", old=2, new=1)),
    ],
)
def test_calls_that_are_spelt_otherwise_only_are_the_same(one: Payload, other: Payload) -> None:
    assert same(one, other)
    assert one.key() == other.key()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (payload("r"), payload("s")),
        (payload("r"), payload("r", 2)),
        (payload("r", 1), payload("r", True)),
        (payload("r", dry=False), payload("r", dry=0)),
        (payload("r", dry=False), payload("r")),
        (payload("r", 1.5), payload("r", 1)),
        (payload("1"), payload(1)),
        (payload("r", 1, 5), payload("r", 5)),
        (payload("r", 1, 5, 6), payload("r", 1, 6, 5)),
        (payload("r", other=1), payload("r", another=1)),
        (payload(date(2020, 1, 1)), payload(date(2020, 1, 2))),
        (payload({"pr": {"id": 1}}), payload({"pr": {"id": 2}})),
    ],
)
def test_other_values_are_another_payload(one: Payload, other: Payload) -> None:
    assert not same(one, other)
    assert one.key() != other.key()


def test_a_deploy_that_renames_adds_or_moves_a_parameter_leaves_live_calls_what_they_are() -> None:
    def before(repo: Any, depth: int = 1) -> None: ...
    def renamed(repository: Any, depth: int = 1) -> None: ...
    def appended(
        repo: Any, depth: int = 1, verbose: bool = False, *, dry: bool = False
    ) -> None: ...
    def moved(repo: Any, verbose: bool = False, depth: int = 1) -> None: ...

    assert same(payload("r", 2, function=before), payload("r", 2, function=renamed))
    assert same(payload("r", 2, function=before), payload("r", 2, function=appended))
    by_name = payload(repo="r", depth=2, function=before)
    assert same(by_name, payload(repo="r", depth=2, function=moved))
    assert not same(by_name, payload(repo="r", depth=3, function=moved))


@pytest.mark.parametrize(
    ("named", "now"),
    [
        ({"repo": "r", "depth": 2}, payload("r", 2)),
        ({"repo": "r"}, payload("r")),
        ({"repo": "r", "depth": 1}, payload("r", depth=1)),
        ({"repo": "r", "depth": 1.0, "dry": None}, payload("r", 1.0, dry=None)),
        ({"repo": [1.0, {"b": 1, "a": 2}]}, payload(repo=(1.0, {"a": 2, "b": 1}))),
    ],
)
def test_a_record_of_version_0_1_knows_its_duplicates(named: dict[str, Any], now: Payload) -> None:
    """It has one digest: of the arguments by name, as they were passed."""
    assert same_payload(fingerprint(named), now.fingerprint())
    assert not same_payload(fingerprint({**named, "repo": "other"}), now.fingerprint())


def test_arguments_that_the_function_does_not_take_are_compared_as_they_are() -> None:
    def none() -> None: ...

    assert same(payload(1, x=2, function=none), payload(1, x=2, function=none))
    assert not same(payload(1, x=2, function=none), payload(2, x=2, function=none))


def test_a_default_without_a_json_form_is_no_obstacle() -> None:
    def odd(repo: Any = object, depth: Any = None) -> None: ...

    assert same(payload("r", function=odd), payload(repo="r", depth=None, function=odd))


def test_a_call_by_names_alone_has_one_digest_as_in_version_0_1() -> None:
    def named(*, tenant_id: str, run_id: str, n: int = 0) -> None: ...

    arguments = {"tenant_id": "acme", "run_id": "r1"}
    assert payload(function=named, **arguments).fingerprint() == fingerprint(arguments)
