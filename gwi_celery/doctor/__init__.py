"""Tests whether a real project behaves as this package assumes.

``python -m gwi_celery.doctor pubsub://my-project firestore://my-project`` takes six minutes, costs less
than a cent and leaves nothing behind. With ``--seconds 10`` it waits less, and sees less. Exits with 1 if
something doesn't hold that a broker or a store relies on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from gwi_celery.brokers.pubsub.options import parse
from gwi_celery.doctor import firestore, pubsub
from gwi_celery.doctor.findings import Finding
from gwi_celery.errors import ConfigurationError, GwiError
from gwi_celery.options import NUMBER, argument

__all__ = ["Finding", "examine", "main"]

#: Seconds that one check waits at most.
SECONDS = 360.0
#: Longest measurement of Firestore under load, seconds.
_LOAD = 10.0


def examine(
    urls: Sequence[str],
    seconds: float,
    report: Callable[[Finding], object],
    *,
    options: Mapping[str, Any] | None = None,
    more: Callable[[], Iterable[Finding]] = tuple,
    echo: str = "",
    echo_account: str = "",
) -> None:
    """Try each broker and store, and report each finding, always in the same order.

    First who asks and what that account may do, then what brokers do, ``more``, what stores do, and the
    echo service. Whatever ends it, what it made is deleted.

    Args:
        urls: ``pubsub://`` and ``firestore://``.
        seconds: The longest that one check waits.
        options: Of ``pubsub://``, beside those in the URLs.
        more: Further findings, which are asked for once the brokers have been tried.
        echo: URL of :mod:`gwi_celery.doctor.echo`, behind Cloud Run's IAM, if that is deployed.
        echo_account: The account that may invoke it.

    Raises ConfigurationError for another URL, before anything is made.
    """
    brokers: list[pubsub.Trial] = []
    stores: list[firestore.Trial] = []
    for url in urls:
        if url.startswith("pubsub:"):
            at = parse(url, options)
            brokers.append(pubsub.Trial(at, seconds, echo=echo, echo_account=echo_account))
        elif url.startswith("firestore:"):
            stores.append(firestore.Trial(url, min(seconds, _LOAD), report))
        else:
            raise ConfigurationError(
                f"{url!r}: write pubsub://my-project or firestore://my-project"
            )

    def findings() -> Iterator[Finding]:
        for broker in brokers:
            yield from broker.about()
        for store in stores:
            yield from store.about()
        for broker in brokers:
            yield from broker.run()
        yield from more()
        for store in stores:
            store.run()
        for broker in brokers:
            yield from broker.echoed()

    try:
        for finding in findings():
            report(finding)
    finally:
        for broker in brokers:
            broker.clean_up()


def written(
    urls: Sequence[str],
    seconds: float,
    as_json: bool,
    write: Callable[[str], object],
    **more: Any,
) -> bool:
    """Examine and write a report; whether all holds that must. ``more``: see :func:`examine`."""
    findings: list[Finding] = []

    def report(finding: Finding) -> None:
        findings.append(finding)
        if not as_json:
            write(str(finding))

    examine(urls, seconds, report, **more)
    broken = sum(finding.holds is False for finding in findings)
    if as_json:
        write(json.dumps([finding.as_json() for finding in findings], indent=1))
    else:
        write(f"{broken} broken" if broken else "all that is relied on holds")
    return not broken


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m gwi_celery.doctor",
        description="Does a real project behave as gwi_celery assumes?",
    )
    parser.add_argument("urls", nargs="+", metavar="URL", help="pubsub://P or firestore://P")
    parser.add_argument("--json", action="store_true", help="one JSON document at the end")
    parser.add_argument(
        "--seconds",
        type=argument(NUMBER, 1, 3600),
        default=SECONDS,
        help="of the longest check (default: %(default)g)",
    )
    parser.add_argument(
        "--echo", default="", metavar="URL", help="of gwi_celery.doctor.echo behind IAM"
    )
    parser.add_argument("--echo-account", default="", help="who may invoke that")
    options = parser.parse_args(argv)
    if bool(options.echo) != bool(options.echo_account):
        parser.error("--echo and --echo-account belong together: give both, or neither")
    try:
        holds = written(
            options.urls,
            options.seconds,
            options.json,
            lambda line: print(line, flush=True),
            echo=options.echo,
            echo_account=options.echo_account,
        )
    except GwiError as exc:
        print(exc, file=sys.stderr)
        return 2
    return 0 if holds else 1
