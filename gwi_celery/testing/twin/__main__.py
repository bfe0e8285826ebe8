"""``python -m gwi_celery.testing.twin [--port 8085] [--lenient] [--set NAME=VALUE] [-- COMMAND]``

With ``--firestore HOST:PORT`` it is a Firestore twin: a proxy for the emulator at that address.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import os
import re
import select
import selectors
import shlex
import signal
import sys
from collections.abc import Callable

from gwi_celery.testing.emulators import exit_code, not_run
from gwi_celery.testing.twin import FIRESTORE_VARIABLES, PUBSUB_VARIABLES
from gwi_celery.testing.twin.behaviour import (
    FIRESTORE_LENIENT,
    FIRESTORE_STRICT,
    LENIENT,
    STRICT,
    SomeSwitches,
)
from gwi_celery.testing.twin.server import Server
from gwi_celery.text import from_json

_LAST_PORT = 65_535


def main(argv: list[str] | None = None) -> int:
    """Run a twin until Ctrl-C or SIGTERM, or for as long as a command takes."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="python -m gwi_celery.testing.twin",
        description="A Pub/Sub server for tests that behaves as Google documents its own.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8085, help="0: any (default: %(default)s)")
    parser.add_argument("--lenient", action="store_true", help="start with every switch off")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a switch")
    parser.add_argument(
        "--seed", type=int, default=0, help="repeats its faults (default: %(default)s)"
    )
    parser.add_argument(
        "--firestore", metavar="HOST:PORT", help="be a proxy for the Firestore emulator there"
    )
    parser.add_argument(
        "command",
        nargs="*",
        help="after --: run this against the twin, then stop; Ctrl-C and SIGTERM end it by SIGTERM",
    )
    options = parser.parse_args(arguments)
    if not 0 <= options.port <= _LAST_PORT:
        parser.error(f"--port {options.port}: write 0 to {_LAST_PORT}")
    if "--" in arguments and not options.command:
        parser.error("write a command after --, or leave -- out")
    try:
        server = _server(options)
    except ValueError as exc:
        parser.error(str(exc))
    variables = FIRESTORE_VARIABLES if options.firestore else PUBSUB_VARIABLES
    try:
        return asyncio.run(_run(server, variables, options.command))
    except RuntimeError as exc:
        print(f"{exc}: choose another --port, 0 for any, or another --host", file=sys.stderr)
        return 1


def _server(options: argparse.Namespace) -> Server:
    """Raises ValueError. Imports Google's types for the wanted twin only: they take long to load."""
    host = options.host.strip("[]")
    address = f"[{host}]:{options.port}" if ":" in host else f"{host}:{options.port}"
    if options.firestore is None:
        from gwi_celery.testing.twin.pubsub import PubSubServer

        behaviour = _switched(LENIENT if options.lenient else STRICT, options.set)
        return PubSubServer(address, behaviour, options.seed)
    if not re.fullmatch(r".+:\d+", options.firestore):
        raise ValueError(
            f"--firestore {options.firestore}: write HOST:PORT of a Firestore emulator"
        )
    from gwi_celery.testing.twin.firestore import FirestoreServer

    of_firestore = _switched(
        FIRESTORE_LENIENT if options.lenient else FIRESTORE_STRICT, options.set
    )
    return FirestoreServer(address, of_firestore, options.seed, options.firestore)


def _switched(behaviour: SomeSwitches, settings: list[str]) -> SomeSwitches:
    switches = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            switches[name] = from_json(value)
        except ValueError:
            raise ValueError(f"--set {setting}: write NAME=VALUE, as faults=0.01") from None
    return behaviour.changed(**switches)


async def _run(server: Server, variables: tuple[str, ...], command: list[str]) -> int:
    stopping = asyncio.Event()
    _on_signals(stopping.set)
    await server.start()
    try:
        if not command:
            for variable in variables:
                print(f"export {variable}={shlex.quote(server.address)}")
            print("# Ctrl-C stops it.", flush=True)
            await stopping.wait()
            return 0
        try:
            process = await asyncio.create_subprocess_exec(
                *command, env={**os.environ, **dict.fromkeys(variables, server.address)}
            )
        except OSError as exc:
            print(f"can't run {command[0]}: {exc.strerror}", file=sys.stderr)
            return not_run(exc)

        def end() -> None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()

        _on_signals(end)  # each time: at the second one a command may stop at once
        if stopping.is_set():
            end()
        return exit_code(await process.wait())
    finally:
        await server.stop()


def _on_signals(call: Callable[[], object]) -> None:
    """Call it at Ctrl-C and SIGTERM, instead of what was called before."""
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, call)


def _leave_out_clients() -> None:
    """Let Google's package be imported without its clients, which take a third of the start.

    For this process only, which uses the package's messages alone.
    """
    spec = importlib.util.find_spec("google.pubsub_v1")
    if spec is not None:
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)


#: Seconds by which a process that sleeps is woken late.
_LATE = 0.0002


class _Exact(selectors.DefaultSelector):
    """Waits as long as it is told: epoll, the default, rounds up to a whole millisecond.

    A long wait ends early by _LATE; the loop then waits for what is left.
    """

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None:
            timeout = max(timeout - _LATE if timeout > _LATE else timeout, 0)
        select.select([self.fileno()], [], [], timeout)
        return super().select(0)


class _Punctual(asyncio.DefaultEventLoopPolicy):
    """Event loops whose sleeps are exact."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(_Exact())


if __name__ == "__main__":
    _leave_out_clients()
    asyncio.set_event_loop_policy(_Punctual())
    sys.exit(main())
