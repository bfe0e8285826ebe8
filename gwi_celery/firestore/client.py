"""Commits, reads and queries: as little of Firestore as a store needs, at the lowest cost per call.

Raw stubs on one channel, because the generated client's overhead costs more than the call itself. Its
retries aren't used either: a retried commit whose answer was lost would conflict with itself. Calls can
end like this:

==========================================================  ========================================
ALREADY_EXISTS, FAILED_PRECONDITION, NOT_FOUND on a commit  :class:`Conflict`: read, decide again
ABORTED                                                     retried after a short random pause;
                                                            in the end :class:`Unsettled`
UNAVAILABLE, DEADLINE_EXCEEDED, INTERNAL, UNKNOWN,          on a commit :class:`Unsettled`: read to
CANCELLED                                                   find out; a read is retried
RESOURCE_EXHAUSTED                                          StoreUnavailable: a quota, or overload
PERMISSION_DENIED, UNAUTHENTICATED, NOT_FOUND and           StoreUnusable, which says how to fix it
FAILED_PRECONDITION on a read, anything else
==========================================================  ========================================

Retrying a commit is safe by its preconditions: its own success makes them fail.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import urlencode

import grpc
from google.cloud.firestore_v1 import types as _types

from gwi_celery import shield
from gwi_celery.backoff import jitter
from gwi_celery.errors import StoreError, StoreUnavailable, StoreUnusable
from gwi_celery.firestore.documents import (
    Document,
    Query,
    Read,
    Write,
    Written,
    get_document,
    get_written,
    micros,
    set_query,
    set_write,
)
from gwi_celery.firestore.objects import Bucket
from gwi_celery.firestore.url import FirestoreURL
from gwi_celery.gcp import emulators, fork_gate, refusals, rpcs
from gwi_celery.gcp.channel import Channel
from gwi_celery.gcp.credentials import Access, NoCredentials

#: A hook between client and server, for tests. It gets the method's name ("Commit"), the request message
#: and the call, which takes a request and returns the response (for a stream: a list). It may raise
#: :class:`ServerError` in place of the server.
Intercept = Callable[[str, Any, Callable[[Any], Any]], Any]

LISTEN_REQUEST: Any = _types.ListenRequest.pb()

_SERVICE: Final = "/google.firestore.v1.Firestore/"
_SCOPES: Final = ("https://www.googleapis.com/auth/datastore",)
_CHANNEL_OPTIONS: Final = (
    # No limit: a read of ten documents of 1 MiB exceeds gRPC's default of 4 MiB.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # gRPC's default would grow to two minutes during an outage.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # So that a call notices that a firewall has dropped its connection.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A separate connection for each client, not shared within the process.
    ("grpc.use_local_subchannel_pool", 1),
)
_Code = grpc.StatusCode

_CONFLICT: Final = {_Code.ALREADY_EXISTS, _Code.FAILED_PRECONDITION, _Code.NOT_FOUND}
_UNKNOWN: Final = {
    _Code.UNAVAILABLE,
    _Code.DEADLINE_EXCEEDED,
    _Code.INTERNAL,
    _Code.UNKNOWN,
    _Code.CANCELLED,
}
#: Tries of a read that fails temporarily.
_TRIES: Final = 6
#: Tries of a commit that the server aborts, before the caller reads why.
_ABORTED_TRIES: Final = 3
#: First pause between two tries, seconds: a random share of it; it doubles.
_PAUSE: Final = 0.02


class Conflict(Exception):
    """A precondition of the commit does not hold, so nothing was written."""


class Unsettled(StoreUnavailable):
    """No answer: the commit may have been applied, or may still be. Read to find out.

    Also raised when the server aborted every try, because others write the same documents: a read shows
    what they wrote.
    """


class ServerError(Exception):
    """The server's answer to a call that failed."""

    def __init__(self, code: grpc.StatusCode, details: str = "") -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code
        self.details = details


