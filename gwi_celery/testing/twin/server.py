"""A twin's gRPC server: Google's services, and one by which tests control the twin.

That one is ``gwi.testing.Twin/Control``. It takes a JSON object with a ``verb`` and answers with another;
:class:`gwi_celery.testing.twin.Twin` has a method for each verb.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import grpc

from gwi_celery.testing.twin.checks import left_out
from gwi_celery.text import from_json

CONTROL = "/gwi.testing.Twin/Control"

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Two servers on one port would share its calls.
    ("grpc.so_reuseport", 0),
]


class _LeftOut(grpc.GenericRpcHandler):  # grpc has no types
    """Answers every call that no other handler knows."""

    def service(self, handler_call_details: Any) -> Any:
        refused = left_out(handler_call_details.method.removeprefix("/"))

        async def refuse(requests: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, str(refused))

        return grpc.stream_stream_rpc_method_handler(refuse)


class Server:
    """Listens on one address. Its coroutines run on one event loop, which owns all of its state."""

    def __init__(self, address: str) -> None:
        #: ``host:port``; the port is the real one once it listens.
        self.address = address
        self._server: Any = None

    def handlers(self) -> list[Any]:
        """gRPC's handlers of the services behind it."""
        raise NotImplementedError  # each twin has its own

    async def start(self) -> None:
        """Listen. Raises RuntimeError if the port is taken, or the host isn't this machine's."""
        self._server = grpc.aio.server(options=_OPTIONS)
        handlers = [*self.handlers(), self._control_handler(), _LeftOut()]
        self._server.add_generic_rpc_handlers(handlers)
        try:
            port = self._server.add_insecure_port(self.address)
        except RuntimeError as exc:
            raise RuntimeError(f"can't listen on {self.address}") from exc
        self.address = f"{self.address.rpartition(':')[0]}:{port}"
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    def _control_handler(self) -> Any:
        async def control(request: dict[str, Any], context: Any) -> dict[str, Any]:
            verb = getattr(self, f"_do_{request.pop('verb', '')}", None)
            answer: dict[str, Any] | None = None
            try:
                if verb is None:
                    raise ValueError("there is no such verb")
                answer = verb(**request)
            except (TypeError, ValueError) as exc:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(exc))
            return answer or {}

        service, method = CONTROL[1:].split("/")
        return grpc.method_handlers_generic_handler(
            service,
            {
                method: grpc.unary_unary_rpc_method_handler(
                    control,
                    request_deserializer=from_json,
                    response_serializer=lambda answer: json.dumps(answer).encode(),
                )
            },
        )

    async def _cut_off(self, seconds: float, keep: bool) -> None:
        await asyncio.sleep(0.05)  # this verb's own answer gets out
        await self.stop()
        if not keep:
            self.clear()
        while True:
            await asyncio.sleep(seconds)
            with contextlib.suppress(RuntimeError):  # the port isn't free yet
                await self.start()
                return

    def clear(self) -> None:
        """Forget what it holds."""

    def _do_cut_off(self, seconds: float, keep: bool = True) -> None:
        asyncio.get_running_loop().create_task(self._cut_off(seconds, keep))
