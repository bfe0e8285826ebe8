"""Pub/Sub's filters: a text becomes a predicate on attributes.

The grammar is that of https://cloud.google.com/pubsub/docs/subscription-message-filter: ``attributes:k``,
``attributes.k = "v"``, ``!=``, ``hasPrefix(attributes.k, "v")``, ``NOT`` and ``-``, ``AND``, ``OR``, and
parentheses; ``AND`` and ``OR`` in one expression need them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping

Predicate = Callable[[Mapping[str, str]], bool]

#: Bytes.
MAX_FILTER = 256

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\]|\\.)*")|(?P<word>[A-Za-z0-9_][A-Za-z0-9_-]*)|(?P<sign>!=|[=:.,()-]))"""
)


#: Google names Unicode, hexadecimal and octal ones; the letters are those of other string literals.
_ESCAPE = re.compile(
    r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|x([0-9A-Fa-f]{2})|([0-7]{3})|(.))", re.DOTALL
)
_LETTERS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


class FilterError(ValueError):
    """The text is not a valid filter."""


def parse(text: str) -> Predicate:
    """The predicate of a filter; an empty one matches everything. Raises FilterError."""
    if not text.strip():
        return lambda attributes: True
    if len(text.encode()) > MAX_FILTER:
        raise FilterError(f"the filter is longer than {MAX_FILTER} bytes")
    parser = _Parser(text)
    predicate = parser.expression()
    parser.expect("")
    return predicate


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._at = 0

    def expression(self) -> Predicate:
        terms, joint = [self._term()], ""
        while (word := self._peek()) in ("AND", "OR"):
            if joint and word != joint:
                raise FilterError("AND and OR in one expression need parentheses")
            joint = self._next()
            terms.append(self._term())
        join = any if joint == "OR" else all
        return lambda attributes: join(term(attributes) for term in terms)

    def _term(self) -> Predicate:
        if self._peek() in ("NOT", "-"):
            self._next()
            inner = self._term()
            return lambda attributes: not inner(attributes)
        if self._peek() == "(":
            self._next()
            inner = self.expression()
            self.expect(")")
            return inner
        if self._peek() == "hasPrefix":
            self._next()
            self.expect("(")
            key = self._attribute(".")
            self.expect(",")
            prefix = self._text()
            self.expect(")")
            return lambda attributes: key in attributes and attributes[key].startswith(prefix)
        return self._comparison()

    def _comparison(self) -> Predicate:
        self.expect("attributes")
        separator = self._next()
        key = self._name()
        if separator == ":":
            return lambda attributes: key in attributes
        if separator != ".":
            raise FilterError(
                f"{separator!r} after attributes: write attributes:key or attributes.key"
            )
        operator, value = self._next(), self._text()
        if operator == "=":
            return lambda attributes: attributes.get(key) == value
        if operator == "!=":
            return lambda attributes: key in attributes and attributes[key] != value
        raise FilterError(f"{operator!r} is no operator: write = or !=")

    def _attribute(self, separator: str) -> str:
        self.expect("attributes")
        self.expect(separator)
        return self._name()

    def _name(self) -> str:
        token = self._next()
        if token.startswith('"'):
            return _unquoted(token)
        if not token or not (token[0].isalnum() or token[0] == "_"):
            raise FilterError(f"{token!r} is no attribute's key")
        return token

    def _text(self) -> str:
        token = self._next()
        if not token.startswith('"'):
            raise FilterError(f"{token!r} is no text in double quotes")
        return _unquoted(token)

    def expect(self, token: str) -> None:
        found = self._next()
        if found != token:
            raise FilterError(f"{found or 'the end'!r} where {token or 'the end'!r} should be")

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        self._at += 1
        return token


def _tokens(text: str) -> list[str]:
    tokens, at = [], 0
    while text[at:].strip():
        found = _TOKEN.match(text, at)
        if found is None:
            raise FilterError(f"{text[at:].strip()!r} can't be read")
        tokens.append(found.group().strip())
        at = found.end()
    return tokens


def _unquoted(token: str) -> str:
    return _ESCAPE.sub(_meant, token[1:-1])


def _meant(escape: re.Match[str]) -> str:
    *hexadecimal, octal, letter = escape.groups()
    if letter is not None:
        return _LETTERS.get(letter, letter)
    number = int(octal, 8) if octal else int("".join(filter(None, hexadecimal)), 16)
    if number > sys.maxunicode:
        raise FilterError(f"{escape[0]} is no character")
    return chr(number)
