"""Which routing keys a binding matches, as AMQP has it. Pure functions."""

from __future__ import annotations

DIRECT = "direct"
TOPIC = "topic"
FANOUT = "fanout"

EXCHANGE_TYPES = (DIRECT, TOPIC, FANOUT)


def matches(exchange_type: str, binding_key: str, routing_key: str) -> bool:
    """Whether an exchange of that type sends ``routing_key`` to a queue bound by ``binding_key``."""
    if exchange_type == FANOUT:
        return True
    if exchange_type == TOPIC:
        return topic_matches(binding_key, routing_key)
    return binding_key == routing_key


def topic_matches(pattern: str, routing_key: str) -> bool:
    """Match dotted words: ``*`` stands for exactly one word, ``#`` for any number, also none.

    The time taken grows with the product of both lengths, whatever the pattern.
    """
    words = _words(routing_key)
    # reached[n]: the pattern's words so far match the first n words of the key.
    reached = [True] + [False] * len(words)
    for part in _words(pattern):
        if part == "#":
            for n in range(len(words)):
                reached[n + 1] = reached[n + 1] or reached[n]
        else:
            reached = [False] + [reached[n] and part in ("*", word) for n, word in enumerate(words)]
    return reached[-1]


def _words(key: str) -> list[str]:
    """An empty key has no words; an empty word between two dots is one."""
    return key.split(".") if key else []
