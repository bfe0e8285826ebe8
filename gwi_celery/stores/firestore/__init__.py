"""The store on Google Cloud Firestore. See :mod:`.store`."""

from gwi_celery.stores.firestore.store import FirestoreStore

__all__ = ["FirestoreStore"]
