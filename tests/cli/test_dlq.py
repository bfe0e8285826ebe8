"""``gwi dlq``: what it shows, and what becomes of what is chosen."""

from __future__ import annotations

import json
import math

import pytest

from gwi_celery import audit, broker_for
from gwi_celery.cli.frame import Exit
from gwi_celery.errors import BrokerUnavailable
from gwi_celery.transport.death import Death
from tests.cli.conftest import FAILED, exported_and_imported
from tests.machine import Stopwatch


def runs(gwi_, *arguments: str) -> list[tuple[str, str]]:
    return sorted((row["tenant"], row["run_id"]) for row in gwi_.json("dlq", "list", *arguments))


def test_each_filter_finds_its_own(three):
    assert len(runs(three)) == 3
    assert runs(three, "--reason", "deadline") == [("acme", "r2")]
    assert runs(three, "--tenant", "bolt") == [("bolt", "r1")]
    assert runs(three, "--error", "NoMoney") == [("acme", "r1")]
    assert runs(three, "--text", "20 times") == [("bolt", "r1")]
    assert runs(three, "--task", "shop.other") == []
    assert runs(three, "--older-than", "1h") == []
    assert len(runs(three, "--within", "1h", "-Q", "celery")) == 3
    assert runs(three, "-Q", "other") == []
    assert three.json("dlq", "list", "--limit", "1")[0]["tenant"] == "bolt", "the latest"


def test_one_is_shown_with_all_that_is_known(three):
    [row] = three.json("dlq", "list", "--reason", "failed")
    shown = three.json("dlq", "show", row["id"])
    assert (shown["text"], shown["error"]) == ("NoMoney: no", FAILED.error)
    assert shown["traceback"] == FAILED.traceback
    assert (shown["attempts"], shown["deliveries"]) == (1, 1)
    assert ":" in shown["worker"]
    assert shown["expires_at"] > shown["died_at"] > shown["published_at"]
    assert three.json("dlq", "show", row["task_id"]) == shown, "by its task's id as well"
    assert "  NoMoney: no" in three("dlq", "show", row["id"])
    message = json.loads(three("dlq", "show", row["id"], "--message"))
    assert message["headers"]["task"] == "shop.invoice"
    assert three.json("dlq", "show", row["id"], "--message") == shown
    three("dlq", "show", "nobody", code=Exit.NOTHING)


def test_bulk_verbs_say_how_many_and_ask(three):
    three("dlq", "purge", "--tenant", "acme", code=Exit.REFUSED)
    assert "2 of 3 dead letters match" in three.err
    assert len(runs(three)) == 3
    three("dlq", "redrive", code=Exit.USAGE)
    three("dlq", "redrive", "--tenant", "nobody", "--yes", code=Exit.NOTHING)
    assert json.loads(three("dlq", "purge", "--tenant", "acme", "--yes", "--json")) == {"purged": 2}
    assert three.err == "2 of 3 dead letters match\n", "progress is for terminals"
    assert runs(three) == [("bolt", "r1")]
    assert [a.what for a in audit.entries(three.app)] == ["purge"]


def test_chosen_ones_go_back_to_their_queue(three):
    rows = three.json("dlq", "list")
    chosen = next(row for row in rows if row["reason"] == "deadline")
    assert three.json("dlq", "redrive", chosen["id"], "--yes") == {"redriven": 1}
    assert broker_for(three.app).size("celery").ready == 1
    assert ("acme", "r2") not in runs(three)
    assert three.json("dlq", "redrive", "--all", "--rate", "1000", "--yes") == {"redriven": 2}
    assert broker_for(three.app).size("celery").ready == 3
    three("dlq", "redrive", "--all", "--rate", "0", "--yes", code=Exit.NOTHING)


def test_a_bounded_rate_is_kept(gwi_):
    import time

    for n in range(3):
        gwi_.bury(FAILED, "no", run_id=f"r{n}")
    with Stopwatch() as watch:
        gwi_("dlq", "redrive", "--all", "--rate", "4", "--yes")
    assert watch.seconds < 5
    for n in range(6):
        gwi_.bury(FAILED, "no", run_id=f"s{n}", queue="slow")
    began = time.monotonic()
    gwi_("dlq", "redrive", "-Q", "slow", "--rate", "4", "--yes")
    assert time.monotonic() - began >= 1


