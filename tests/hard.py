"""``python -m tests.hard [pytest's arguments]``: the suite ten times, and none of them may fail.

Three of them beside two processes that keep a CPU busy each, three in random order. What each took is
printed as it ends; the output of one that fails is kept, and where, is printed with it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

RUNS = [
    *(["plain"] * 4),
    *(["beside two busy processes"] * 3),
    *(["in random order"] * 3),
]
PYTEST = [sys.executable, "-m", "pytest", "-n", "7", "--dist", "loadgroup", "-m", "not slow"]


def run(kind: str, log: Path, arguments: list[str]) -> tuple[int, str]:
    """The exit code, and pytest's own summary."""
    random = ["-p", "randomly"] if kind == "in random order" else []
    with ExitStack() as stack:
        if kind == "beside two busy processes":
            for _ in range(2):
                busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
                stack.callback(busy.wait)
                stack.callback(busy.kill)
        with log.open("w") as output:
            status = subprocess.run(
                [*PYTEST, *random, *arguments], check=False, stdout=output, stderr=output
            ).returncode
    found = re.findall(r"^=* ?(\d+ .* in [\d.]+s.*?) ?=*$", log.read_text(), re.M)
    return status, found[-1] if found else "pytest printed nothing"


def main(arguments: list[str]) -> int:
    folder = Path(tempfile.mkdtemp(prefix="test-hard-"))
    red = 0
    for n, kind in enumerate(RUNS, 1):
        log, began = folder / f"{n}.log", time.monotonic()
        status, summary = run(kind, log, arguments)
        took = time.monotonic() - began
        where = f"  -> {log}" if status else ""
        print(f"{n:2}  {took:5.0f} s  {kind:26} {summary}{where}", flush=True)
        red += bool(status)
    print(f"{len(RUNS) - red} of {len(RUNS)} runs were green")
    return int(red > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
