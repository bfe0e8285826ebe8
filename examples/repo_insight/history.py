"""Reads a repository's history through git, in batches that are the same on every attempt.

Everything goes through ``git rev-list`` and ``git log --numstat -z``: with ``-z`` a file name may
hold quotes, tabs and newlines. Memory is bounded by one batch, whatever the history's length.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import islice
from pathlib import Path
from typing import IO, Any

#: Variables that would point git at another repository (they are set inside a git hook), or make
#: it fetch or ask.
_ENVIRONMENT = {
    "LC_ALL": "C",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_LAZY_FETCH": "1",
}

#: One NUL-ended field each: hash, author's name and address (by the mailmap), date, parents.
_FORMAT = "tformat:%H%x00%aN%x00%aE%x00%ad%x00%P"
_FIELDS = 5

#: All that a user's or the repository's own configuration could change about the output, pinned;
#: and nothing that the repository names as a program is run (textconv, external diff, gpg).
_LOG = (
    "log",
    "--no-walk=unsorted",
    "--stdin",
    "--no-diff-merges",
    "--no-show-signature",
    "--no-ext-diff",
    "--no-textconv",
    "--no-color",
    "--find-renames=50%",
    "-l1000",
    "--diff-algorithm=myers",
    "--ignore-submodules=none",
    "--encoding=UTF-8",
    "--date=raw",
    "--numstat",
    "-z",
    f"--format={_FORMAT}",
)

_NUMSTAT = re.compile(rb"(\d+|-)\t(\d+|-)\t(.*)", re.DOTALL)
_RAW_DATE = re.compile(r"(\d+) ([+-])(\d{2})(\d{2})")


class RepositoryError(ValueError):
    """The path is no readable git repository, or its history is not what it was."""


@dataclass(frozen=True)
class Change:
    """One file in one commit. ``added`` and ``removed`` are lines; None for a binary file."""

    path: str
    added: int | None
    removed: int | None
    #: The name before, if the commit renamed the file.
    old_path: str | None = None


@dataclass(frozen=True)
class Commit:
    sha: str
    author: str
    email: str
    #: The author's own local time; None if the commit's date can't be one.
    when: datetime | None
    parents: int
    #: Empty for a merge: its lines were counted with the commits that it merges.
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Listing:
    """What is to be walked: the commits that ``head`` reaches, newest first, cut into batches."""

    git_dir: str
    #: The commit the walk starts from; None in a repository without commits.
    head: str | None
    ref: str
    commits: int
    batch_size: int
    #: The first commit of each batch. A later attempt lists the history anew and compares.
    batches: tuple[str, ...]
    #: Whether older history is cut off (``git clone --depth``).
    shallow: bool

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "batches": list(self.batches)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Listing:
        return cls(**{**data, "batches": tuple(data["batches"])})


def list_commits(repo: str, ref: str = "HEAD", batch_size: int = 200) -> Listing:
    """Find the repository and list its history.

    Args:
        repo: A working tree (or a folder in one), a ``.git`` folder or a bare repository.
        ref: Branch, tag or commit.
        batch_size: Commits in a batch.

    Raises:
        RepositoryError: There is no such folder, repository or ref, or git can't read it.
    """
    if batch_size < 1:
        raise RepositoryError(f"a batch must hold at least one commit, not {batch_size}")
    git_dir = find_git_dir(repo)
    head = _resolve(git_dir, ref, repo)
    starts: list[str] = []
    commits = 0
    if head is not None:
        with _rev_list(git_dir, head) as shas:
            for commits, sha in enumerate(shas, 1):
                if (commits - 1) % batch_size == 0:
                    starts.append(sha)
    return Listing(
        git_dir=git_dir,
        head=head,
        ref=ref,
        commits=commits,
        batch_size=batch_size,
        batches=tuple(starts),
        shallow=_git(["rev-parse", "--is-shallow-repository"], git_dir).stdout.strip() == b"true",
    )


def find_git_dir(repo: str) -> str:
    """The absolute path of the repository's git folder. Raises RepositoryError."""
    path = Path(repo).expanduser()
    if not path.is_dir():
        raise RepositoryError(f"{repo} is not a folder: give the path of a git repository")
    done = _git(["rev-parse", "--absolute-git-dir"], cwd=path)
    if done.returncode:
        reason = _one_line(done.stderr)
        if "not a git repository" in reason:
            reason = "give the path of a working tree or of a bare repository"
        raise RepositoryError(f"{repo} is not a git repository that can be read: {reason}")
    return os.fsdecode(done.stdout.rstrip(b"\n"))


