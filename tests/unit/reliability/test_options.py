"""A reliable task's options: where they are given, what they may be, and what ``key`` makes one job."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery, group

from gwi_celery import Reliable, ReliableTask
from gwi_celery.errors import ConfigurationError

CALL = {"tenant_id": "acme", "run_id": "r1"}

pytestmark = pytest.mark.usefixtures("eager")


@pytest.mark.parametrize("options", [{"key": "payload"}, {"idempotency": "payload"}])
def test_a_fan_out_within_a_run_is_one_option(app: Celery, options: dict[str, Any]) -> None:
    ran: list[int] = []

    @app.task(shared=False, base=ReliableTask, name="t", reliable=Reliable(**options))
    def t(n: int, *, tenant_id: str, run_id: str) -> int:
        ran.append(n)
        return n

    for _ in range(2):
        assert group(t.s(n, **CALL) for n in range(4))().get() == [0, 1, 2, 3]
    assert t.delay(n=2.0, **CALL).get() == 2
    assert t.delay(2, **{**CALL, "run_id": "r2"}).get() == 2
    assert ran == [0, 1, 2, 3, 2]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"key": "runs"}, "key='runs'"),
        ({"key": None}, "key=None"),
        ({"key": len, "idempotency": len}, "two names of one option"),
        ({"lock": "runs"}, "lock='runs'"),
    ],
)
def test_a_key_or_lock_that_means_nothing_is_refused(given: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        Reliable(**given)


def test_an_option_of_another_type_is_refused_where_it_stands(app: Celery) -> None:
    for option in (
        *(
            {name: value}
            for name in ("lock_ttl", "result_ttl", "deadline")
            for value in ("5", -1, 0, True, 1e12, float("inf"), 10**309)
        ),
        *(
            {name: value}
            for name in ("max_crashes", "max_result_bytes")
            for value in ("5", -1, 1.5)
        ),
    ):
        with pytest.raises(ConfigurationError, match=rf"Reliable\({next(iter(option))}="):
            Reliable(**option)
    for name, retries in (("text", "3"), ("negative", -1)):

        class Odd(ReliableTask):
            max_retries = retries

            def run(self, *, tenant_id: str) -> None: ...

        Odd.name = name
        with pytest.raises(ConfigurationError, match=r"max_retries=.*whole number"):
            app.register_task(Odd())


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"lock": None, "deadline": 5}, r"reliable=Reliable\(lock=None, deadline=5\)"),
        ({"key": "payload"}, r"reliable=Reliable\(key='payload'\)"),
        ({"idempotency": len}, "idempotency"),
        ({"max_crashes": 3, "result_ttl": 1.5}, r"result_ttl=1\.5, max_crashes=3"),
    ],
)
def test_an_option_given_to_the_decorator_is_refused(
    app: Celery, given: dict[str, Any], named: str
) -> None:
    @app.task(shared=False, base=ReliableTask, name="t", **given)
    def t(*, tenant_id: str) -> None: ...

    with pytest.raises(ConfigurationError, match=named):
        app.finalize()


def test_an_option_set_in_a_class_is_refused_but_not_what_only_has_its_name(app: Celery) -> None:
    class Own(ReliableTask):
        abstract = True

        @property
        def key(self) -> str:
            return "mine"

        def lock(self) -> str:
            return "mine"

    @app.task(shared=False, base=Own, bind=True, name="good")
    def good(self: Any, *, tenant_id: str) -> list[str]:
        return [self.key, self.lock()]

    assert good.apply(kwargs={"tenant_id": "acme"}).get() == ["mine", "mine"]

    class Bad(ReliableTask):
        name = "bad"
        max_crashes = 3

        def run(self, *, tenant_id: str) -> None: ...

    with pytest.raises(ConfigurationError, match=r"Reliable\(max_crashes=3\)"):
        app.register_task(Bad())
