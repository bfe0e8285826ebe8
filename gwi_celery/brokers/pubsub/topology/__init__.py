"""Exchanges, queues and bindings as topics and subscriptions.

- Exchange ``x``: the topic ``gwi-x``, whose label says the exchange's type.
- Queue ``q``: the topic ``gwi-q`` for the default exchange, and the subscription ``gwi-q`` on it.
  A temporary queue (replies, remote control) has its subscription on one topic that all temporary
  queues share, because topics never expire and subscriptions do.
- A binding of ``q`` to ``x``: the subscription ``gwi-q~b<digest>`` on ``gwi-x``, with the nearest
  filter. Where queue and exchange have one name, and so one topic, the queue's own subscription has
  those messages already.
- With ``priority_levels``: for each level above the lowest the subscription ``gwi-q~p<level>``.

A filter may let through more than the binding matches (the emulator lets through everything), so each
message is checked on arrival by :meth:`Source.takes`. A queue that is bound twice takes a message by
one of the bindings only.

A connection remembers what it knows: it looks up or creates each entity once (:mod:`.memory`).
"""

from gwi_celery.brokers.pubsub.topology.memory import Topology
from gwi_celery.brokers.pubsub.topology.sources import Source

__all__ = ["Source", "Topology"]
