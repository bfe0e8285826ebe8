"""The example's pure parts, on small real repositories."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from examples.repo_insight import history, report
from examples.repo_insight.analysis import Counts, Tally, ranked, summary, tally
from examples.repo_insight.history import (
    Commit,
    History,
    Listing,
    RepositoryError,
    list_commits,
    read_commits,
)
from examples.repo_insight.synthetic import make_repository


class Repo:
    """A working tree to commit into."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *args: str, env: dict[str, str] | None = None, stdin: bytes = b"") -> str:
        base = {
            "PATH": "/usr/bin:/bin:/usr/local/bin",
            "HOME": str(self.path),
            "GIT_AUTHOR_NAME": "Ada",
            "GIT_AUTHOR_EMAIL": "ada@example.org",
            "GIT_COMMITTER_NAME": "Ada",
            "GIT_COMMITTER_EMAIL": "ada@example.org",
            "GIT_AUTHOR_DATE": "2024-01-31T23:30:00+0100",
            "GIT_COMMITTER_DATE": "2024-01-31T23:30:00+0100",
        }
        done = subprocess.run(
            ["git", *args],
            cwd=self.path,
            env={**base, **(env or {})},
            input=stdin,
            capture_output=True,
            check=True,
        )
        return done.stdout.decode().strip()

    def commit(self, files: dict[str, bytes], **env: str) -> str:
        for name, content in files.items():
            target = self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", "work", env=env)
        return self.git("rev-parse", "HEAD")

    def raw_commit(self, author: bytes, encoding: bytes = b"") -> str:
        """A commit as bytes, for what git's own commands would refuse or change."""
        tree = self.git("mktree")
        extra = b"encoding " + encoding + b"\n" if encoding else b""
        raw = b"tree %s\nauthor %s\ncommitter c <c@example.org> 1700000000 +0000\n%s\nwork\n" % (
            tree.encode(),
            author,
            extra,
        )
        sha = self.git("hash-object", "-t", "commit", "-w", "--stdin", "--literally", stdin=raw)
        self.git("update-ref", "refs/heads/main", sha)
        return sha


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo(tmp_path / "repo")


def commits_of(path: Path, batch_size: int = 200) -> list[Commit]:
    listing = list_commits(str(path), batch_size=batch_size)
    with History(listing) as walk:
        return [c for number in range(len(listing.batches)) for c in walk.batch(number)]


def content_of(path: Path, batch_size: int = 200) -> dict:
    """As the job does it: each part through JSON."""
    listing = list_commits(str(path), batch_size=batch_size)
    total = Tally()
    with History(Listing.from_json(json.loads(json.dumps(listing.to_json())))) as walk:
        for number in range(len(listing.batches)):
            part = json.loads(json.dumps(tally(walk.batch(number))))
            total.add(Tally.from_json(part))
    return summary(listing, total)


# --- reading --------------------------------------------------------------------------------------


def test_a_commit_is_read_with_author_local_time_and_lines(repo: Repo) -> None:
    repo.commit({"a.txt": b"1\n2\n"})
    repo.commit({"a.txt": b"1\n3\n4\n"})

    newest, oldest = commits_of(repo.path)

    assert (newest.author, newest.email, newest.parents) == ("Ada", "ada@example.org", 1)
    assert newest.when is not None
    assert newest.when.isoformat() == "2024-01-31T23:30:00+01:00"
    assert newest.changes == (history.Change("a.txt", 2, 1),)
    assert oldest.changes == (history.Change("a.txt", 2, 0),)


@pytest.mark.parametrize(
    "name",
    [
        'say "hi".txt',
        "two\nlines",
        "tab\there",
        "1\t2\tlooks like numstat",
        "ünï/日本",
        "back\\slash",
    ],
)
def test_file_names_may_hold_anything(repo: Repo, name: str) -> None:
    repo.commit({name: b"x\n", "plain": b"y\n"})

    (commit,) = commits_of(repo.path)

    assert {c.path for c in commit.changes} == {name, "plain"}


def test_file_names_that_are_not_utf8_are_shown_escaped(repo: Repo) -> None:
    blob = repo.git("hash-object", "-w", "--stdin", stdin=b"x\n")
    entry = b"100644 %s 0\tcaf\xe9\n" % blob.encode()
    repo.git("update-index", "--index-info", stdin=entry)
    repo.git("commit", "-m", "work")

    (commit,) = commits_of(repo.path)

    assert commit.changes == (history.Change("caf\\xe9", 1, 0),)
    json.dumps(content_of(repo.path)).encode()