class Client:
    """A client of one database. Connects at the first use in each process.

    May be used from any thread, and on both sides of a fork.

    Args:
        url: Project, endpoint, timeout.
        database: Id of the database; by default the URL's.
        intercept: See :data:`Intercept`.
        connection: That of another client, to share it.

    Raises ConfigurationError if the URL names a bucket and the extra for it is not installed.
    """

    def __init__(
        self,
        url: FirestoreURL,
        *,
        database: str | None = None,
        intercept: Intercept | None = None,
        connection: _Connection | None = None,
    ) -> None:
        self._url = url
        self.database = database if database is not None else url.database
        self.path = f"projects/{url.project}/databases/{self.database}"
        self._root = f"{self.path}/documents/"
        self._intercept = intercept
        self._connection = connection if connection is not None else _Connection(url)
        #: Where large values are kept; None: in chunks.
        self.bucket = Bucket(url) if url.gcs_bucket else None
        self._metadata = [("google-cloud-resource-prefix", self.path)]
        if url.emulator:
            self._metadata.append(("authorization", "Bearer owner"))

    def of_database(self, database: str) -> Client:
        """A client of another database of the same project, on the same connections."""
        other = Client(
            self._url,
            database=database,
            intercept=self._intercept,
            connection=self._connection,
        )
        other.bucket = self.bucket
        return other

    # --- calls --------------------------------------------------------------------------------

    def commit(self, writes: Iterable[Write]) -> Written:
        """All the writes or none. Raises Conflict, Unsettled, StoreUnavailable, StoreUnusable."""
        request = _types.CommitRequest.pb()()
        request.database = self.path
        for write in writes:
            set_write(request.writes.add(), write, self._root)
        pause = _PAUSE
        for attempt in range(_ABORTED_TRIES):
            try:
                written = get_written(self._call("Commit", request))
                self._connection.saw(written.commit_time)
                return written
            except ServerError as exc:
                if exc.code is _Code.ABORTED and attempt < _ABORTED_TRIES - 1:
                    pause = _wait(pause)
                    continue
                raise self._commit_error(exc) from exc
        raise AssertionError  # the last try returned or raised

    def commit_surely(self, writes: Sequence[Write], *, tries: int) -> Written:
        """As :meth:`commit`, but sent up to ``tries`` times while it is unsettled.

        Only for writes that may be repeated.
        """
        while True:
            try:
                return self.commit(writes)
            except Unsettled:
                tries -= 1
                if tries <= 0:
                    raise

    def read(self, names: Sequence[str], mask: Sequence[str] | None = None) -> Read:
        """Documents by name, in one consistent snapshot. ``mask``: the fields to read; None: all.

        Raises StoreUnavailable, StoreUnusable.
        """
        request = _types.BatchGetDocumentsRequest.pb()()
        request.database = self.path
        request.documents.extend(self._root + name for name in names)
        if mask is not None:
            request.mask.field_paths.extend(mask)
        return self._found(self._read("BatchGetDocuments", request), "found")

    def query(self, query: Query) -> Read:
        """The documents that match, in the query's order. Raises as :meth:`read`."""
        request = _types.RunQueryRequest.pb()()
        request.parent = f"{self._root}{query.parent}".rstrip("/")
        set_query(request.structured_query, query, self._root)
        return self._found(self._read("RunQuery", request), "document")

    def count(self, query: Query) -> int:
        """How many documents match: one read for each thousand. Raises as :meth:`read`."""
        request = _types.RunAggregationQueryRequest.pb()()
        request.parent = f"{self._root}{query.parent}".rstrip("/")
        wanted = request.structured_aggregation_query
        set_query(wanted.structured_query, query, self._root)
        wanted.aggregations.add(alias="n").count.SetInParent()
        answers = self._read("RunAggregationQuery", request)
        return sum(
            a.result.aggregate_fields["n"].integer_value for a in answers if a.HasField("result")
        )

    def listen(self, requests: Iterator[Any]) -> Any:
        """An open Listen call: it yields the changes that ``requests`` ask for, until it is cancelled.

        For a LongCall of :mod:`gwi_celery.gcp.fork_gate`, which enters the gate before the call and
        leaves it when the call has ended. Raises StoreUnusable; reading it raises grpc.RpcError.
        """
        if self._intercept is None:
            return self._listen(requests)
        request = LISTEN_REQUEST(database=self.path)
        return self._intercept("Listen", request, lambda _: self._listen(requests))

    def document_path(self, name: str) -> str:
        """The document's full name, as messages have it."""
        return self._root + name

    def received(self, message: Any) -> Document:
        """Parse a document from a Listen response."""
        return get_document(message, self._root)

    def about_now(self) -> int:
        """The server's approximate time: from its last answer, or this machine's clock before any.

        For hints only, such as TTL fields; never to decide an expiry.
        """
        return self._connection.about_now()

    def close(self) -> None:
        """Close this process's connection. Safe to call twice; the next call opens another."""
        with fork_gate.call():
            self._connection.close()

    # --- how ----------------------------------------------------------------------------------

    def _found(self, responses: Any, field: str) -> Read:
        documents: dict[str, Document] = {}
        read_time = 0
        for response in responses:
            read_time = max(read_time, micros(response.read_time))
            if response.HasField(field):
                document = get_document(getattr(response, field), self._root)
                documents[document.name] = document
        self._connection.saw(read_time)
        return Read(documents, read_time)

    def _read(self, method: str, request: Any) -> Any:
        pause = _PAUSE
        for attempt in range(_TRIES):
            try:
                return self._call(method, request)
            except ServerError as exc:
                again = exc.code in _UNKNOWN or exc.code is _Code.ABORTED
                # A call that used its whole timeout is not retried.
                if not again or exc.code is _Code.DEADLINE_EXCEEDED or attempt == _TRIES - 1:
                    raise self._read_error(exc) from exc
                pause = _wait(pause)
        raise AssertionError  # the last try returned or raised

    def _call(self, method: str, request: Any) -> Any:
        if self._intercept is None:
            return self._send(method, request)
        return self._intercept(method, request, lambda message: self._send(method, message))

    def _send(self, method: str, request: Any) -> Any:
        # A signal's exception that is raised inside gRPC would leave gRPC's own lock held for ever.
        with shield.section(), fork_gate.call():
            rpcs.count(method)
            stub, streams = self._connection.stub(method)
            # As in the generated library, this routes the request to the database's region.
            place = {"parent": request.parent} if method in _BELOW else {"database": self.path}
            metadata = [*self._metadata, ("x-goog-request-params", urlencode(place))]
            try:
                answer = stub(request, timeout=self._url.timeout, metadata=metadata)
                return list(answer) if streams else answer
            except grpc.RpcError as exc:
                details = exc.details() or ""
                refused = self._connection.access.refused(details)
                if refused is not None:
                    raise StoreUnusable(_no_credentials(refused)) from exc
                raise ServerError(exc.code(), details) from exc

    def _listen(self, requests: Iterator[Any]) -> Any:
        rpcs.count("Listen")
        place = urlencode({"database": self.path})
        stub = self._connection.channel.stream_stream(
            _SERVICE + "Listen",
            request_serializer=LISTEN_REQUEST.SerializeToString,
            response_deserializer=_types.ListenResponse.pb().FromString,
        )
        return stub(requests, metadata=[*self._metadata, ("x-goog-request-params", place)])

    # --- errors -------------------------------------------------------------------------------

    def _commit_error(self, exc: ServerError) -> Exception:
        if exc.code in _CONFLICT:
            return Conflict(exc.details)
        if exc.code in _UNKNOWN or exc.code is _Code.ABORTED:
            return Unsettled(f"{self._silence(exc)}; whether the commit was applied is unknown yet")
        return self._error(exc)

    def _read_error(self, exc: ServerError) -> StoreError:
        if exc.code is _Code.NOT_FOUND:
            return StoreUnusable(
                f"project {self._url.project} has no Firestore database {self.database!r} "
                f"({exc.details}). Make it: gcloud firestore databases create "
                f"--project={self._url.project} --database='{self.database}' "
                "--type=firestore-native --edition=standard --location=LOCATION"
            )
        if exc.code is _Code.FAILED_PRECONDITION:
            return StoreUnusable(
                f"Firestore can't answer a query or read: {exc.details}. If an index "
                "is missing, follow the link above, or deploy this package's "
                "firestore/firestore.indexes.json; if the database is in Datastore mode, make one "
                "in native mode"
            )
        return self._error(exc)

    def _error(self, exc: ServerError) -> StoreError:
        if exc.code is _Code.PERMISSION_DENIED:
            cause = refusals.why(
                exc.details,
                name="Firestore",
                api="firestore.googleapis.com",
                project=self._url.project,
            )
            if cause is not None:
                return StoreUnusable(cause)
            return StoreUnusable(
                f"Firestore refuses this account ({exc.details}). Grant its service account "
                f"roles/datastore.user: gcloud projects add-iam-policy-binding "
                f"{self._url.project} --member=serviceAccount:ACCOUNT "
                "--role=roles/datastore.user; and switch the API on: gcloud services enable "
                f"firestore.googleapis.com --project={self._url.project}"
            )
        if exc.code is _Code.UNAUTHENTICATED:
            return StoreUnusable(_no_credentials(str(exc)))
        if exc.code is _Code.RESOURCE_EXHAUSTED and "larger than max" not in exc.details:
            return StoreUnavailable(
                f"Firestore's quota or capacity is exhausted ({exc.details}): see the "
                "quotas of the Firestore API of this project; a database without billing has "
                "daily ones"
            )
        if exc.code in _UNKNOWN or exc.code is _Code.ABORTED:
            return StoreUnavailable(self._silence(exc))
        return StoreUnusable(f"Firestore refuses the request: {exc}")

    def _silence(self, exc: ServerError) -> str:
        if self._url.emulator and exc.code in (_Code.UNAVAILABLE, _Code.DEADLINE_EXCEEDED):
            down = emulators.unavailable("Firestore", emulators.FIRESTORE_HOST, self._url.endpoint)
            return f"{down} ({exc})"
        return f"Firestore at {self._url.endpoint} does not answer ({exc})"


