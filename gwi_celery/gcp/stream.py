"""A long-lived bidirectional call inside the fork gate, which a separate thread reads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc

from gwi_celery.gcp import fork_gate


class BidiStream:
    """One open call. Its owner is the LongCall of :mod:`gwi_celery.gcp.fork_gate`."""

    def __init__(self, requests: queue.SimpleQueue[Any], call: Any) -> None:
        self._requests = requests
        self._call = call

    @classmethod
    def open(
        cls,
        start: Callable[[Iterator[Any]], Any],
        requests: Iterable[Any],
        *,
        on_response: Callable[[Any], object],
        on_end: Callable[[Exception | None], object],
        thread_name: str,
        heartbeat: tuple[float, Any] | None = None,
    ) -> BidiStream | None:
        """Start the call; None while a fork is in progress. Raises what ``start`` raises.

        Args:
            start: Gets an iterator of requests, and returns gRPC's call.
            requests: The first requests.
            on_response: Called on the stream's thread; if it raises, the call is cancelled.
            on_end: Called last, once, still inside the gate: with the error that ended the call, or None
                if it was half-closed, cancelled, or ended by the server.
            heartbeat: Seconds of silence, and the request that is then sent.
        """
        if not fork_gate.try_enter():
            return None
        waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for request in requests:
            waiting.put(request)
        stream = None
        try:
            stream = cls(waiting, start(_sent(waiting, heartbeat)))
            threading.Thread(
                target=stream._read, args=(on_response, on_end), name=thread_name, daemon=True
            ).start()
        except BaseException:
            if stream is not None:  # the process can start no more threads
                stream.cancel()
            fork_gate.leave()
            raise
        return stream

    def send(self, request: Any) -> None:
        self._requests.put(request)

    def half_close(self) -> None:
        """Send no more requests: the server sends what it has, and ends the call."""
        self._requests.put(None)

    def cancel(self) -> None:
        """End the call now, whatever the server still has to send."""
        self._requests.put(None)
        self._call.cancel()

    def _read(
        self, on_response: Callable[[Any], object], on_end: Callable[[Exception | None], object]
    ) -> None:
        error: Exception | None = None
        try:
            for response in self._call:
                on_response(response)
        except grpc.RpcError as exc:
            if exc.code() is not grpc.StatusCode.CANCELLED:
                error = exc
        except Exception as exc:
            error = exc
            self._call.cancel()
        finally:
            self._requests.put(None)  # ends the thread that sends the requests
            try:
                on_end(error)
            finally:
                fork_gate.leave()


def _sent(waiting: queue.SimpleQueue[Any], heartbeat: tuple[float, Any] | None) -> Iterator[Any]:
    """The requests up to the first None, with heartbeats in between."""
    silence, request = heartbeat or (None, None)
    while True:
        try:
            sent = waiting.get(timeout=silence)
        except queue.Empty:
            sent = request
        if sent is None:
            return
        yield sent
