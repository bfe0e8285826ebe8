"""Tests whether a real project behaves as this package assumes.

``python -m gwi_celery.doctor pubsub://my-project firestore://my-project`` takes seven minutes, costs less
than a cent and leaves nothing behind. With ``--seconds 10`` it waits less, and sees less.

It exits with 0 if all holds that a broker or a store relies on; with 1 if something doesn't (lines that
begin with BROKEN); with 2 if the command line or a URL is wrong, before anything is asked; with 130, 143
or 129 if a signal stopped it (Ctrl-C, SIGTERM, SIGHUP); with 141 if nobody reads its output any more.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final, TypeAlias

from gwi_celery.brokers.pubsub.options import parse
from gwi_celery.doctor import firestore, pubsub
from gwi_celery.doctor.findings import Finding
from gwi_celery.errors import ConfigurationError, GwiError
from gwi_celery.options import NUMBER, argument

__all__ = ["Finding", "examine", "main"]

_Trial: TypeAlias = pubsub.Trial | firestore.Trial
#: Seconds that one check waits at most.
SECONDS = 360.0
#: Longest measurement of Firestore under load, seconds.
_LOAD = 10.0
#: Added to a signal's number for the exit code, as shells do.
_SIGNALLED: Final = 128
#: The exit code if nobody reads the output, as shells have it of SIGPIPE.
_UNREAD: Final = 141
_EXITS: Final = (
    "Exits with 0 if all holds, 1 if something doesn't, 2 for wrong usage, and 128 and a signal's number "
    "if one stopped it; what it made is deleted then, too."
)


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
    echo service. Whatever ends it, what it made is deleted; what can't be is reported. In the main thread
    SIGINT, SIGTERM and SIGHUP end it with Stopped.

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

    def tell_left(trial: _Trial) -> None:
        for finding in trial.left_behind():
            report(finding)

    trials: list[_Trial] = [*brokers, *stores]
    with _stoppable() as unstoppable, ExitStack() as at_last:
        for trial in trials:
            at_last.callback(tell_left, trial)
        for trial in trials:
            at_last.callback(trial.clean_up)
        at_last.callback(unstoppable)
        for finding in findings():
            report(finding)


def written(
    urls: Sequence[str],
    seconds: float,
    as_json: bool,
    write: Callable[[str], object],
    **more: Any,
) -> bool:
    """Examine and write a report; whether all holds that must, and something does. ``more``: see
    :func:`examine`.

    Raises as that; what ends it early is reported, after what was found until then.
    """
    findings: list[Finding] = []

    def report(finding: Finding) -> None:
        findings.append(finding)
        if not as_json:
            write(str(finding))

    try:
        examine(urls, seconds, report, **more)
    except Stopped as exc:
        report(Finding("this run", False, "made to its end", str(exc), "run it again", "the same"))
        raise
    finally:
        if as_json and findings:
            write(json.dumps([finding.as_json() for finding in findings], indent=1))
    broken = sum(finding.holds is False for finding in findings)
    tried = any(finding.holds is not None for finding in findings)
    if not as_json:
        told = "all that is relied on holds" if tried else "nothing was tried"
        write(f"{broken} broken" if broken else told)
    return tried and not broken


class Stopped(SystemExit):
    """A signal ended the run. ``code`` is for the process to exit with."""

    def __init__(self, number: int) -> None:
        super().__init__(_SIGNALLED + number)
        self._name = signal.Signals(number).name

    def __str__(self) -> str:
        return f"stopped by {self._name}"


@contextmanager
def _stoppable() -> Iterator[Callable[[], None]]:
    """The first signal that is to end the process raises Stopped in the block, so that it cleans up.

    Gives a function from whose call on none does, but for Ctrl-C. Only in the main thread.
    """
    wanted = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")]
    if threading.current_thread() is not threading.main_thread():
        wanted = []
    handled = [each for each in wanted if each and signal.getsignal(each) is not signal.SIG_IGN]

    def go_on() -> None:
        for each in handled:
            again = signal.default_int_handler if each is signal.SIGINT else signal.SIG_IGN
            signal.signal(each, again)

    def stop(number: int, frame: object) -> None:
        go_on()
        raise Stopped(number)

    before = {each: signal.signal(each, stop) for each in handled}
    try:
        yield go_on
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m gwi_celery.doctor",
        description="Does a real project behave as gwi_celery assumes?",
        epilog=_EXITS,
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
    except BrokenPipeError:
        # At its end Python would flush it, and fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _UNREAD
    except KeyboardInterrupt:  # the second one, which has cut the cleaning up short
        return _SIGNALLED + signal.SIGINT
    return 0 if holds else 1
