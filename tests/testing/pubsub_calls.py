"""Raw calls of google.pubsub.v1, for tests of the servers that stand in for it."""

from __future__ import annotations

import itertools
import queue
import threading
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from google.api_core.exceptions import GoogleAPICallError
from google.pubsub_v1 import PublisherClient, SubscriberClient, types
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

_NOTHING: dict[str, Any] = {"retry": None, "timeout": 10}


class Calls:
    """One project of its own on a server, by Google's generated clients, without their retries."""

    def __init__(self, endpoint: str) -> None:
        self.channel = grpc.insecure_channel(endpoint, [("grpc.enable_http_proxy", 0)])
        self.publisher = PublisherClient(transport=PublisherGrpcTransport(channel=self.channel))
        self.subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=self.channel))
        self.project = f"projects/p-{uuid.uuid4().hex[:20]}"
        self._numbers = itertools.count(1)

    def close(self) -> None:
        self.channel.close()

    def topic(self, name: str = "topic") -> str:
        path = f"{self.project}/topics/{name}"
        self.publisher.create_topic(request={"name": path}, **_NOTHING)
        return path

    def subscription(self, topic: str, name: str | None = None, **config: Any) -> str:
        path = f"{self.project}/subscriptions/{name or f'sub-{next(self._numbers)}'}"
        self.subscriber.create_subscription(
            request={"name": path, "topic": topic, **config}, **_NOTHING
        )
        return path

    def publish(self, topic: str, *bodies: str, key: str = "", **attributes: str) -> list[str]:
        messages = [
            {"data": body.encode(), "attributes": attributes, "ordering_key": key}
            for body in bodies
        ]
        answer = self.publisher.publish(request={"topic": topic, "messages": messages}, **_NOTHING)
        return list(answer.message_ids)

    def pull(self, subscription: str, most: int = 10, *, timeout: float = 10) -> list[Any]:
        """Waits for the first message; none if the server's hold or the timeout is over."""
        request = {"subscription": subscription, "max_messages": most}
        try:
            answer = self.subscriber.pull(request=request, retry=None, timeout=timeout)
        except GoogleAPICallError as exc:
            if exc.grpc_status_code is grpc.StatusCode.DEADLINE_EXCEEDED:
                return []
            raise
        return list(answer.received_messages)

    def look(self, subscription: str, most: int = 10) -> list[Any]:
        """What is there now (``return_immediately``)."""
        request = types.PullRequest(
            subscription=subscription, max_messages=most, return_immediately=True
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return list(self.subscriber.pull(request=request, **_NOTHING).received_messages)

    def ack(self, subscription: str, *received: Any) -> None:
        request = {"subscription": subscription, "ack_ids": [r.ack_id for r in received]}
        self.subscriber.acknowledge(request=request, **_NOTHING)

    def modify(self, subscription: str, seconds: int, *received: Any) -> None:
        request = {
            "subscription": subscription,
            "ack_ids": [r.ack_id for r in received],
            "ack_deadline_seconds": seconds,
        }
        self.subscriber.modify_ack_deadline(request=request, **_NOTHING)

    @contextmanager
    def stream(self, subscription: str, **first: Any) -> Iterator[StreamCall]:
        call = StreamCall(self.subscriber, {"subscription": subscription, **first})
        try:
            yield call
        finally:
            call.close()


class StreamCall:
    """A StreamingPull; its requests are sent one by one, and its answers iterated over."""

    def __init__(self, subscriber: Any, first: dict[str, Any]) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.send(**{"stream_ack_deadline_seconds": 10, **first})
        self._call = subscriber.streaming_pull(iter(self._requests.get, None), retry=None)

    def send(self, **request: Any) -> None:
        self._requests.put(types.StreamingPullRequest(**request))

    def half_close(self) -> None:
        self._requests.put(None)

    def messages(self, count: int) -> list[Any]:
        """The next ``count``, waited for."""
        found: list[Any] = []
        while len(found) < count:
            found += next(self._call).received_messages
        return found

    def answer(self) -> Any:
        """The next one."""
        return next(self._call)

    def end(self) -> GoogleAPICallError | None:
        """Waits for the server to end it; by which error, or None."""
        try:
            for _ in self._call:
                pass
        except GoogleAPICallError as exc:
            return exc
        return None

    def close(self) -> None:
        self._requests.put(None)
        self._call.cancel()


def bodies(received: list[Any]) -> list[str]:
    return [r.message.data.decode() for r in received]


class Endpoint:
    """An HTTP server that notes requests and answers with what ``statuses`` says, then 204."""

    def __init__(self, *statuses: int) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.arrived = threading.Condition()
        answers = list(statuses)
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with endpoint.arrived:
                    endpoint.requests.append((dict(self.headers), body))
                    status = answers.pop(0) if answers else 204
                    endpoint.arrived.notify_all()
                self.send_response(status)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/push?token=x"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def wait_for(self, count: int) -> list[tuple[dict[str, str], bytes]]:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.requests) >= count, 20)
            return self.requests

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
