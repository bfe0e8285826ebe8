"""``python -m benchmarks [embedded|transport|store|jobs|waiting] [--quick]``, ``... soak``

Prints figures and ratios measured in this one run, and whether the marks were met. The exit code
tells only whether something broke: a slow machine is no failure.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

#: Name -> what it measures.
BENCHMARKS = {
    "embedded": "our embedded transport beside Redis, SQLAlchemy and memory",
    "transport": "our Pub/Sub transport beside Kombu's gcpubsub, Redis and the raw client",
    "twin": "our Pub/Sub transport beside gcpubsub on the strict twin, 20 ms away",
    "store": "reliable tasks on Firestore beside plain ones and a naive protocol",
    "jobs": "jobs.find() among 100,000 jobs of 500 tenants on SQLite",
    "soak": "mixed jobs for minutes or hours: whether memory, files and descriptors level off",
    "newcomer": "from a checkout to the first job and the first test, as docs/quickstart.md has it",
    "costs": "what a job of each kind calls, writes and is billed, counted by the twins",
    "scale": "a model: what jobs cost, and which limits end it, at 10 to 100,000 a second",
    "waiting": "waiting for a result in Firestore: by listening, and by asking now and then",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="; ".join(f"{name}: {what}" for name, what in BENCHMARKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="?", choices=BENCHMARKS, default="embedded")
    parser.add_argument("--quick", action="store_true", help="fewer calls: a minute, and noisier")
    if sys.argv[1:2] == ["soak"]:
        return _soak(sys.argv[2:])
    options = parser.parse_args()
    code: int = import_module(f"benchmarks.{options.what}").main(options.quick)
    return code


def _soak(argv: list[str]) -> int:
    from benchmarks import soak

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks soak",
        description=soak.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    soak.arguments(parser)
    return soak.main(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
