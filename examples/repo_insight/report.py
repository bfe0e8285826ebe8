"""Writes the report: the summary as JSON, and as one HTML page that needs nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path, PurePath
from typing import Any

#: Rows of each table.
_ROWS = 25


def write_report(folder: str, summary: Mapping[str, Any]) -> dict[str, str]:
    """Write ``report.json`` and ``report.html`` into ``folder``; their paths.

    Both are replaced in one move each, and their content depends on nothing but the summary: a
    second run of this step, after a kill in the middle of the first, leaves the same files.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    json_path, html_path = target / "report.json", target / "report.html"
    _replace(json_path, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    _replace(html_path, page(summary))
    return {"json": str(json_path), "html": str(html_path)}


def folder_name(*ids: str) -> str:
    """A folder's name for ids that may hold anything; no two lists of ids share one."""
    readable = "-".join(re.sub(r"[^A-Za-z0-9]+", "-", i).strip("-")[:24] for i in ids)
    exact = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
    return f"{readable}-{exact[:16]}"


def page(summary: Mapping[str, Any]) -> str:
    """The whole HTML page: totals, then a table each of weeks, authors and files."""
    totals = summary["totals"]
    at = f"{summary['ref']} at {summary['head'][:12]}" if summary["head"] else "no commits"
    weeks = [(w["week"], w) for w in summary["weeks"][-_ROWS:]]
    authors = [(a["name"] or "(no name)", a) for a in summary["authors"][:_ROWS]]
    files = [(f["path"], f) for f in summary["files"][:_ROWS]]
    tables = [("The last weeks", weeks), ("Authors", authors), ("Most changed files", files)]
    return _PAGE.format(
        title=_visible(_name(summary["repository"])),
        at=_visible(at),
        totals=" · ".join(f"{totals[key]:,} {label}" for key, label in _TOTALS),
        body="".join(_table(title, rows) for title, rows in tables)
        if totals["commits"]
        else "<p>There are no commits yet.</p>",
        notes="".join(f"<li>{note}</li>" for note in _notes(summary)),
    )


_TOTALS = [
    ("commits", "commits"),
    ("authors", "authors"),
    ("added", "lines added"),
    ("removed", "lines removed"),
    ("paths", "files"),
    ("merges", "merges"),
]


def _table(title: str, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    most = max((counts["commits"] for _, counts in rows), default=1)
    cells = "".join(
        f"<tr><td>{_visible(name)}</td><td>{counts['commits']:,}</td>"
        f'<td><i style="width:{counts["commits"] / most:.0%}"></i></td>'
        f"<td>+{counts['added']:,}</td><td>−{counts['removed']:,}</td></tr>"
        for name, counts in rows
    )
    return f"<h2>{title}</h2><table>{cells}</table>"


def _notes(summary: Mapping[str, Any]) -> list[str]:
    notes = ["A week is an ISO week in the author's time zone. Merges have no lines of their own."]
    if summary["shallow"]:
        notes.append("This is a shallow clone: what is older counts into its oldest commits.")
    if summary["totals"]["undated"]:
        notes.append(f"{summary['totals']['undated']:,} commits have no readable date.")
    if summary["files_approximate"]:
        notes.append("Seldom changed files are left out: there are more than these.")
    return notes


def _visible(text: str) -> str:
    """Escaped, with control characters (a newline in a file's name) shown rather than obeyed."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return escape(shown)


def _name(git_dir: str) -> str:
    path = PurePath(git_dir)
    name = path.parent.name if path.name == ".git" else path.name.removesuffix(".git")
    return name or git_dir


def _replace(path: Path, text: str) -> None:
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "w", encoding="utf-8", errors="backslashreplace") as f:
            f.write(text)
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


# No script and nothing from outside can run in this page, whatever a commit holds.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}: repository insight</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 40px auto; max-width: 60rem; padding: 0 24px; font: 15px/1.5 system-ui, sans-serif; }}
table {{ width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }}
td {{ padding: 4px 0 4px 16px; text-align: right; border-bottom: 1px solid #8884; }}
td:first-child {{ padding-left: 0; text-align: left; overflow-wrap: anywhere; }}
td:nth-child(3) {{ width: 30%; }}
i {{ display: block; height: 10px; min-width: 2px; background: #3b6fb6; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{at}</p>
<p><strong>{totals}</strong></p>
{body}
<ul>{notes}</ul>
</body>
</html>
"""