def test_a_rename_counts_under_its_new_name(repo: Repo) -> None:
    body = b"".join(b"line %d\n" % i for i in range(30))
    repo.commit({"old name": body})
    repo.git("mv", "old name", "new\nname")
    repo.commit({"new\nname": body + b"more\n", "other": b"x\n"})

    newest, _ = commits_of(repo.path)

    assert set(newest.changes) == {
        history.Change("new\nname", 1, 0, old_path="old name"),
        history.Change("other", 1, 0),
    }


def test_a_binary_file_has_no_lines(repo: Repo) -> None:
    repo.commit({"icon": b"\0\1\2" * 50})

    (commit,) = commits_of(repo.path)

    assert commit.changes == (history.Change("icon", None, None),)
    assert content_of(repo.path)["totals"]["binaries"] == 1


def test_a_merge_counts_as_a_commit_without_lines(repo: Repo) -> None:
    repo.commit({"base": b"x\n"})
    repo.git("switch", "--quiet", "-c", "topic")
    repo.commit({"topic": b"1\n2\n3\n"})
    repo.git("switch", "--quiet", "main")
    repo.commit({"main": b"1\n"})
    repo.git("merge", "--quiet", "--no-edit", "topic")

    totals = content_of(repo.path)["totals"]

    assert (totals["commits"], totals["merges"]) == (4, 1)
    assert (totals["added"], totals["files"]) == (5, 3)


def test_empty_commits_are_counted(repo: Repo) -> None:
    repo.commit({})
    repo.commit({})

    assert content_of(repo.path)["totals"]["commits"] == 2


@pytest.mark.parametrize(
    ("raw", "encoding", "shown"),
    [
        (b"Jos\xe9", b"", "José"),
        (b"Jos\xe9", b"ISO-8859-1", "José"),
        ("Жанна".encode("koi8-r"), b"KOI8-R", "Жанна"),
        ("山田".encode(), b"", "山田"),
        (b"", b"", ""),
    ],
)
def test_authors_in_old_encodings(repo: Repo, raw: bytes, encoding: bytes, shown: str) -> None:
    repo.raw_commit(raw + b" <who@example.org> 1700000000 +0000", encoding)

    (commit,) = commits_of(repo.path)

    assert commit.author == shown


@pytest.mark.parametrize(
    "date_field", [b"99999999999999999999 +0000", b"253402300800 +0000", b"0 -9999", b"nonsense"]
)
def test_impossible_dates_lose_no_commit(repo: Repo, date_field: bytes) -> None:
    repo.raw_commit(b"x <x@example.org> " + date_field)

    content = content_of(repo.path)

    assert content["totals"]["commits"] == 1
    assert content["totals"]["undated"] + sum(w["commits"] for w in content["weeks"]) == 1
    assert "1" in report.page(content)


def test_one_person_is_one_author_whatever_the_case_and_the_mailmap_holds(repo: Repo) -> None:
    repo.commit({"a": b"1\n"}, GIT_AUTHOR_EMAIL="Ada@Example.org", GIT_AUTHOR_NAME="ada l.")
    repo.commit({"a": b"2\n"}, GIT_AUTHOR_EMAIL="old@example.org")
    repo.commit({".mailmap": b"Ada Lovelace <ada@example.org> <old@example.org>\n"})

    (author,) = content_of(repo.path)["authors"]

    assert (author["name"], author["commits"]) == ("Ada", 3)


def test_only_the_committed_mailmap_counts(repo: Repo) -> None:
    repo.commit({"a": b"1\n"})
    (repo.path / ".mailmap").write_text("Somebody Else <ada@example.org>\n")

    (author,) = content_of(repo.path)["authors"]

    assert author["name"] == "Ada"


def test_the_users_configuration_changes_nothing(repo: Repo) -> None:
    body = b"".join(b"line %d\n" % i for i in range(30))
    repo.commit({"a": body, ".gitattributes": b"*.c diff=evil\n", "x.c": b"int x;\n"})
    repo.git("mv", "a", "b")
    repo.commit({"x.c": b"int y;\n"})
    before = content_of(repo.path)
    ran = repo.path / "ran"
    for name, value in {
        "diff.renames": "false",
        "diff.evil.textconv": f"touch {ran}; cat",
        "diff.evil.command": f"touch {ran}; true",
        "diff.external": f"touch {ran}; true",
        "log.showSignature": "true",
        "gpg.program": f"touch {ran}; true",
        "log.date": "relative",
        "color.ui": "always",
        "log.decorate": "full",
        "diff.submodule": "log",
    }.items():
        repo.git("config", name, value)

    assert content_of(repo.path) == before
    assert not ran.exists()


