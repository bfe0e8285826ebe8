"""Adds commits up: totals, and per author, ISO week, file and hour of the week.

A :class:`Tally` is a sum, so it can be made in parts: one per batch of commits, each recorded as
JSON, added up at the end in any grouping with the same result.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from examples.repo_insight.history import Commit, Listing

#: Files that one part keeps. Only a batch that touches more (an imported tree, say) is cut down to
#: those with most commits and lines, and says so; totals, authors and weeks are always exact.
FILES_KEPT = 5_000

#: The same for the whole: beyond twice as many paths, the least changed ones go.
FILES_KEPT_IN_ALL = 200_000

HOURS_OF_WEEK = 7 * 24


@dataclass
class Counts:
    """What a group of commits changed. ``files`` counts a file once per commit that changed it."""

    commits: int = 0
    files: int = 0
    added: int = 0
    removed: int = 0

    def add(self, other: Counts) -> None:
        self.commits += other.commits
        self.files += other.files
        self.added += other.added
        self.removed += other.removed


@dataclass
class Author:
    #: As in the newest commit.
    name: str
    email: str
    counts: Counts = field(default_factory=Counts)


@dataclass
class Tally:
    """A sum over commits."""

    totals: Counts = field(default_factory=Counts)
    merges: int = 0
    renames: int = 0
    #: Changes of binary files, which have no lines.
    binaries: int = 0
    #: Commits whose date can't be read; they are in no week.
    undated: int = 0
    #: By e-mail address in lower case, or by name where there is none.
    authors: dict[str, Author] = field(default_factory=dict)
    #: By ISO week, "2024-W05", in the author's time zone.
    weeks: dict[str, Counts] = field(default_factory=dict)
    files: dict[str, Counts] = field(default_factory=dict)
    #: Commits by hour, from Monday 00:00 to Sunday 23:00, in the author's time zone.
    hours: list[int] = field(default_factory=lambda: [0] * HOURS_OF_WEEK)
    #: Seldom changed files that a very large batch left out of ``files``.
    files_left_out: int = 0

    def count(self, commit: Commit) -> None:
        """Add one commit. Commits are to come newest first, for the authors' names."""
        change = Counts(commits=1)
        for file in commit.changes:
            one = Counts(1, 1, file.added or 0, file.removed or 0)
            self.files.setdefault(file.path, Counts()).add(one)
            change.files += 1
            change.added += one.added
            change.removed += one.removed
            self.renames += file.old_path is not None
            self.binaries += file.added is None
        self.totals.add(change)
        self.merges += commit.parents > 1
        key = commit.email.lower() or commit.author
        author = self.authors.setdefault(key, Author(commit.author, commit.email))
        author.counts.add(change)
        if commit.when is None:
            self.undated += 1
            return
        year, week, day = commit.when.isocalendar()
        self.weeks.setdefault(f"{year:04}-W{week:02}", Counts()).add(change)
        self.hours[(day - 1) * 24 + commit.when.hour] += 1

    def add(self, older: Tally) -> None:
        """Add another part, of commits older than these."""
        self.totals.add(older.totals)
        self.merges += older.merges
        self.renames += older.renames
        self.binaries += older.binaries
        self.undated += older.undated
        self.files_left_out += older.files_left_out
        for key, author in older.authors.items():
            mine = self.authors.setdefault(key, Author(author.name, author.email))
            mine.counts.add(author.counts)
        for week, counts in older.weeks.items():
            self.weeks.setdefault(week, Counts()).add(counts)
        for path, counts in older.files.items():
            self.files.setdefault(path, Counts()).add(counts)
        self.hours = [a + b for a, b in zip(self.hours, older.hours, strict=True)]
        if len(self.files) > 2 * FILES_KEPT_IN_ALL:
            self.keep_top_files(FILES_KEPT_IN_ALL)

    def keep_top_files(self, limit: int = FILES_KEPT) -> None:
        """Forget the least changed files beyond ``limit``, so that the part stays small."""
        if len(self.files) > limit:
            self.files_left_out += len(self.files) - limit
            self.files = dict(ranked(self.files.items())[:limit])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Tally:
        return cls(
            **{
                **data,
                "totals": Counts(**data["totals"]),
                "authors": {
                    key: Author(a["name"], a["email"], Counts(**a["counts"]))
                    for key, a in data["authors"].items()
                },
                "weeks": {week: Counts(**c) for week, c in data["weeks"].items()},
                "files": {path: Counts(**c) for path, c in data["files"].items()},
            }
        )


def tally(commits: Iterable[Commit]) -> dict[str, Any]:
    """The tally of one batch, as JSON."""
    total = Tally()
    for commit in commits:
        total.count(commit)
    total.keep_top_files()
    return total.to_json()


def ranked(groups: Iterable[tuple[str, Counts]]) -> list[tuple[str, Counts]]:
    """Most commits first, then most lines, then by name: the same order on every run."""
    return sorted(groups, key=lambda g: (-g[1].commits, -g[1].added - g[1].removed, g[0]))


def summary(listing: Listing, total: Tally, *, top_files: int = 100) -> dict[str, Any]:
    """The report's content as JSON. The same history gives the same bytes.

    Raises:
        ValueError: The tally isn't one of all the listing's commits, each once.
    """
    if total.totals.commits != listing.commits:
        raise ValueError(
            f"{total.totals.commits} commits were counted, {listing.commits} were listed"
        )
    authors = sorted(
        total.authors.values(),
        key=lambda a: (-a.counts.commits, -a.counts.added - a.counts.removed, a.name, a.email),
    )
    return {
        "repository": listing.git_dir,
        "ref": listing.ref,
        "head": listing.head,
        "shallow": listing.shallow,
        "totals": {
            **asdict(total.totals),
            "merges": total.merges,
            "renames": total.renames,
            "binaries": total.binaries,
            "undated": total.undated,
            "authors": len(total.authors),
            "paths": len(total.files),
        },
        "authors": [{"name": a.name, "email": a.email, **asdict(a.counts)} for a in authors],
        "weeks": [{"week": w, **asdict(c)} for w, c in sorted(total.weeks.items())],
        "hours": total.hours,
        "files": [{"path": p, **asdict(c)} for p, c in ranked(total.files.items())[:top_files]],
        # Whether very large batches left seldom changed files out: "paths" is then a lower bound.
        "files_approximate": total.files_left_out > 0,
    }
