"""What a project would be billed, and which calls it made.

Prices of https://cloud.google.com/pubsub/pricing: 40 USD a TiB, of what is published and of what is
delivered; each request counts as 1,000 bytes or more; filtered messages are billed as delivered.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

_SMALLEST = 1000
_USD_PER_BYTE = 40 / 2**40


class Costs:
    def __init__(self) -> None:
        self.rpcs: Counter[str] = Counter()
        self.published = self.delivered = self.filtered = 0

    def publish(self, size: int) -> None:
        self.published += max(size, _SMALLEST)

    def deliver(self, size: int) -> None:
        self.delivered += max(size, _SMALLEST)

    def keep_back(self, size: int) -> None:
        self.filtered += size

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
