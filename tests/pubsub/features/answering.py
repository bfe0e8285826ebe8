"""A real gRPC server in this process that answers as it is told, for what the emulator can't do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

#: What a call is answered with: bytes of the answer, or a status and its details.
Answer = bytes | tuple[grpc.StatusCode, str]


class Server(grpc.GenericRpcHandler):
    """``answers``: RPC -> answer, or what makes one of (request bytes). ``calls`` counts them."""

    def __init__(self, answers: dict[str, Answer | Callable[[bytes], Answer]]) -> None:
        self.answers = answers
        self.calls: Counter[str] = Counter()
        self.endpoint = ""

    def service(self, details: Any) -> Any:
        rpc = details.method.rpartition("/")[2]
        if rpc not in self.answers:
            return None  # UNIMPLEMENTED

        def answer(request: bytes, context: Any) -> bytes:
            self.calls[rpc] += 1
            answer = self.answers[rpc]
            answer = answer(request) if callable(answer) else answer
            if isinstance(answer, bytes):
                return answer
            context.abort(*answer)
            raise AssertionError("abort() raises")

        return grpc.unary_unary_rpc_method_handler(answer)


@contextmanager
def serving(answers: dict[str, Answer | Callable[[bytes], Answer]]) -> Iterator[Server]:
    handler = Server(answers)
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers([handler])
    handler.endpoint = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield handler
    finally:
        server.stop(0).wait()
