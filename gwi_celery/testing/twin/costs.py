"""What a project would be billed, and which calls it made.

Prices of https://cloud.google.com/pubsub/pricing: 40 USD a TiB, of what is published and of what is
delivered; each request counts as 1,000 bytes or more, an empty pull too; filtered messages are billed as
delivered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

_SMALLEST = 1000
_USD_PER_BYTE = 40 / 2**40
#: Bytes that a message's timestamp counts as.
_TIMESTAMP = 20


class Costs:
    def __init__(self) -> None:
        self.rpcs: Counter[str] = Counter()
        self.published = self.delivered = self.filtered = 0

    def publish(self, messages: Iterable[Any]) -> None:
        """Of one request, as they are stored."""
        self.published += max(sum(map(volume, messages)), _SMALLEST)

    def deliver(self, messages: Iterable[Any]) -> None:
        """Of one answer or push."""
        self.delivered += max(sum(map(volume, messages)), _SMALLEST)

    def keep_back(self, message: Any) -> None:
        self.filtered += volume(message)

    def report(self) -> dict[str, Any]:
        """For :meth:`gwi_celery.testing.twin.Twin.cost`."""
        billed = self.published + self.delivered + self.filtered
        return {
            "rpcs": dict(sorted(self.rpcs.items())),
            "bytes": {
                "published": self.published,
                "delivered": self.delivered,
                "filtered": self.filtered,
            },
            "usd": billed * _USD_PER_BYTE,
        }


def volume(message: Any) -> int:
    """The bytes that a stored message is billed as."""
    attributes = sum(len(k.encode()) + len(v.encode()) for k, v in message.attributes.items())
    names = len(message.message_id) + len(message.ordering_key.encode())
    return len(message.data) + attributes + names + _TIMESTAMP
