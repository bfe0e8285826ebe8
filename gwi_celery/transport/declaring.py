"""Kombu's channel methods on the broker seam: exchanges, queues and bindings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from amqp.exceptions import PreconditionFailed
from amqp.protocol import queue_declare_ok_t
from kombu.exceptions import ChannelError
from kombu.transport import virtual
from kombu.utils.uuid import uuid

from gwi_celery.brokers.base import QueueSpec
from gwi_celery.errors import NotDeleted, NotFound
from gwi_celery.options import NUMBER, SECONDS, WHOLE, optional

if TYPE_CHECKING:
    from gwi_celery.transport.base import Transport


_MILLISECONDS: Final = optional(NUMBER.called("a number of milliseconds"))
#: Argument of a queue -> what it may be.
_ARGUMENTS: Final = {
    "x-expires": _MILLISECONDS,
    "x-message-ttl": _MILLISECONDS,
    "x-lease-seconds": optional(SECONDS),
    "x-max-deliveries": optional(WHOLE),
}


class DeclaringChannel(virtual.Channel):
    """The part of a channel that declares, deletes and inspects exchanges, queues and bindings."""

    connection: Transport

    def __init__(self, connection: Transport, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._broker = connection.broker

    def exchange_declare(
        self,
        exchange: str | None = None,
        type: str = "direct",
        durable: bool = False,
        auto_delete: bool = False,
        arguments: Any = None,
        nowait: bool = False,
        passive: bool = False,
    ) -> None:
        type = type or "direct"
        name = exchange or f"amq.{type}"
        if passive:
            if not self._broker.has_exchange(name):
                raise not_found("exchange", name, "Channel.exchange_declare")
            return
        self._broker.declare_exchange(name, type)

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        try:
            self._broker.delete_exchange(exchange, if_unused=if_unused)
        except NotDeleted as exc:
            raise _precondition_failed(exc, (40, 20), "Channel.exchange_delete") from exc

    def queue_declare(
        self,
        queue: str | None = None,
        passive: bool = False,
        durable: bool = True,
        auto_delete: bool = False,
        exclusive: bool = False,
        arguments: Any = None,
        nowait: bool = False,
        **kwargs: Any,
    ) -> queue_declare_ok_t:
        name = queue or f"amq.gen-{uuid()}"
        if passive:
            if not self._broker.has_queue(name):
                raise not_found("queue", name, "Channel.queue_declare")
        else:
            self._broker.declare_queue(
                queue_spec(name, durable, auto_delete or exclusive, arguments or {})
            )
        return queue_declare_ok_t(name, 0 if nowait else self._size(name), 0)

    def prepare_queue_arguments(self, arguments: Any, **kwargs: Any) -> Any:
        """Kombu's ``Queue(expires=, message_ttl=)``, in seconds, as AMQP's arguments, in milliseconds."""
        return prepared(arguments, **kwargs)

    def queue_bind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: Any = None,
        **kwargs: Any,
    ) -> None:
        if exchange == "":
            return  # the default exchange reaches every queue by its name
        self._broker.bind(queue, exchange or "amq.direct", routing_key or "")

    def queue_unbind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: Any = None,
        **kwargs: Any,
    ) -> None:
        self._broker.unbind(queue, exchange or "amq.direct", routing_key or "")

    def queue_delete(
        self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any
    ) -> None:
        try:
            self._broker.delete_queue(queue, if_unused=if_unused, if_empty=if_empty)
        except NotDeleted as exc:
            raise _precondition_failed(exc, (50, 40), "Channel.queue_delete") from exc

    def queue_purge(self, queue: str, **kwargs: Any) -> int:
        try:
            return self._broker.purge(queue)
        except NotFound:
            return 0

    def list_bindings(self) -> list[tuple[str, str, str]]:
        return [(b.queue, b.exchange, b.routing_key) for b in self._broker.bindings()]

    def after_reply_message_received(self, queue: str) -> None:
        """Kombu has collected its replies. Does nothing: their queue is deleted with its consumer."""

    def _size(self, queue: str) -> int:
        try:
            size = self._broker.size(queue)
        except NotFound:
            return 0
        return size.ready if size is not None else 0


def queue_spec(
    name: str, durable: bool, auto_delete: bool, arguments: Mapping[str, Any]
) -> QueueSpec:
    """The queue that AMQP's arguments describe; others of them have no effect here.

    Raises ConfigurationError.
    """
    given = {
        argument: kind.convert(arguments.get(argument), f"argument {argument} of queue {name!r}")
        for argument, kind in _ARGUMENTS.items()
    }
    return QueueSpec(
        name=name,
        durable=bool(durable),
        auto_delete=bool(auto_delete),
        expires=_seconds(given["x-expires"]),
        message_ttl=_seconds(given["x-message-ttl"]),
        lease_seconds=given["x-lease-seconds"],
        max_deliveries=given["x-max-deliveries"],
    )


def prepared(arguments: Mapping[str, Any] | None, **options: Any) -> dict[str, Any]:
    """AMQP's arguments of a queue, with those that Kombu's ``Queue`` has as options."""
    given = dict(arguments or {})
    for option in ("expires", "message_ttl"):
        if options.get(option) is not None:
            given[f"x-{option.replace('_', '-')}"] = _milliseconds(options[option])
    return given


def _milliseconds(seconds: Any) -> Any:
    """A number of seconds in milliseconds; what is none as it is, for the error that names the queue."""
    try:
        return int(SECONDS.read(seconds) * 1000)
    except (TypeError, ValueError, OverflowError):
        return seconds


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _precondition_failed(exc: NotDeleted, method: tuple[int, int], name: str) -> PreconditionFailed:
    return PreconditionFailed(f"PRECONDITION_FAILED - {exc}", method, name, "406")


def not_found(kind: str, name: str, method: str) -> ChannelError:
    return ChannelError(f"NOT_FOUND - no {kind} {name!r}", (50, 10), method, "404")