class History(AbstractContextManager["History"]):
    """The batches of a listing, read from the repository one after the other.

    The list of commits is streamed from one ``git rev-list``, started with the first batch that is
    asked for: a job that goes on at batch 500 skips the hashes before it, and reads no diffs for
    them.
    """

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._stream: AbstractContextManager[Iterator[str]] | None = None
        self._shas: Iterator[str] = iter(())
        self._next = 0

    def batch(self, number: int) -> Iterator[Commit]:
        """The commits of one batch. ``number`` must grow from call to call.

        Raises:
            RepositoryError: The history isn't the one that was listed (the repository was
                replaced, or a shallow clone deepened): counts would not add up.
        """
        listing = self._listing
        if self._stream is None:
            assert listing.head is not None  # an empty history has no batches
            self._stream = _rev_list(listing.git_dir, listing.head)
            self._shas = self._stream.__enter__()
        skipped = number - self._next
        if skipped < 0:
            raise ValueError(f"batch {number} was passed already")
        size = listing.batch_size
        for _ in islice(self._shas, skipped * size):
            pass
        shas = list(islice(self._shas, size))
        self._next = number + 1
        expected = min(size, listing.commits - number * size)
        if len(shas) != expected or shas[0] != listing.batches[number]:
            raise RepositoryError(
                f"the history of {listing.git_dir} changed since it was listed: start a new run"
            )
        return read_commits(listing.git_dir, shas, mailmap=f"{listing.head}:.mailmap")

    def __exit__(self, *exc: object) -> None:
        if self._stream is not None:
            self._stream.__exit__(None, None, None)
            self._stream = None


def read_commits(git_dir: str, shas: Sequence[str], mailmap: str = "") -> Iterator[Commit]:
    """The named commits, in the order given. Raises RepositoryError unless git shows each once."""
    order = iter(shas)
    # A bare view of the repository: what lies in a working tree (.mailmap, .gitattributes) may
    # change between two batches, what is committed can't.
    options = ["-c", "core.bare=true", "-c", "mailmap.file=", "-c", f"mailmap.blob={mailmap}"]
    with tempfile.TemporaryFile() as names:
        names.write("".join(sha + "\n" for sha in shas).encode())
        names.seek(0)
        with _running(git_dir, [*options, *_LOG], stdin=names) as out:
            for commit in _parse(_split(out)):
                if commit.sha != next(order, None):
                    raise RepositoryError(f"git showed {commit.sha} out of turn")
                yield commit
    missing = next(order, None)
    if missing is not None:
        raise RepositoryError(f"git did not show {missing}: the repository may be damaged")


# --- parsing --------------------------------------------------------------------------------------


def _parse(tokens: Iterator[bytes]) -> Iterator[Commit]:
    """Commits from NUL-ended tokens.

    A commit is its header fields, then per file ``added TAB removed TAB path``; of a rename the
    path is empty and two more tokens follow, the old and the new one. The first file of a commit
    has a newline before it. A header starts with a hash, so without a tab.
    """
    token = next(tokens, None)
    while token is not None:
        header = [token, *islice(tokens, _FIELDS - 1)]
        if len(header) < _FIELDS:
            raise RepositoryError("git's answer ended within a commit")
        changes: list[Change] = []
        token = next(tokens, None)
        while token is not None and (m := _NUMSTAT.fullmatch(token.removeprefix(b"\n"))):
            added, removed, path = m.groups()
            old_path = None
            if not path:
                old_path = _file_name(next(tokens))
                path = next(tokens)
            changes.append(Change(_file_name(path), _lines(added), _lines(removed), old_path))
            token = next(tokens, None)
        sha, name, email, date, parents = header
        yield Commit(
            sha=sha.decode(),
            author=_person(name),
            email=_person(email),
            when=_local_time(date.decode("latin-1")),
            parents=len(parents.split()),
            changes=tuple(changes),
        )


