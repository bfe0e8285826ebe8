"""Between the Firestore client and the emulator: counts calls, holds the server's clock, breaks things.

A :class:`Wire` is a client's ``intercept``. Two stores that share one are two processes that talk to
the same server.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import grpc

from gwi_celery.firestore.client import Client, ServerError, Unsettled
from gwi_celery.firestore.documents import Write, micros, set_micros
from gwi_celery.firestore.url import FirestoreURL, parse
from gwi_celery.stores.firestore import FirestoreStore

Code = grpc.StatusCode

#: The RPCs, as :attr:`Wire.calls` names them.
COMMIT, READ, QUERY, LISTEN = "Commit", "BatchGetDocuments", "RunQuery", "Listen"
COUNT = "RunAggregationQuery"

#: How a call may go wrong.
LOST_REQUEST = "the request is lost"
LOST_ANSWER = "the answer is lost"
LATE = "the request arrives after its sender has given up on it"
ABORTED = "the server aborts"
FAULTS = [LOST_REQUEST, LOST_ANSWER, LATE, ABORTED]


def fresh_url(**options: object) -> FirestoreURL:
    """A project that nobody has used yet, on the emulator that the environment names."""
    query = "&".join(f"{name}={value}" for name, value in options.items())
    return parse(f"firestore://p-{uuid4().hex[:20]}?{query}")


class Wire:
    """See the module. The server's clock is its own until it is first moved."""

    def __init__(self, url: FirestoreURL | None = None) -> None:
        self.url = fresh_url() if url is None else url
        #: The RPCs that were sent, by name.
        self.calls: list[str] = []
        #: Their requests, as the server got them.
        self.requests: list[Any] = []
        #: The streams that were opened.
        self.streams: list[Stream] = []
        #: What happens to the calls that follow, one after the other; None: nothing.
        self.faults: Iterator[str | None] = iter(())
        #: Keep late requests until :meth:`arrive`; else they arrive among the calls that follow.
        self.keeps_late = False
        self._late: list[Callable[[], object]] = []
        #: (real time of the server, added from then on), microseconds, in their order.
        self._steps: list[tuple[int, int]] = []
        self._plain = Client(self.url)
        self._lock = threading.RLock()

    def store(self) -> FirestoreStore:
        return FirestoreStore(self.url, intercept=self)

    def close(self) -> None:
        self._plain.close()

    # --- counting -----------------------------------------------------------------------------

    @contextmanager
    def counting(self) -> Iterator[list[str]]:
        """The calls made within."""
        made: list[str] = []
        before = len(self.calls)
        yield made
        made += self.calls[before:]

    # --- the server's clock -------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let the server's clock jump: all that it says and writes from now on is later."""
        # Later than whatever was written before, by the server's own account.
        mark = self._commit_time()
        ahead = self._steps[-1][1] if self._steps else 0
        with self._lock:
            self._steps.append((mark, ahead + round(seconds * 1_000_000)))
        time.sleep(0.002)  # the server's time of a request has milliseconds only

    def _commit_time(self) -> int:
        while True:
            try:
                written = self._plain.commit([Write("gwi-test/clock", {"n": len(self._steps)})])
            except Unsettled:
                continue  # a twin's fault
            return written.commit_time

    def now(self) -> int:
        """The server's time, microseconds."""
        return self._shown(self._plain.read(["gwi-test/none"]).read_time)

    def _shown(self, real: int) -> int:
        for since, ahead in reversed(self._steps):
            if real > since:
                return real + ahead
        return real

    def _real(self, shown: int) -> int:
        for since, ahead in reversed(self._steps):
            if shown - ahead > since:
                return shown - ahead
        return shown

    def _shift(self, message: Any, by: Callable[[int], int]) -> None:
        """Move every time in a message, but for ``gc_at``: workers write that by what they see."""
        for descriptor, value in list(message.ListFields()):
            if descriptor.message_type is None:
                continue
            if descriptor.message_type.GetOptions().map_entry:
                for key, each in value.items():
                    if key != "gc_at":
                        self._shift(each, by)
            elif descriptor.message_type.name == "Timestamp":
                set_micros(value, by(micros(value)))
            elif isinstance(value, type(message)) or hasattr(value, "ListFields"):
                self._shift(value, by)
            else:
                for each in value:
                    self._shift(each, by)

    # --- a call -------------------------------------------------------------------------------

    def __call__(self, method: str, request: Any, call: Callable[[Any], Any]) -> Any:
        for late in self._take_late():
            late()
        sent = type(request)()
        sent.CopyFrom(request)
        if self._steps and not _by_gc_at(method, sent):
            self._shift(sent, self._real)
        with self._lock:
            self.calls.append(method)
            self.requests.append(sent)
            fault = next(self.faults, None)
        if fault == LOST_REQUEST:
            raise ServerError(Code.UNAVAILABLE, fault)
        if fault == ABORTED and method == "Commit":
            raise ServerError(Code.ABORTED, fault)
        if fault == LATE and method == "Commit":
            with self._lock:
                self._late.append(lambda: _quietly(call, sent))
            raise ServerError(Code.DEADLINE_EXCEEDED, fault)
        if method == "Listen":
            return Stream(self, call(sent))
        answer = call(sent)
        if fault == LOST_ANSWER:
            raise ServerError(Code.UNAVAILABLE, fault)
        if self._steps:
            for message in answer if isinstance(answer, list) else [answer]:
                self._shift(message, self._shown)
        return answer

    def arrive(self) -> None:
        """The requests that are late arrive now; calling it again is one more copy of each."""
        for late in self._late:
            late()

    def _take_late(self) -> list[Callable[[], object]]:
        """Requests that arrive now: each is overtaken by one call, at times by two."""
        with self._lock:
            if self.keeps_late or not self._late or len(self.calls) % 2:
                return []
            late, self._late = self._late, []
        return late


class Stream:
    """A Listen call as it reaches the client."""

    def __init__(self, wire: Wire, call: Any) -> None:
        self._wire = wire
        self._call = call
        wire.streams.append(self)

    def __iter__(self) -> Iterator[Any]:
        for response in self._call:
            if self._wire._steps:
                self._wire._shift(response, self._wire._shown)
            yield response

    def cancel(self) -> None:
        self._call.cancel()

    def active(self) -> bool:
        return bool(self._call.is_active())


def _quietly(call: Callable[[Any], Any], request: Any) -> None:
    try:
        call(request)
    except ServerError:
        return  # nobody is there to hear of it


def _by_gc_at(method: str, request: Any) -> bool:
    if method != "RunQuery":
        return False
    return any(by.field.field_path == "gc_at" for by in request.structured_query.order_by)