class _Connection:
    """A channel for each process, opened at the first call, and an estimate of the server's clock."""

    def __init__(self, url: FirestoreURL) -> None:
        self.access = Access(_SCOPES)
        self._channel = Channel(partial(_connect, url, self.access))
        #: The server's time less the monotonic clock's, microseconds; None: no answer yet.
        self._server_ahead: int | None = None

    def saw(self, server_time: int) -> None:
        if server_time:
            self._server_ahead = server_time - round(time.monotonic() * 1_000_000)

    def about_now(self) -> int:
        if self._server_ahead is None:
            return round(time.time() * 1_000_000)
        return self._server_ahead + round(time.monotonic() * 1_000_000)

    def stub(self, method: str) -> tuple[Any, bool]:
        """The callable of an RPC, and whether it streams."""
        stub: tuple[Any, bool] = self._channel.stub(method, partial(_stub, method))
        return stub

    @property
    def channel(self) -> Any:
        """This process's channel, for a stream. Don't keep it."""
        return self._channel.get()

    def close(self) -> None:
        self._channel.close()


def _connect(url: FirestoreURL, access: Access) -> Any:
    if url.emulator:
        # Not through the proxy that leads to Google.
        options = [*_CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0)]
        return grpc.insecure_channel(url.endpoint, options=options)
    try:
        return access.channel(url.endpoint, _CHANNEL_OPTIONS)
    except NoCredentials as exc:
        raise StoreUnusable(_no_credentials(str(exc))) from exc


