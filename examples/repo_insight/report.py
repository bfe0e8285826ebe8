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

from examples.repo_insight import charts

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
    """The whole HTML page."""
    name = _name(summary["repository"])
    totals = summary["totals"]
    body = _activity(summary) if totals["commits"] else "<p>There are no commits yet.</p>"
    return _PAGE.format(
        title=escape(name),
        subtitle=_subtitle(summary),
        tiles="".join(
            f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in _tiles(summary)
        ),
        body=body,
        notes="".join(f"<li>{note}</li>" for note in _notes(summary)),
        style=_STYLE,
    )


def _activity(summary: Mapping[str, Any]) -> str:
    weeks, _ = _drawn(summary)
    bars, size = charts.by_time([(day, (v[0],)) for day, v in weeks])
    lines, _ = charts.by_time([(day, v[1:]) for day, v in weeks])
    per = "week" if size == 1 else f"{size} weeks"
    authors, files = summary["authors"], summary["files"]
    top = [(a["name"] or "(no name)", a["commits"]) for a in authors[:10]]
    return "".join(
        [
            _section(f"Commits per {per}", charts.columns(bars, title="Commits", unit="commits")),
            _section(
                f"Lines per {per}",
                charts.up_and_down(lines, title="Lines added and removed"),
                '<span class="key added"></span>added <span class="key removed"></span>removed',
            ),
            '<div class="pair">',
            _section("Top authors", charts.ranking(top, title="Top authors", unit="commits")),
            _section(
                "Hours of the week",
                charts.week_of_hours(summary["hours"], title="Commits by hour of the week"),
                "authors' local time",
            ),
            "</div>",
            _section(
                "Authors",
                _table(
                    ["Author", "Commits", "", "Files", "Added", "Removed"],
                    [
                        _row(
                            a["name"] or "(no name)", a, share=a["commits"] / authors[0]["commits"]
                        )
                        for a in authors[:_ROWS]
                    ],
                ),
                _of(min(_ROWS, len(authors)), len(authors)),
            ),
            _section(
                "Most changed files",
                _table(
                    ["File", "Commits", "", "Added", "Removed"],
                    [
                        _row(f["path"], f, share=f["commits"] / files[0]["commits"], file=True)
                        for f in files[:_ROWS]
                    ],
                ),
                _of(min(_ROWS, len(files)), summary["totals"]["paths"]),
            ),
        ]
    )


