"""What all commands of ``gwi`` share: their output, their exit codes, and asking before a change.

A command declares its columns (:class:`Shape`) and returns rows. They are a table for people, or with
``--json`` an array whose schema ``gwi schema`` prints. In a pipe a table is not cut to any width.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import IntEnum
from typing import Any, Final, NoReturn

import click
from kombu.exceptions import OperationalError

from gwi_celery.errors import (
    BrokerUnavailable,
    ConfigurationError,
    GwiError,
    InvalidCall,
    NotFound,
    StoreUnavailable,
    UnknownName,
)
from gwi_celery.integration import integration

#: Least width of a column that is shown whole, unless there is no room at all: a task's id.
_WHOLE: Final = 36
#: Width of a table in a pipe, where nothing is folded or cut.
_ANY_WIDTH: Final = 100_000
#: Longest time that an option takes, seconds: 100 years, which every database can subtract from today.
_LONGEST: Final = 36_525 * 86_400.0


class Exit(IntEnum):
    """How a command ends, for scripts."""

    OK = 0
    #: It could not be done, and trying again won't help.
    FAILED = 1
    #: The command line, or a setting, is wrong.
    USAGE = 2
    #: There is nothing of that name, or nothing that matches.
    NOTHING = 3
    #: It was not confirmed.
    REFUSED = 4
    #: The broker or the store can't be used now: try again.
    UNAVAILABLE = 5
    #: ``doctor`` found something to mend.
    PROBLEMS = 6


_EXITS: Final[tuple[tuple[type[Exception], Exit], ...]] = (
    (BrokerUnavailable, Exit.UNAVAILABLE),
    (StoreUnavailable, Exit.UNAVAILABLE),
    (NotFound, Exit.NOTHING),
    (UnknownName, Exit.NOTHING),
    (ConfigurationError, Exit.USAGE),
    (InvalidCall, Exit.USAGE),
    (GwiError, Exit.FAILED),
    (OperationalError, Exit.UNAVAILABLE),
)


class Ended(click.ClickException):
    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(printable(message))
        self.exit_code = int(code)  # type: ignore[misc] # of this one


def end(code: Exit, message: str) -> NoReturn:
    """End the command with that code, and the message on stderr."""
    raise Ended(code, message)


@dataclass(frozen=True)
class Column:
    """One field of a row. ``kind`` is its JSON type; with a ``?`` it may be null."""

    name: str
    kind: str = "string"
    #: Its heading in a table; "": it is in JSON only.
    title: str | None = None
    #: How it is shown: age, time, text (which may have several lines), or as it is.
    show: str = ""
    #: Whether all of it is shown, however long: ids, which people copy.
    whole: bool = False

    @property
    def head(self) -> str:
        return self.name.replace("_", " ") if self.title is None else self.title

    def schema(self) -> dict[str, Any]:
        kind, null = self.kind.removesuffix("?"), self.kind.endswith("?")
        return {"type": [kind, "null"] if null else kind}


@dataclass(frozen=True)
class Shape:
    """The rows of one command."""

    name: str
    columns: tuple[Column, ...]
    #: Shown one field a line, and as one object rather than an array.
    single: bool = False

    def schema(self) -> dict[str, Any]:
        """JSON Schema of what ``--json`` prints."""
        row = {
            "type": "object",
            "properties": {column.name: column.schema() for column in self.columns},
            "required": [column.name for column in self.columns],
            "additionalProperties": False,
        }
        form = row if self.single else {"type": "array", "items": row}
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": f"celery gwi {self.name} --json",
            **form,
        }


def options(*of: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """One decorator for several ``click.option``; help shows them in that order."""
    return lambda function: functools.reduce(lambda f, option: option(f), reversed(of), function)


#: Command -> what it prints with ``--json``.
SHAPES: Final[dict[str, Shape]] = {}


def command(
    group: click.Group, name: str, *columns: Column, single: bool = False
) -> Callable[[Callable[..., Any]], click.Command]:
    """A command of ``group`` that takes the app first, and returns rows of these columns, or None."""
    full = name if group.name == "gwi" else f"{group.name} {name}"
    shape = SHAPES.setdefault(full, Shape(full, columns, single)) if columns else None

    def decorate(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def run(
            ctx: click.Context, /, as_json: bool = False, watch: float | None = None, **given: Any
        ) -> None:
            with reporting():
                app: Any = ctx.obj.app
                app.finalize()
                app.loader.import_default_modules()
                integration(app)
                try:
                    while True:
                        rows = function(app, **given)
                        if shape is not None and rows is not None:
                            show(shape, rows, as_json=as_json, clear=bool(watch))
                        if not watch:
                            return
                        time.sleep(watch)
                except KeyboardInterrupt:
                    if not watch:  # that is how watching ends
                        raise

        made = click.command(name)(click.pass_context(run))
        if shape is not None:
            made = click.option("--json", "as_json", is_flag=True, help="For programs.")(made)
        if shape is not None and not single:
            watch = click.option("--watch", type=Span(0.1), help="Again after each such time (5s).")
            made = watch(made)
        group.add_command(made)
        return made

    return decorate


def failed(exc: GwiError | OperationalError) -> Ended:
    """How a command ends that met this error."""
    return Ended(next(code for error, code in _EXITS if isinstance(exc, error)), str(exc))


class reporting:
    """Turns this package's errors, and Kombu's of a broker, into a line on stderr and an exit code."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, exc: Any, tb: Any) -> None:
        if isinstance(exc, (GwiError, OperationalError)):
            raise failed(exc) from exc