def _stub(method: str, channel: Any) -> tuple[Any, bool]:
    request, response, streams = _METHODS[method]
    make = channel.unary_stream if streams else channel.unary_unary
    stub = make(
        _SERVICE + method,
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )
    return stub, streams


_METHODS: Final[dict[str, tuple[Any, Any, bool]]] = {
    "Commit": (_types.CommitRequest.pb(), _types.CommitResponse.pb(), False),
    "BatchGetDocuments": (
        _types.BatchGetDocumentsRequest.pb(),
        _types.BatchGetDocumentsResponse.pb(),
        True,
    ),
    "RunAggregationQuery": (
        _types.RunAggregationQueryRequest.pb(),
        _types.RunAggregationQueryResponse.pb(),
        True,
    ),
    "RunQuery": (_types.RunQueryRequest.pb(), _types.RunQueryResponse.pb(), True),
}


#: Methods whose requests name a parent document.
_BELOW: Final = ("RunQuery", "RunAggregationQuery")


def _wait(pause: float) -> float:
    time.sleep(jitter(pause, 0.2, 1.0))
    return pause * 2


def _no_credentials(details: str) -> str:
    return (
        f"no credentials that Firestore accepts ({details}): set GOOGLE_APPLICATION_CREDENTIALS to a "
        "service account's key file, run where one is attached, or use gcloud auth "
        "application-default login; for an emulator set FIRESTORE_EMULATOR_HOST"
    )