def test_variables_of_a_surrounding_git_hook_are_ignored(
    repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = repo.commit({"a": b"1\n"})
    Repo(tmp_path / "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))

    assert list_commits(str(repo.path)).head == head


# --- which repository -----------------------------------------------------------------------------


def test_bare_repositories_subfolders_git_folders_and_worktrees_all_work(
    repo: Repo, tmp_path: Path
) -> None:
    head = repo.commit({"sub/a": b"1\n"})
    repo.git("clone", "--quiet", "--bare", ".", str(tmp_path / "bare.git"))
    repo.git("worktree", "add", "--quiet", "--detach", str(tmp_path / "tree"))
    expected = content_of(repo.path)["totals"]

    for path in (repo.path / "sub", repo.path / ".git", tmp_path / "bare.git", tmp_path / "tree"):
        assert list_commits(str(path)).head == head
        assert content_of(path)["totals"] == expected


def test_an_empty_repository_gives_an_empty_report(repo: Repo) -> None:
    listing = list_commits(str(repo.path))
    content = content_of(repo.path)

    assert (listing.head, listing.commits, listing.batches) == (None, 0, ())
    assert content["totals"]["commits"] == 0
    assert "There are no commits yet" in report.page(content)


def test_a_head_without_commits_names_the_branches_there_are(repo: Repo) -> None:
    repo.commit({"a": b"1\n"})
    repo.git("symbolic-ref", "HEAD", "refs/heads/gone")

    with pytest.raises(RepositoryError, match=r"no commit named HEAD; there is main"):
        list_commits(str(repo.path))
    assert list_commits(str(repo.path), "main").commits == 1


@pytest.mark.parametrize("ref", ["nowhere", "--output=/tmp/x", "", "main:a"])
def test_a_ref_that_is_no_commit_is_an_error(repo: Repo, ref: str) -> None:
    repo.commit({"a": b"1\n"})

    with pytest.raises(RepositoryError, match="no commit named"):
        list_commits(str(repo.path), ref)


def test_a_folder_that_is_no_repository_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="not a git repository"):
        list_commits(str(tmp_path))


def test_a_path_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="not a folder"):
        list_commits(str(tmp_path / "nothing"))


def test_a_batch_size_below_one_is_an_error(repo: Repo) -> None:
    with pytest.raises(RepositoryError, match="at least one commit"):
        list_commits(str(repo.path), batch_size=0)


