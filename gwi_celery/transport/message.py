"""A delivered message, as Celery's worker takes it. Pulled and pushed ones are the same class."""

from __future__ import annotations

from typing import Any

from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.transport import virtual

from gwi_celery.text import public_error
from gwi_celery.transport import depth
from gwi_celery.transport.source import Source


class Message(virtual.Message):
    """A delivered message.

    Celery acks a message it can't decode, which would lose it. Here such an ack is a reject: the
    message goes to the dead letter, with the reason.
    """

    #: Where it is from; None for one that didn't come over a broker of ours.
    source: Source | None = None
    undecodable: str | None = None
    #: Why the message is about to be rejected, for the dead letter; whoever rejects may set it.
    death_reason: str | None = None
    #: Whether its task was begun: what goes wrong from then on is the run's, not the message's.
    begun = False

    def begin(self) -> None:
        """Its task begins now: that is an attempt, whatever becomes of it."""
        if not self.begun:
            self.begun = True
            self.channel.begin(self.delivery_tag)

    def _decode(self) -> Any:
        try:
            if self.content_type == "application/json" and depth.too_deep(self.body or b""):
                raise DecodeError(depth.reason())
            return super()._decode()
        except (DecodeError, ContentDisallowed) as exc:
            self.undecodable = _undecodable(exc)
            raise
        except Exception as exc:  # an encoding that there isn't, say
            self.undecodable = _undecodable(exc)
            raise DecodeError(self.undecodable) from exc

    @property
    def reason(self) -> str:
        """What the dead letter says of this message."""
        if self.undecodable is not None:
            return self.undecodable
        if self.death_reason is not None:
            return self.death_reason
        if "task" not in self.headers:
            return "not a Celery task: its headers name none"
        return "rejected"

    def ack(self, multiple: bool = False) -> None:
        if self.errors and self.undecodable is None:
            self.undecodable = _undecodable(self.errors[0][1])
        if self.undecodable is not None:
            self.reject(requeue=False)
        else:
            super().ack(multiple=multiple)


def _undecodable(exc: Any) -> str:
    return f"its body can't be decoded: {public_error(exc, 500)}"
