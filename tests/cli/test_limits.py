"""``gwi limits`` on an embedded app."""

from __future__ import annotations

import getpass
import time

import pytest

from gwi_celery import Limit, Reliable, ReliableTask, audit, store_for
from gwi_celery.cli.frame import Exit
from gwi_celery.stores.base import Claimed
from gwi_celery.stores.limits import LimitRef
from tests.cli.conftest import Gwi


@pytest.fixture
def limited(gwi_: Gwi) -> Gwi:
    limits = [Limit("{tenant_id}", max_running=3), Limit("openai", rate="500/m")]

    @gwi_.app.task(
        base=ReliableTask, name="shop.ask", shared=False, reliable=Reliable(limits=limits)
    )
    def ask(*, tenant_id: str, run_id: str) -> None: ...

    for run in ("r1", "r2"):
        resolved = ask.resolve_call((), {"tenant_id": "acme", "run_id": run}, {}, run)
        request = ask.claim_request(resolved, {}, run, 7, redelivered=False)
        assert isinstance(store_for(gwi_.app).claim(request), Claimed)
    return gwi_


def test_what_is_in_force_and_who_holds_it(limited: Gwi) -> None:
    rows = limited.json("limits", "list")
    assert [(row["limit"], row["filled"], row["allows"], row["held"]) for row in rows] == [
        ("openai", "", "500/m", 2),
        ("{tenant_id}", "", "3 at once", 0),
        ("{tenant_id}", "tenant_id=acme", "3 at once", 2),
    ]
    assert [holder["key"] for holder in rows[2]["holders"]] == ["run:r1", "run:r2"]
    assert (rows[0]["tasks"], rows[0]["rate"], rows[0]["max_running"]) == (
        ["shop.ask"],
        "500/m",
        None,
    )


def test_a_table_of_limits(limited: Gwi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("socket.gethostname", lambda: "host")
    limited("limits", "set", "openai", "--rate", "100/m")
    lines = limited("limits", "list").splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].split() == ["LIMIT", "OF", "ALLOWS", "HELD", "HELD", "BY", "SET", "BY"]
    assert lines[1].split()[:3] == ["openai", "100/m", "2"]
    assert lines[2].endswith("as coded")


def test_starts_that_a_shorter_rate_does_not_count_are_not_listed(
    limited: Gwi, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited("limits", "set", "openai", "--rate", "500/30s")
    assert limited.json("limits", "list")[0]["held"] == 2
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 31)
    assert limited.json("limits", "list")[0]["held"] == 0


def test_set_and_clear(limited: Gwi) -> None:
    said = limited("limits", "set", "{tenant_id}", "--max-running", "5")
    assert said == "limit '{tenant_id}' is 5 at once for all workers now\n"
    (setting,) = store_for(limited.app).limit_settings().values()
    assert setting.before == 3, "as coded: so many may run when a later deploy says less"
    limited("limits", "set", "{tenant_id}", "--max-running", "9", "--of", "tenant_id=acme")
    rows = {row["filled"]: row for row in limited.json("limits", "list")[1:]}
    assert [(row["max_running"], row["set_by"]) for row in rows.values()] == [
        (5, getpass.getuser()),
        (9, getpass.getuser()),
    ]
    assert rows[""]["set_at"] < rows["tenant_id=acme"]["set_at"]
    limited("limits", "clear", "{tenant_id}", code=Exit.REFUSED)
    assert "2 of 2 settings match" in limited.err
    assert limited.json("limits", "clear", "{tenant_id}", "--of", "tenant_id=acme", "--yes") == {
        "cleared": 1
    }
    assert limited.json("limits", "clear", "--all", "--yes") == {"cleared": 1}
    limited("limits", "clear", "{tenant_id}", "--yes", code=Exit.NOTHING)
    assert [(a.what, a.target) for a in audit.entries(limited.app)] == [
        ("clear limit", "{tenant_id}"),
        ("clear limit", "{tenant_id} tenant_id=acme"),
        ("set limit", "{tenant_id} tenant_id=acme"),
        ("set limit", "{tenant_id}"),
    ]
    limit = LimitRef("{tenant_id}", {"tenant_id": "acme"}, 3)
    assert len(store_for(limited.app).list_places(limit.id)) == 2, "those that run go on"


@pytest.mark.parametrize(
    "arguments",
    [
        ("set", "{tenant_id}"),
        ("set", "{tenant_id}", "--max-running", "0"),
        ("set", "{tenant_id}", "--max-running", "1", "--rate", "1/m"),
        ("set", "openai", "--rate", "much"),
        ("set", "{tenant_id}", "--max-running", "1", "--of", "acme"),
        ("clear",),
        ("clear", "openai", "--all"),
    ],
)
def test_what_can_not_be_meant(limited: Gwi, arguments: tuple[str, ...]) -> None:
    limited("limits", *arguments, code=Exit.USAGE)
    assert limited.err
    assert audit.entries(limited.app) == []