def _tiles(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    totals = summary["totals"]
    return [
        ("commits", f"{totals['commits']:,}"),
        ("authors", f"{totals['authors']:,}"),
        ("lines added", charts.compact(totals["added"])),
        ("lines removed", charts.compact(totals["removed"])),
        ("files seen", ("≥ " if summary["files_approximate"] else "") + f"{totals['paths']:,}"),
        ("merges", f"{totals['merges']:,}"),
    ]


def _notes(summary: Mapping[str, Any]) -> list[str]:
    totals = summary["totals"]
    _, left_out = _drawn(summary)
    notes = [
        "A week is an ISO week in the author's time zone. Lines of a merge are counted with the "
        "commits that it merges. A file counts under the name it had at the time: "
        f"{totals['renames']:,} renames. Binary files have no lines: "
        f"{totals['binaries']:,} changes.",
    ]
    if summary["shallow"]:
        notes.append("This is a shallow clone: what is older counts into its oldest commits.")
    if left_out:
        notes.append(f"{left_out:,} commits with a date far from all others are not drawn.")
    if totals["undated"]:
        notes.append(f"{totals['undated']:,} commits have no readable date and are in no week.")
    if summary["files_approximate"]:
        notes.append(
            "Commits with very many files: the file ranking leaves out seldom changed ones."
        )
    return notes


def _drawn(summary: Mapping[str, Any]) -> tuple[list[tuple[Any, tuple[int, ...]]], int]:
    return charts.without_strays(
        [
            (charts.monday(w["week"]), (w["commits"], w["added"], w["removed"]))
            for w in summary["weeks"]
        ]
    )


def _subtitle(summary: Mapping[str, Any]) -> str:
    parts = []
    if summary["head"] is not None:
        parts.append(
            f"<code>{escape(summary['ref'])}</code> at <code>{summary['head'][:12]}</code>"
        )
    if summary["weeks"]:
        first, last = summary["weeks"][0]["week"], summary["weeks"][-1]["week"]
        parts.append(first if first == last else f"{first} to {last}")
    return " · ".join(parts)


def _section(title: str, content: str, aside: str = "") -> str:
    side = f"<small>{aside}</small>" if aside else ""
    return f"<section><h2>{title}{side}</h2>{content}</section>"


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(f"<th>{h}</th>" for h in head)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _row(name: str, counts: Mapping[str, Any], *, share: float, file: bool = False) -> str:
    first = f"<code>{_visible(name)}</code>" if file else _visible(name)
    files = "" if file else f"<td>{counts['files']:,}</td>"
    return (
        f"<tr><td>{first}</td><td>{counts['commits']:,}</td>"
        f'<td><i style="width:{max(share, 0.01):.1%}"></i></td>{files}'
        f'<td class="plus">+{counts["added"]:,}</td><td class="minus">−{counts["removed"]:,}</td>'
        "</tr>"
    )


def _of(shown: int, total: int) -> str:
    return f"{shown:,} of {total:,}" if shown < total else ""


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


_STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --dim: #66727f; --line: #e3e7ec; --page: #f5f7f9;
  --card: #fff; --commits: #3b6fb6; --added: #2f8f83; --removed: #cf6f3c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ed; --dim: #97a3b0; --line: #2c343d;
  --page: #12161b; --card: #1a2027; --commits: #6fa0e0; --added: #4fb3a5; --removed: #e08f60; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 40px 24px 64px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; }
h1 { font-size: 28px; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 0 0 14px; display: flex; align-items: baseline;
  justify-content: space-between; gap: 16px; }
small, .sub, .notes { color: var(--dim); }
small { font-size: 13px; font-weight: 400; }
.sub { margin: 6px 0 24px; }
code { font-family: ui-monospace, "SF Mono", "DejaVu Sans Mono", monospace; font-size: .88em;
  overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: repeat(6, 1fr); gap: 12px; margin: 0 0 20px; }
dl div, section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
dl div { padding: 14px 16px; display: flex; flex-direction: column-reverse; }
dt { color: var(--dim); font-size: 13px; }
dd { margin: 0; font-size: 24px; font-weight: 600; line-height: 1.25; }
section { padding: 18px 20px; margin-bottom: 20px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 20px; }
svg { display: block; width: 100%; height: auto; font-size: 12px; }
svg text { fill: var(--dim); }
svg .name { fill: var(--ink); }
.rule { stroke: var(--line); }
.axis { stroke: var(--dim); }
.commits { fill: var(--commits); }
rect.commits:hover, circle.commits:hover { opacity: .75; }
.added { fill: var(--added); }
.removed { fill: var(--removed); }
.cut { fill: var(--card); }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin: 0 5px 0 12px; }
.key.added { background: var(--added); }
.key.removed { background: var(--removed); }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { color: var(--dim); font-size: 13px; font-weight: 500; }
th, td { padding: 6px 0 6px 16px; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal; }
th:nth-child(3), td:nth-child(3) { width: 24%; }
td i { display: block; height: 10px; border-radius: 2px; background: var(--commits); }
.plus { color: var(--added); }
.minus { color: var(--removed); }
.notes { font-size: 13px; padding-left: 18px; }
@media (max-width: 760px) {
  section { overflow-x: auto; }
  svg.wide { min-width: 680px; }
  dl { grid-template-columns: repeat(3, 1fr); }
  .pair { grid-template-columns: 1fr; gap: 0; }
  td:nth-child(3), th:nth-child(3) { display: none; }
}
"""

# No script and nothing from outside can run in this page, whatever a commit holds.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}: repository insight</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="sub">{subtitle}</p>
<dl>{tiles}</dl>
{body}
<ul class="notes">{notes}</ul>
</main>
</body>
</html>
"""
