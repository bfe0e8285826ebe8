"""From a URL to a store."""

from __future__ import annotations

from gwi_celery import embedded_url
from gwi_celery.errors import ConfigurationError
from gwi_celery.stores.base import Store
from gwi_celery.text import nearest


def check_store_url(url: str) -> None:
    """Raises ConfigurationError for a URL that :func:`open_store` would refuse. Opens nothing."""
    scheme = url.partition("://")[0]
    if scheme == "firestore":
        from gwi_celery.firestore.url import parse

        parse(url)
    elif scheme == "embedded":
        embedded_url.parse(url)
    else:
        raise ConfigurationError(
            f"unknown store {url!r}; {nearest(scheme, ['embedded', 'firestore'])} "
            "(embedded:///path/to/folder, embedded:// for .gwi/, embedded://:memory:, "
            "firestore://project)"
        )


def open_store(url: str) -> Store:
    """The store that a URL names: ``embedded:///path``, ``embedded://``, ``embedded://:memory:/name``,
    or ``firestore://project/prefix?database=...``.

    Raises ConfigurationError for any other URL.
    """
    check_store_url(url)
    if url.startswith("firestore:"):
        from gwi_celery.firestore.url import parse
        from gwi_celery.stores.firestore import FirestoreStore

        return FirestoreStore(parse(url))
    # The URL may have options of a broker as well; the store ignores them.
    from gwi_celery.stores.sqlite import SqliteStore, memory_store

    parsed = embedded_url.parse(url)
    if parsed.folder is None:
        return memory_store(parsed.memory)
    return SqliteStore(parsed.folder)
