"""A TCP proxy of loopback that adds a delay on the way to the server: ``python -m benchmarks.delay``.

One delay for each request, as a longer way would add to each round trip. In a process of its own, so
that it takes nothing from what is measured. Prints its address and ends when its input does.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.side import ROOT

_CHUNK = 1 << 16


@contextmanager
def delayed(endpoint: str, seconds: float) -> Iterator[str]:
    """``host:port`` of a proxy to ``endpoint``; the endpoint itself without a delay."""
    if not seconds:
        yield endpoint
        return
    proxy = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.delay", endpoint, str(seconds)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert proxy.stdin is not None
    assert proxy.stdout is not None
    try:
        yield proxy.stdout.readline().strip()
    finally:
        proxy.stdin.close()
        proxy.wait(timeout=10)
        proxy.stdout.close()


async def _serve(endpoint: str, seconds: float) -> None:
    host, _, port = endpoint.rpartition(":")

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(
            _copy(reader, server_writer, seconds), _copy(server_reader, writer, 0.0)
        )

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    own_host, own_port = server.sockets[0].getsockname()
    print(f"{own_host}:{own_port}", flush=True)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.read)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    """What comes in goes out ``seconds`` later, in order; one chunk doesn't wait for another's."""
    loop = asyncio.get_running_loop()
    try:
        while chunk := await reader.read(_CHUNK):
            if seconds:
                loop.call_later(seconds, writer.write, chunk)
            else:
                writer.write(chunk)
        await asyncio.sleep(seconds)
    except ConnectionError:
        pass
    finally:
        writer.close()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], float(sys.argv[2])))