def _lines(count: bytes) -> int | None:
    return None if count == b"-" else int(count)


def _file_name(raw: bytes) -> str:
    r"""A path as text. Bytes that aren't UTF-8 are shown as ``\xff``: JSON has no other form."""
    return raw.decode("utf-8", "backslashreplace")


def _person(raw: bytes) -> str:
    """A name as text. Git re-encodes what declares its encoding; the rest is likely Latin-1."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _local_time(date: str) -> datetime | None:
    """The author's wall clock from ``1700000000 +0100``; None for what is no date."""
    m = _RAW_DATE.fullmatch(date)
    if m is None:
        return None
    seconds, sign, hours, minutes = m.groups()
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    if offset >= timedelta(hours=24):  # seen in the wild, and no time zone
        offset = timedelta(0)
    zone = timezone(-offset if sign == "-" else offset)
    try:
        return datetime.fromtimestamp(int(seconds), zone)
    except (OverflowError, ValueError, OSError):
        return None


# --- running git ----------------------------------------------------------------------------------


def _resolve(git_dir: str, ref: str, repo: str) -> str | None:
    """The commit that ``ref`` names; None for HEAD of a repository that has no commits at all."""
    done = _git(
        ["rev-parse", "--verify", "--quiet", "--end-of-options", ref + "^{commit}"], git_dir
    )
    if done.returncode == 0:
        return done.stdout.decode().strip()
    refs = _git(["for-each-ref", "--count=5", "--format=%(refname:short)"], git_dir)
    names = refs.stdout.decode("utf-8", "replace").split()
    if ref == "HEAD" and not names:
        return None
    raise RepositoryError(
        f"{repo} has no commit named {ref}"
        + (f"; there is {', '.join(names)}: name one as the ref" if names else "")
    )


@contextmanager
def _rev_list(git_dir: str, head: str) -> Iterator[Iterator[str]]:
    with _running(git_dir, ["rev-list", head], stdin=None) as out:
        yield (line.decode().rstrip("\n") for line in out)


@contextmanager
def _running(git_dir: str, args: list[str], stdin: IO[bytes] | None) -> Iterator[IO[bytes]]:
    """A git process's output, streamed. Raises RepositoryError if git fails.

    Left early (the lease is lost, the worker stops), git is killed rather than drained.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            ["git", "--git-dir", git_dir, *args],
            stdin=stdin if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_environment(),
        )
        assert process.stdout is not None
        problem: RepositoryError | None = None
        drained = False
        try:
            try:
                yield process.stdout
            except RepositoryError as exc:
                problem = exc  # git's own words, if it died, tell more
            drained = process.stdout.read(1) == b""
        finally:
            if not drained:
                process.kill()
            process.stdout.close()
            process.wait()
        if drained and process.returncode:
            errors.seek(0)
            raise RepositoryError(f"git failed on {git_dir}: {_one_line(errors.read())}")
        if problem is not None:
            raise problem


def _git(
    args: list[str], git_dir: str | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    where = ["--git-dir", git_dir] if git_dir is not None else []
    try:
        return subprocess.run(
            ["git", *where, *args], cwd=cwd, env=_environment(), capture_output=True, check=False
        )
    except FileNotFoundError as exc:
        raise RepositoryError("git is not installed, or not on the PATH") from exc


def _environment() -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {**mine, **_ENVIRONMENT}


def _split(out: IO[bytes]) -> Iterator[bytes]:
    """The NUL-ended pieces of a stream, without holding all of it."""
    rest = b""
    while chunk := out.read(1 << 16):
        *pieces, rest = (rest + chunk).split(b"\0")
        yield from pieces
    if rest:
        raise RepositoryError("git's answer ended within a field")


def _one_line(stderr: bytes) -> str:
    lines = stderr.decode("utf-8", "replace").split("\n")
    return " ".join(line.strip() for line in lines if line.strip()) or "no reason given"
