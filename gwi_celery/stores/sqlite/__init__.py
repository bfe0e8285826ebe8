"""The store on SQLite. See :mod:`.store`."""

from gwi_celery.stores.sqlite.store import (
    SharedMemoryStore,
    SqliteStore,
    forget_memory_store,
    memory_store,
)

__all__ = ["SharedMemoryStore", "SqliteStore", "forget_memory_store", "memory_store"]