def test_without_git_the_error_says_so(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")

    with pytest.raises(RepositoryError, match="git is not installed"):
        list_commits(str(repo.path))


def test_a_shallow_clone_is_known_as_one(repo: Repo, tmp_path: Path) -> None:
    repo.commit({"a": b"1\n"})
    repo.commit({"a": b"2\n"})
    url = repo.path.as_uri()
    repo.git("clone", "--quiet", "--depth=1", url, str(tmp_path / "shallow"))

    listing = list_commits(str(tmp_path / "shallow"))

    assert (listing.shallow, listing.commits) == (True, 1)
    assert "shallow clone" in report.page(content_of(tmp_path / "shallow"))


def test_a_damaged_repository_is_an_error_and_not_a_smaller_count(repo: Repo) -> None:
    repo.commit({"a": b"1\n"})
    tree = repo.git("rev-parse", "HEAD^{tree}")
    repo.commit({"a": b"2\n"})
    (repo.path / ".git" / "objects" / tree[:2] / tree[2:]).unlink()

    with pytest.raises(RepositoryError, match="git failed on"):
        commits_of(repo.path)


# --- batches --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synthetic") / "repo.git"
    make_repository(path, commits=150, seed=3, weeks=20)
    return path


@pytest.mark.parametrize("batch_size", [1, 7, 149, 150, 151])
def test_the_report_does_not_depend_on_how_the_walk_is_cut(
    long_history: Path, batch_size: int
) -> None:
    assert content_of(long_history, batch_size) == content_of(long_history, 1000)


def test_a_walk_goes_on_at_any_batch(long_history: Path) -> None:
    listing = list_commits(str(long_history), batch_size=20)
    everything = [c.sha for c in commits_of(long_history)]

    with History(listing) as walk:
        third = [c.sha for c in walk.batch(3)]
        last = [c.sha for c in walk.batch(7)]

    assert third == everything[60:80]
    assert last == everything[140:]


def test_a_batch_that_was_passed_cannot_be_asked_for_again(long_history: Path) -> None:
    listing = list_commits(str(long_history), batch_size=20)
    with History(listing) as walk:
        walk.batch(2)
        with pytest.raises(ValueError, match="passed already"):
            walk.batch(1)


def test_a_history_that_changed_between_attempts_is_noticed(repo: Repo, tmp_path: Path) -> None:
    for i in range(4):
        repo.commit({"a": b"%d\n" % i})
    url = repo.path.as_uri()
    clone = tmp_path / "clone"
    repo.git("clone", "--quiet", "--depth=3", url, str(clone))
    listing = list_commits(str(clone), batch_size=2)
    repo.git("-C", str(clone), "fetch", "--quiet", "--unshallow")

    with History(listing) as walk, pytest.raises(RepositoryError, match="changed since"):
        list(walk.batch(1))


def test_an_unknown_commit_is_an_error(repo: Repo) -> None:
    repo.commit({"a": b"1\n"})
    with pytest.raises(RepositoryError, match="git failed on"):
        list(read_commits(str(repo.path / ".git"), ["0" * 40]))


def test_a_walk_that_is_left_early_leaves_no_git_behind(long_history: Path) -> None:
    listing = list_commits(str(long_history), batch_size=10)
    with History(listing) as walk:
        commits = walk.batch(0)
        next(commits)
        commits.close()  # type: ignore[attr-defined]  # a generator

    children = Path("/proc/self/task")
    if children.exists():
        ids = [p.read_text().split() for p in children.glob("*/children")]
        names = [Path(f"/proc/{i}/comm").read_text().strip() for group in ids for i in group]
        assert "git" not in names


def test_the_same_seed_makes_the_same_history(tmp_path: Path, long_history: Path) -> None:
    make_repository(tmp_path / "again.git", commits=150, seed=3, weeks=20)

    assert list_commits(str(tmp_path / "again.git")).head == list_commits(str(long_history)).head


# --- tallies --------------------------------------------------------------------------------------


def test_weeks_are_iso_weeks_in_the_authors_time(repo: Repo) -> None:
    # Monday 1 January 2024, 00:30 in Berlin, is still 2023-W52 in Greenwich.
    repo.commit({"a": b"1\n"}, GIT_AUTHOR_DATE="2024-01-01T00:30:00+0100")
    repo.commit({"a": b"2\n"}, GIT_AUTHOR_DATE="2023-12-31T23:30:00+0000")

    content = content_of(repo.path)

    assert [(w["week"], w["added"]) for w in content["weeks"]] == [("2023-W52", 1), ("2024-W01", 1)]
    assert content["hours"][0] == 1
    assert content["hours"][6 * 24 + 23] == 1


def test_only_the_least_changed_files_are_left_out(repo: Repo) -> None:
    total = Tally(files={f"f{i}": Counts(commits=i, files=i) for i in range(1, 11)})

    total.keep_top_files(3)

    assert list(total.files) == ["f10", "f9", "f8"]
    assert total.files_left_out == 7


def test_ranking_is_the_same_whatever_the_order() -> None:
    groups = [("b", Counts(1, 1, 1, 0)), ("a", Counts(1, 1, 0, 1)), ("c", Counts(1, 1, 9, 9))]

    assert [name for name, _ in ranked(groups)] == ["c", "a", "b"]
    assert ranked(groups) == ranked(groups[::-1])


def test_a_summary_of_too_few_commits_is_refused(repo: Repo) -> None:
    repo.commit({"a": b"1\n"})
    with pytest.raises(ValueError, match="0 commits were counted, 1 were listed"):
        summary(list_commits(str(repo.path)), Tally())


# --- the report -----------------------------------------------------------------------------------


def test_nothing_from_a_repository_becomes_markup(repo: Repo) -> None:
    evil = "<img src=x onerror=alert(1)>"
    repo.commit({f"{evil}.txt": b"x\n"}, GIT_AUTHOR_NAME="\"&<b>'")
    content = content_of(repo.path)
    content["repository"] = f"/srv/{evil}/.git"
    content["ref"] = evil
    content["authors"][0]["name"] = evil
    page = report.page(content)

    assert "<img" not in page
    assert "<b>" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


def test_the_page_needs_nothing_from_outside(long_history: Path) -> None:
    page = report.page(content_of(long_history))

    for forbidden in ("http:", "https:", "<script", "<link", "@import", "url("):
        assert forbidden not in page
    assert page.count("<table") == 3


def test_a_report_is_written_again_with_the_same_bytes(long_history: Path, tmp_path: Path) -> None:
    content = content_of(long_history)
    files = report.write_report(str(tmp_path / "out"), content)
    first = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    report.write_report(str(tmp_path / "out"), content)

    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == first
    assert set(first) == {"report.html", "report.json"}
    assert json.loads(Path(files["json"]).read_text("utf-8")) == content


def test_folder_names_are_safe_and_never_shared() -> None:
    ids = [("a/../b", "r"), ("a-b", "r"), ("a", "b-r"), ("", "é"), ("", "è"), ("x" * 2000, "..")]
    names = [report.folder_name(*pair) for pair in ids]

    assert len(set(names)) == len(names)
    for name in names:
        assert "/" not in name
        assert ".." not in name
        assert len(name) < 100
