"""Signatures: HMAC-SHA256 by one of several keys, each with an id, so that keys can be replaced.

A signature is ``<key id>:<MAC>``, the MAC in URL-safe base64 without padding, over the purpose in
ASCII, a zero byte and the data.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from gwi_celery.errors import ConfigurationError
from gwi_celery.text import from_json

#: What is signed: a message's data as published, an operator's mark.
MESSAGE: Final = "gwi-message-1"
MARK: Final = "gwi-mark-1"
#: Purpose of a MAC over nothing, which tells one secret from another.
_NAME: Final = "gwi-name-1"

#: Shortest secret, bytes: as long as the MAC.
_SHORTEST: Final = 32
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
#: Id of the store's own key, which no key of the setting may have.
STORE: Final = "store"


class Keys:
    """Secrets by id. The last one signs; all verify."""

    def __init__(self, secrets: Mapping[str, bytes]) -> None:
        self._secrets = dict(secrets)

    def __bool__(self) -> bool:
        return bool(self._secrets)

    def __contains__(self, key_id: str) -> bool:
        return key_id in self._secrets

    def __iter__(self) -> Iterator[str]:
        return iter(self._secrets)

    @property
    def names(self) -> tuple[str, ...]:
        """Differs between any two sets of keys, and two orders of one set; reveals no secret."""
        return tuple(self._sign(key_id, _NAME, b"") for key_id in self._secrets)

    def __repr__(self) -> str:
        return f"<Keys {', '.join(self._secrets)}>"

    def sign(self, purpose: str, data: bytes) -> str:
        return self._sign(next(reversed(self._secrets)), purpose, data)

    def _sign(self, key_id: str, purpose: str, data: bytes) -> str:
        return f"{key_id}:{_mac(self._secrets[key_id], purpose, data)}"

    def verify(self, purpose: str, data: bytes, signature: str) -> bool:
        key_id, _, mac = signature.partition(":")
        secret = self._secrets.get(key_id)
        return secret is not None and hmac.compare_digest(
            _mac(secret, purpose, data).encode(), mac.encode("utf-8", "surrogatepass")
        )


def _mac(secret: bytes, purpose: str, data: bytes) -> str:
    made = hmac.new(secret, digestmod=hashlib.sha256)
    made.update(purpose.encode("ascii") + b"\0")
    made.update(data)
    return base64.urlsafe_b64encode(made.digest()).rstrip(b"=").decode("ascii")


def read_keys(given: Any, where: str) -> dict[str, str]:
    """Keys from a setting: a mapping, its JSON, or ``id:secret`` pairs between commas or line ends.

    Raises ConfigurationError, which never shows a secret.
    """
    found = _pairs(given, where)
    for key_id, secret in found.items():
        if not isinstance(key_id, str) or not _ID.fullmatch(key_id) or key_id == STORE:
            raise ConfigurationError(
                f"{where}: a key's id is 1 to 64 of A-Z, a-z, 0-9 and . _ -, and not {STORE!r}"
            )
        if not isinstance(secret, str) or _size(secret) < _SHORTEST:
            raise ConfigurationError(
                f"{where}: the secret of {key_id!r} has to be a text of {_SHORTEST} bytes at least; "
                'make one by python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
    return found


def _size(secret: str) -> int:
    """Bytes of UTF-8; 0 if it has none, as it came from bytes that are no text."""
    try:
        return len(secret.encode())
    except UnicodeEncodeError:
        return 0


def _pairs(given: Any, where: str) -> dict[Any, Any]:
    if isinstance(given, Mapping):
        return dict(given)
    if not isinstance(given, str):
        raise ConfigurationError(f"{where} takes a mapping of ids to secrets")
    if given.lstrip().startswith("{"):
        try:
            return dict(from_json(given))
        except ValueError:
            raise ConfigurationError(f"{where} begins like JSON, and is none") from None
    found: dict[str, str] = {}
    for entry in filter(None, (e.strip() for e in re.split("[,\n]", given))):
        key_id, colon, secret = entry.partition(":")
        if not colon or key_id.strip() in found:
            raise ConfigurationError(
                f"{where} takes id:secret, each id once, between commas or lines"
            )
        found[key_id.strip()] = secret.strip()
    return found


def read_file(path: str, where: str) -> dict[str, str]:
    """Keys from a file, such as a secret mounted from Secret Manager. Raises ConfigurationError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        raise ConfigurationError(
            f"{where}: {path!r} can't be read ({exc.__class__.__name__})"
        ) from None
    return read_keys(text, f"{where} ({path})")


def keys_of(secrets: Mapping[str, str]) -> Keys:
    return Keys({key_id: secret.encode() for key_id, secret in secrets.items()})
