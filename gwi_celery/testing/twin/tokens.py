"""OIDC tokens as Google makes them for pushes, signed with the twin's own key."""

from __future__ import annotations

import datetime
import hashlib
import threading
import time
from typing import Any

ISSUER = "https://accounts.google.com"
_LIFE = 3600
_KEY_ID = "twin"


def _number(account: str) -> str:
    """The account's id: 21 digits, as Google's."""
    return str(10**20 + int.from_bytes(hashlib.sha256(account.encode()).digest()[:8], "big"))


class Tokens:
    """The key is made with the first token; that needs the package ``cryptography``."""

    def __init__(self) -> None:
        self._signer: Any = None
        self._making = threading.Lock()
        self.certificates: dict[str, str] = {}

    def make(self, account: str, audience: str) -> str:
        from google.auth import jwt

        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": audience,
            "azp": _number(account),
            "sub": _number(account),
            "email": account,
            "email_verified": True,
            "iat": now,
            "exp": now + _LIFE,
        }
        with self._making:  # one key, whoever asks first
            signer = self._signer or self._make_key()
        token: bytes = jwt.encode(signer, claims)
        return token.decode()

    def _make_key(self) -> Any:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import rsa
        from google.auth.crypt import RSASigner

        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "twin")])
        now = datetime.datetime.now(datetime.timezone.utc)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=7))
            .sign(key, hashes.SHA256())
        )
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
        self.certificates = {_KEY_ID: certificate.public_bytes(serialization.Encoding.PEM).decode()}
        self._signer = RSASigner.from_string(pem, key_id=_KEY_ID)
        return self._signer
