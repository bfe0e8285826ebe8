"""Makes a real git repository with a long, made-up history, fast: through ``git fast-import``.

The same seed gives the same commits, hash for hash.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

#: Names as they come: not all ASCII, with quotes and ampersands.
_AUTHORS = (
    ("Ada Okafor", "ada@example.org"),
    ("Björn Sjöström", "bjorn@example.org"),
    ("Chiara Conti", "chiara@example.org"),
    ("山田 花子", "hanako@example.org"),
    ("Dmitri Volkov", "dmitri@example.org"),
    ("Elif Yılmaz", "elif@example.org"),
    ('Farid "Q" Haddad', "farid@example.org"),
    ("Gwen O'Neill", "gwen@example.org"),
    ("Hugo & Sons", "hugo@example.org"),
    ("Inès Moreau", "ines@example.org"),
    ("José Pérez", "jose@example.org"),
    ("release-bot", "bot@example.org"),
)
_ZONES = ("+0000", "+0100", "+0200", "+0900", "-0500", "+0530")
_AREAS = ("core", "api", "web", "docs", "tests", "tools/build", "tools/release notes")
_NOUNS = ("index", "parser", "session", "queue", "report", "cache", "schema", "client", "router")
_WORDS = ("alpha", "beta", "gamma", "delta", "omega", "merge", "split", "value", "total", "limit")
_START = 1_640_995_200  # 1 January 2022
_WEEK = 7 * 24 * 3600


def make_repository(path: Path, *, commits: int, seed: int, weeks: int = 160) -> None:
    """Create a bare repository of exactly ``commits`` commits at ``path``, with branch main."""
    rng = random.Random(seed)  # noqa: S311 made-up data, not a secret
    subprocess.run(
        ["git", "init", "--quiet", "--bare", "--initial-branch=main", str(path)], check=True
    )
    with subprocess.Popen(
        ["git", "--git-dir", str(path), "fast-import", "--quiet", "--done"], stdin=subprocess.PIPE
    ) as git:
        assert git.stdin is not None
        for piece in _stream(rng, commits, weeks):
            git.stdin.write(piece)
        git.stdin.write(b"done\n")
    if git.returncode:
        raise RuntimeError(f"git fast-import failed with code {git.returncode}")


def _stream(rng: random.Random, commits: int, weeks: int) -> Iterator[bytes]:
    """The whole history, in the language of fast-import. Marks number the commits from 1."""
    files: dict[str, list[str]] = {}
    branch: tuple[int, bytes] | None = None  # a commit beside main that waits to be merged
    main = 0
    for number, when in enumerate(_times(rng, commits, weeks), 1):
        last = number == commits
        merge = branch is not None and (last or rng.random() < 0.3)
        aside = branch is None and main > 0 and not last and rng.random() < 0.06
        yield _header(rng, number, when, "refs/heads/topic" if aside else "refs/heads/main")
        if main:
            yield f"from :{main}\n".encode()
        if aside:
            topic = _modify(f"topics/{number}.txt", "".join(_new_lines(rng, 12)))
            branch = number, topic
            yield topic
            continue
        if branch is not None and merge:
            yield f"merge :{branch[0]}\n".encode() + branch[1]
            branch = None
        else:
            yield from _changes(rng, files, number)
        main = number
    yield b"reset refs/heads/topic\nfrom 0000000000000000000000000000000000000000\n"


def _header(rng: random.Random, number: int, when: int, ref: str) -> bytes:
    place = rng.choices(range(len(_AUTHORS)), weights=range(2 * len(_AUTHORS), 0, -2))[0]
    name, email = _AUTHORS[place]
    who = f"{name} <{email}> {when} {_ZONES[place % len(_ZONES)]}"
    message = f"{rng.choice(_WORDS)} {rng.choice(_NOUNS)}\n"
    return (
        f"commit {ref}\nmark :{number}\nauthor {who}\ncommitter {who}\n"
        f"data {len(message)}\n{message}"
    ).encode()


def _changes(rng: random.Random, files: dict[str, list[str]], number: int) -> Iterator[bytes]:
    kind = rng.random()
    if kind < 0.02 and files:
        old = rng.choice(sorted(files))
        new = f"{rng.choice(_AREAS)}/{rng.choice(_NOUNS)}_{number}.py"
        files[new] = files.pop(old)
        yield f'R "{old}" "{new}"\n'.encode()
    if kind > 0.98:
        yield _modify(f"assets/icon {number % 40}.bin", b"\0" + rng.randbytes(400))
    if kind > 0.995:
        yield _modify('docs/<b>bold</b> & "quoted"\n.md', f"{number}\n")
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
        path = f"{rng.choice(_AREAS)}/{rng.choice(_NOUNS)}{rng.randrange(12)}.py"
        lines = files.setdefault(path, _new_lines(rng, rng.randrange(5, 60)))
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(lines) + 1)
            lines[at : at + rng.randrange(0, 4)] = _new_lines(rng, rng.randrange(0, 6))
        del lines[150:]
        yield _modify(path, "".join(lines))


def _modify(path: str, content: str | bytes) -> bytes:
    raw = content.encode() if isinstance(content, str) else content
    quoted = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'M 100644 inline "{quoted}"\ndata {len(raw)}\n'.encode() + raw + b"\n"


def _new_lines(rng: random.Random, count: int) -> list[str]:
    return [f"{' '.join(rng.choices(_WORDS, k=4))} {rng.randrange(10_000)}\n" for _ in range(count)]


def _times(rng: random.Random, commits: int, weeks: int) -> list[int]:
    """Growing times, mostly in working hours, in weeks that are busy or quiet by turns."""
    busy = [0.3 + rng.random() + (1.5 if week % 13 in (10, 11) else 0) for week in range(weeks)]
    times = []
    for week in rng.choices(range(weeks), weights=busy, k=commits):
        day = rng.choices(range(7), weights=(9, 10, 10, 9, 7, 2, 2))[0]
        hour = min(max(int(rng.gauss(14, 3.5)), 0), 23)
        # The epoch's first day was a Thursday; 3 January 2022, two days on from _START, a Monday.
        monday = _START + 2 * 24 * 3600 + week * _WEEK
        times.append(monday + day * 24 * 3600 + hour * 3600 + rng.randrange(3600))
    return sorted(times)
