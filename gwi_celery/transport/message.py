"""A delivered message, as Celery's worker takes it. Pulled and pushed ones are the same class."""

from __future__ import annotations

from typing import Any

from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.transport import virtual


class Message(virtual.Message):
    """A delivered message.

    Celery acks a message it can't decode, which would lose it. Here such an ack is a reject: the
    message goes to the dead letter, with the reason.
    """

    undecodable: str | None = None
    #: Why the message is about to be rejected, for the dead letter; whoever rejects may set it.
    death_reason: str | None = None

    def _decode(self) -> Any:
        try:
            return super()._decode()
        except (DecodeError, ContentDisallowed) as exc:
            self.undecodable = f"its body can't be decoded: {exc}"
            raise

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
            self.undecodable = f"its body can't be decoded: {self.errors[0][1]}"
        if self.undecodable is not None:
            self.reject(requeue=False)
        else:
            super().ack(multiple=multiple)