# --- output ---------------------------------------------------------------------------------------


def show(shape: Shape, rows: Any, *, as_json: bool, clear: bool = False) -> None:
    found: list[Mapping[str, Any]] = [rows] if shape.single else list(rows)
    made = [{column.name: row[column.name] for column in shape.columns} for row in found]
    if clear:
        click.clear()
    if as_json or not _has_rich():
        click.echo(json.dumps(made[0] if shape.single else made, indent=2))
    elif shape.single:
        _fields(shape, made[0])
    else:
        _table(shape, made)


def _has_rich() -> bool:
    try:
        import rich  # noqa: F401
    except ImportError:
        click.echo("for tables: pip install 'gwi-celery[cli]'", err=True)
        return False
    return True


def _console() -> Any:
    from rich.console import Console

    tty = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(
        file=sys.stdout,
        width=None if tty else _ANY_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=not tty,
    )


def _table(shape: Shape, rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.text import Text

    console = _console()
    columns = [column for column in shape.columns if column.head]
    cells = [{column.name: _cell(column, row[column.name]) for column in columns} for row in rows]
    longest = {c.name: max((len(row[c.name]) for row in cells), default=0) for c in columns}
    table = table_of(columns, longest, console.width)
    for row in cells:
        table.add_row(*(Text(row[column.name]) for column in columns))
    console.print(table, soft_wrap=False)


def table_of(columns: Sequence[Column], longest: Mapping[str, int], width: int) -> Any:
    """An empty table of rich's, without lines: it can be read, and cut by other programs."""
    from rich.table import Table

    widths, gap = fitted(columns, longest, width)
    table = Table(
        box=None, pad_edge=False, header_style="bold", show_edge=False, padding=(0, gap, 0, 0)
    )
    for column in columns:
        numeric = column.kind.removesuffix("?") in ("integer", "number") and column.show != "time"
        table.add_column(
            column.head.upper(),
            width=widths[column.name],
            justify="right" if numeric else "left",
            overflow="fold" if column.whole else "ellipsis",
            no_wrap=not column.whole,
        )
    return table


def fitted(
    columns: Sequence[Column], longest: Mapping[str, int], width: int
) -> tuple[dict[str, int], int]:
    """The width of each column, and the gap between them, so that a table fits if it can.

    Rich alone would shorten ids, which people copy. So the other columns are narrowed first, the widest
    before the rest, down to the width of their heads; then ids are folded.
    """
    widths = {c.name: max(len(c.head), longest.get(c.name, 0)) for c in columns}
    for gap in (2, 1):
        excess = sum(widths.values()) + gap * (len(columns) - 1) - width
        if excess <= 0:
            return widths, gap
    # A number or a time that is cut would be a wrong one.
    texts = {c.name for c in columns if c.kind.removesuffix("?") in ("string", "array", "object")}
    least = {c.name: len(c.head) if c.name in texts else widths[c.name] for c in columns}
    for floor in ({**least, **{c.name: _WHOLE for c in columns if c.whole}}, least):
        while excess > 0:
            name = max(widths, key=lambda name: widths[name] - floor[name])
            if widths[name] <= floor[name]:
                break
            widths[name] -= 1
            excess -= 1
    return widths, 1


def _fields(shape: Shape, row: Mapping[str, Any]) -> None:
    columns = [column for column in shape.columns if column.head]
    width = max(len(column.head) for column in columns)
    for column in columns:
        text = shown(column, row[column.name])
        if "\n" in text:
            lines = "\n".join(f"    {line}" for line in text.rstrip("\n").split("\n"))
            click.echo(f"{column.head}:\n{lines}")
        else:
            click.echo(f"{column.head:<{width}}  {text}".rstrip())


def _cell(column: Column, value: Any) -> str:
    """The value in a table, where only a text of this package begins a new line."""
    text = shown(column, value)
    return text if column.show == "text" else text.replace("\n", "\\n")


def shown(column: Column, value: Any) -> str:
    """The value for people. No text can move the cursor; it may have several lines."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if column.show == "age":
        return span(value)
    if column.show == "time":
        return when(value)
    if isinstance(value, (list, dict)):
        return printable(json.dumps(value, ensure_ascii=False))
    if isinstance(value, float):
        return f"{value:g}"
    return printable(str(value))


def printable(text: str) -> str:
    """With control characters spelt out, except for line ends."""
    safe = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in safe)


def span(seconds: float) -> str:
    """``45s``, ``12m``, ``3h20m``, ``5d``."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02}h"


def when(at: float) -> str:
    """In UTC, to the second, as in logs."""
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")


class Span(click.ParamType):  # type: ignore[type-arg] # not in every release
    """``90``, ``45s``, ``10m``, ``3h``, ``2d`` as seconds, from ``least`` to ``most``."""

    name = "time"

    def __init__(self, least: float = 0.0, most: float = _LONGEST) -> None:
        self._least, self._most = least, most

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        text = str(value)
        units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
        number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
        try:
            found = float(number) * units[unit]
        except ValueError:
            self.fail(f"{text!r} is not a length of time: write 45s, 10m, 3h or 2d", param, ctx)
        if not self._least <= found <= self._most:
            bounds = f"{self._least:g} to {self._most:.0f} seconds"
            self.fail(f"{text!r} is not a length of time of {bounds}", param, ctx)
        return found


#: An option of a length of time.
SPAN: Final = Span()
#: How much a list shows.
limited = click.option("--limit", type=click.IntRange(1, 10**9), default=100, show_default=True)


# --- before a change ------------------------------------------------------------------------------

yes = click.option("-y", "--yes", is_flag=True, help="Don't ask.")


def confirm(deed: str, matching: int, total: int, *, sure: bool, what: str) -> None:
    """Say how many match; go on only if some do, and the user agrees."""
    line = f"{matching} of {total} {what}"
    if not matching:
        end(Exit.NOTHING, f"{line}: nothing to {deed}")
    click.echo(line, err=True)
    if sure:
        return
    if not sys.stdin.isatty():
        end(
            Exit.REFUSED, f"nothing was done: say --yes to {deed} them, as nobody can be asked here"
        )
    if not click.confirm(f"{deed} {matching}?", err=True):
        end(Exit.REFUSED, "nothing was done")


class Progress:
    """A progress bar on stderr, if that is a terminal."""

    def __init__(self, deed: str, total: int) -> None:
        self._bar: Any = None
        if sys.stderr.isatty():  # click would write the label all the same
            self._bar = click.progressbar(length=total, label=deed, file=sys.stderr)

    def __enter__(self) -> Callable[[int], object]:
        if self._bar is None:
            return lambda steps: None
        self._bar.__enter__()
        update: Callable[[int], object] = self._bar.update
        return update

    def __exit__(self, *exc: Any) -> None:
        if self._bar is not None:
            self._bar.__exit__(*exc)