def test_what_is_exported_can_be_imported_again_and_again(three, tmp_path):
    exported_and_imported(three, tmp_path)
    assert len(three("dlq", "export", "-").splitlines()) == 0


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("nonsense", "not JSON"),
        ('{"queue": "q"}', "needs exactly"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_imported(three, tmp_path, line, why):
    file = tmp_path / "dead.jsonl"
    three("dlq", "export", str(file))
    file.write_text(file.read_text() + line + "\n")
    three("dlq", "purge", "--all", "--yes")
    three("dlq", "import", str(file), code=Exit.USAGE)
    assert "line 4" in three.err
    assert why in three.err
    assert runs(three) == []


def test_a_number_that_no_store_can_keep_is_named_and_nothing_is_imported(three, tmp_path):
    file = tmp_path / "dead.jsonl"
    three("dlq", "export", str(file))
    *good, last = file.read_text().splitlines()
    three("dlq", "purge", "--all", "--yes")
    for name, value in (
        *(("priority", 2**63), ("priority", -(2**63) - 1), ("priority", 10**400)),
        *(("attempts", -1), ("attempts", 2**63), ("deliveries", 2**63)),
        *(("died_at", 1e300), ("died_at", math.nan), ("died_at", 10**400), ("died_at", -1)),
        *(("published_at", math.inf), ("expires_at", math.inf), ("expires_at", 10**400)),
        *(("id", "a/b"), ("id", "\ud800"), ("id", "")),
    ):
        wrong = json.dumps({**json.loads(last), name: value})
        file.write_text("\n".join([*good, wrong]))
        three("dlq", "import", str(file), code=Exit.USAGE)
        assert f"{file}: line 3 is no exported dead letter: its {name} is not" in three.err, (
            name,
            value,
        )
        assert runs(three) == []
    file.write_text("\n".join([*good, last]))
    assert three.json("dlq", "import", str(file)) == {"imported": 3}


def test_an_import_that_is_interrupted_says_what_is_there_and_goes_on(three, tmp_path, monkeypatch):
    file = tmp_path / "dead.jsonl"
    three("dlq", "export", str(file))
    three("dlq", "purge", "--all", "--yes")
    broker = broker_for(three.app)
    publish_many, left = broker.publish_many, iter([True])

    def unavailable(messages):
        if next(left, False):
            return publish_many(messages)
        raise BrokerUnavailable("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("gwi_celery.queues.lines._BATCH", 2)
        patch.setattr(broker, "publish_many", unavailable)
        three("dlq", "import", str(file), code=Exit.UNAVAILABLE)
    assert three.err == (
        f"Error: {file}: line 3 could not be imported: the disk is full. 2 lines were imported: import "
        "the file again, which leaves those out\n"
    )
    assert len(runs(three)) == 2
    assert three.json("dlq", "import", str(file)) == {"imported": 1}
    assert len(runs(three)) == 3


def test_a_number_that_is_out_of_range_is_a_usage_error(three):
    for command in ("dlq list", "jobs list"):
        three(*command.split(), "--limit", str(2**63), code=Exit.USAGE)
        assert "--limit" in three.err
    for rate in ("1e308", "1e-320", "nan"):
        three("dlq", "redrive", "--all", "--rate", rate, "--yes", code=Exit.USAGE)
        assert "give a number from" in three.err
    assert len(runs(three)) == 3


def test_a_file_that_can_not_be_used_is_named(three, tmp_path):
    three("dlq", "export", str(tmp_path / "none" / "dead.jsonl"), code=Exit.FAILED)
    assert "nothing was exported" in three.err
    assert "No such file or directory" in three.err
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    three("dlq", "import", str(binary), code=Exit.USAGE)
    assert (
        three.err == f"Error: nothing was imported: {binary} is not text: name an exported file\n"
    )


def test_a_table_fits_into_80_columns(three, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    [head, *rows] = three("dlq", "list").splitlines()
    assert head.split() == ["QUEUE", "ID", "REASON", "TASK", "TENANT", "RUN", "ERROR", "AGE"]
    assert [row.split()[:6] for row in rows] == [
        ["celery", "3", "deliveries", "shop.invoice", "bolt", "r1"],
        ["celery", "2", "deadline", "shop.invoice", "acme", "r2"],
        ["celery", "1", "failed", "shop.invoice", "acme", "r1"],
    ]
    assert max(map(len, [head, *rows])) <= 80


def test_no_text_of_anybodys_begins_a_line_or_moves_the_cursor(gwi_):
    gwi_.bury(Death("failed", "E\x1b[2J"), "x\ny", tenant_id="a\nb", run_id="r\x1b[31m")
    shown = gwi_("dlq", "list")
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 2
    assert "a\\nb" in shown
    [row] = gwi_.json("dlq", "list")
    assert "\x1b" not in gwi_("dlq", "show", row["id"])
