"""What all commands of ``gwi`` have in common: tables of 80 columns, schemas, completion."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
import jsonschema_rs
import pytest
from celery.bin.celery import celery
from click.shell_completion import ShellComplete
from kombu.exceptions import OperationalError

from gwi_celery import jobs
from gwi_celery.cli import gwi
from gwi_celery.cli.frame import SHAPES, Column, Exit, show, shown
from gwi_celery.cli.root import COMMANDS
from tests.cli.conftest import Gwi, vanished

for name in COMMANDS:  # each module names its shapes
    gwi.get_command(click.Context(gwi), name)

_ID = "0f2b8f8e-54a1-4d0e-9c5f-0123456789ab"
_VALUES: dict[str, Any] = {
    **{"string": "a text of some length, such as", "integer": 12_345, "number": 98_765.4},
    **{"boolean": True, "array": ["one", "two"], "object": {"plan": "free"}},
}


def row(shape: Any) -> dict[str, Any]:
    def value(column: Column) -> Any:
        if column.whole:
            return _ID
        return _VALUES[column.kind.removesuffix("?")]

    return {column.name: value(column) for column in shape.columns}


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_a_table_fits_into_80_columns_and_json_is_as_its_schema_says(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = SHAPES[name]
    monkeypatch.setenv("COLUMNS", "80")
    made: Any = row(shape) if shape.single else [row(shape)] * 2
    show(shape, made, as_json=True)
    jsonschema_rs.validate(shape.schema(), json.loads(capsys.readouterr().out))
    show(shape, made, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    if shape.single:  # a field a line, which may be long
        assert lines
        return
    assert max(map(len, lines)) <= 80
    for column in shape.columns:
        assert column.head.upper() in lines[0], "no column gives way to another"
        if column.head and column.kind.removesuffix("?") in ("integer", "number"):
            assert shown(column, _VALUES[column.kind.removesuffix("?")]) in lines[1], column.name
    ids = [column for column in shape.columns if column.whole and column.head]
    if len(ids) == 1 and name != "queues list":
        assert all(_ID in line for line in lines[1:]), "an id can be copied"


def test_every_command_that_prints_rows_takes_json() -> None:
    without = {"push-to", "scaler", "schema", "serve", "init", "limits set"}

    def commands(group: click.Group, path: tuple[str, ...] = ()) -> Any:
        context = click.Context(group)
        for name in group.list_commands(context):
            made = group.get_command(context, name)
            assert made is not None
            yield (*path, name), made
            if isinstance(made, click.Group):
                yield from commands(made, (*path, name))

    plain = {
        path[0] if len(path) == 1 else " ".join(path)
        for path, made in commands(gwi)
        if not any("--json" in param.opts for param in made.params)
        and not (isinstance(made, click.Group) and not made.invoke_without_command)
    }
    assert plain <= without


def test_json_is_one_document_by_its_schema_and_nothing_on_an_error(
    three: Gwi, tmp_path: Path
) -> None:
    good = (
        *("dlq list", "dlq show 1 --message", f"dlq export {tmp_path}/x", "dlq redrive 1 -y"),
        *("dlq purge 2 -y", f"dlq import {tmp_path}/x", "jobs list", "locks list", "limits list"),
        *("queues list", "queues pause celery", "queues resume celery", "delayed list"),
        *("workers --timeout 0.1s", "config --all", "cleanup"),
    )
    for line in good:
        three.json(*line.split())
    json.loads(three("doctor", "--json", code=Exit.PROBLEMS))
    bad = {
        Exit.NOTHING: ("dlq show X", "jobs show X --tree", "limits clear --all -y"),
        Exit.REFUSED: ("dlq purge --all",),
        Exit.USAGE: (
            *(
                "dlq show",
                "dlq redrive --all -y --rate inf",
                "dlq list --within 1e300d",
                "doctor --live",
                "doctor --echo https://echo.example",
            ),
            *("queues list --watch nan", "workers --timeout inf", "doctor --seconds 0"),
        ),
    }
    for code, lines in bad.items():
        for line in lines:
            assert three(*line.split(), "--json", code=code) == "", line
            assert "Error: " in three.err
    three("serve", "--loglevel", "LOUD", code=Exit.USAGE)


def test_a_broker_that_a_call_can_t_reach_is_a_sentence_and_not_a_traceback(
    gwi_: Gwi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is Kombu's error, once it has tried again, and not one of this package."""

    def replay(*args: Any, **kwargs: Any) -> None:
        raise OperationalError("the broker was locked: try again")

    monkeypatch.setattr(jobs, "replay", replay)
    id = vanished(gwi_, "r1")
    jobs.cancel(id, app=gwi_.app)
    assert gwi_("jobs", "replay", id, "-y", code=Exit.UNAVAILABLE) == ""
    assert gwi_.err.endswith("Error: the broker was locked: try again\n")


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        (["gwi"], "dl", ["dlq"]),
        (["gwi", "dlq"], "re", ["redrive"]),
        (["gwi", "dlq", "redrive"], "--from-", ["--from-step", "--from-start"]),
        (["gwi", "dlq", "list", "--reason"], "dead", ["deadline"]),
        (["gwi", "jobs", "list", "--status"], "w", ["waiting"]),
    ],
)
def test_a_shell_completes_commands_options_and_choices(
    words: list[str], incomplete: str, expected: list[str]
) -> None:
    """docs/operating.md says how to have it."""
    if celery.get_command(click.Context(celery), "gwi") is None:  # a checkout that is not installed
        celery.add_command(gwi, "gwi")
    completed = ShellComplete(celery, {}, "celery", "_CELERY_COMPLETE")
    found = [item.value for item in completed.get_completions(words, incomplete)]
    assert found == expected
    assert os.environ.get("_CELERY_COMPLETE") is None


@pytest.mark.parametrize(
    "command",
    [
        *("jobs show X", "jobs show X --tree", "jobs explain X", "jobs cancel X -y"),
        *("jobs replay X -y", "jobs fork X --run r", "dlq show X", "dlq redrive X -y"),
        *("dlq purge X -y", "dlq purge -Q X -y"),
        *(
            "delayed now X -y",
            "delayed cancel X -y",
            "delayed now -Q X --all -y",
        ),
        *("limits set X --max-running 2", "limits clear X -y", "locks release X X -y"),
        *("queues pause X", "queues resume X"),
    ],
)
def test_an_unknown_name_has_one_exit_code(gwi_: Gwi, command: str) -> None:
    assert gwi_(*command.split(), code=Exit.NOTHING) == ""
    assert gwi_.err.startswith("Error: ")
