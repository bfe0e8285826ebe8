"""A delivered message, as Celery's worker takes it; one class for pulled and pushed ones."""

from __future__ import annotations

from typing import Any, Final

from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.transport import virtual

from gwi_celery.errors import MalformedMessage
from gwi_celery.text import public_error
from gwi_celery.transport import budget, compression, depth
from gwi_celery.transport.death import Death
from gwi_celery.transport.source import Source

_JSON: Final = "application/json"
#: Encodings that a JSON body may have. In others, brackets and quotes may be other bytes, so its size and
#: depth can't be estimated; and some of Python's codecs decompress.
_ENCODINGS: Final = ("utf-8", "utf8", "ascii", "us-ascii", "latin-1", "iso-8859-1", "binary")


class Message(virtual.Message):
    """A delivered message.

    Celery acks a message it can't decode, which would lose it. Here such an ack is a reject: the
    message goes to the dead letter, with the reason.
    """

    #: Where it is from; None if it came over another package's broker.
    source: Source | None = None
    #: Why its body can't be decoded, once that was found out.
    undecodable: str | None = None
    #: Reason for the dead letter; set by whoever rejects the message.
    death_reason: str | None = None
    #: The same for programs. See :attr:`cause` for its default.
    death: Death | None = None
    #: Whether its task has begun: later errors belong to the attempt, not the message.
    begun = False
    body: Any

    def __init__(self, payload: Any, channel: Any = None, *, limit: int = 0, **kwargs: Any) -> None:
        #: Most bytes of memory for its body, decompressed and parsed.
        self._limit = limit or budget.automatic()
        # Hidden from Kombu, which would decompress the body without a limit.
        codec = payload["headers"].pop("compression", None)
        super().__init__(payload, channel=channel, **kwargs)
        if codec is None:
            return
        self.headers["compression"] = codec
        try:
            body = self.body.encode() if isinstance(self.body, str) else self.body
            self.body = compression.decompress(body, str(codec), self._limit)
        except MalformedMessage as exc:
            self.undecodable = str(exc)
            self.body = b""
            self.errors.append((type(exc), exc, None))

    def begin(self) -> None:
        """Count an attempt: its task begins now."""
        if not self.begun:
            self.begun = True
            self.channel.begin(self.delivery_tag)

    def postpone(self, seconds: float) -> bool:
        """Publish a copy that is due after ``seconds``, and ack this one. False if that fails."""
        postpone = getattr(self.channel, "postpone", None)
        if postpone is None or not postpone(self.delivery_tag, seconds):
            return False
        self.ack()
        return True

    def _decode(self) -> Any:
        if self.undecodable is not None:  # found out before
            raise DecodeError(self.undecodable)
        try:
            if self.content_type == _JSON:
                if (self.content_encoding or "utf-8").lower() not in _ENCODINGS:
                    raise DecodeError("its content encoding is not one of " + ", ".join(_ENCODINGS))
                budget.check(self.body or b"", self._limit, "its body")
                if depth.too_deep(self.body or b""):
                    raise DecodeError(depth.reason())
            return super()._decode()
        except MalformedMessage as exc:
            self.undecodable = str(exc)
            raise DecodeError(self.undecodable) from exc
        except (DecodeError, ContentDisallowed) as exc:
            self.undecodable = _undecodable(exc)
            raise
        except Exception as exc:  # an unknown encoding, for example
            self.undecodable = _undecodable(exc)
            raise DecodeError(self.undecodable) from exc

    @property
    def reason(self) -> str:
        """The reason for the dead letter."""
        if self.undecodable is not None:
            return self.undecodable
        if self.death_reason is not None:
            return self.death_reason
        if "task" not in self.headers:
            return "not a Celery task: its headers name none"
        return "rejected"

    @property
    def cause(self) -> Death:
        """The kind of its death, for the dead letter."""
        if self.undecodable is not None:
            return Death("malformed")
        if self.death is not None:
            return self.death
        return Death("rejected" if "task" in self.headers else "malformed")

    def ack(self, multiple: bool = False) -> None:
        if self.errors and self.undecodable is None:
            self.undecodable = _undecodable(self.errors[0][1])
        if self.undecodable is not None:
            self.reject(requeue=False)
        else:
            super().ack(multiple=multiple)


def _undecodable(exc: Any) -> str:
    return f"its body can't be decoded: {public_error(exc, 500)}"
