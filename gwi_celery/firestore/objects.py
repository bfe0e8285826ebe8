"""Cloud Storage for large values: ``?gcs_bucket=name``, with the extra ``gcs``.

An object is written under a fresh name, before the commit whose manifest names it. The bucket's lifecycle
rule deletes objects that no manifest ever named, or that could not be deleted.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from typing import Any

from gwi_celery import forks
from gwi_celery.errors import ConfigurationError, StoreError, StoreUnavailable, StoreUnusable
from gwi_celery.firestore.url import FirestoreURL
from gwi_celery.gcp.credentials import may_pass

logger = logging.getLogger(__name__)


class Bucket:
    """Objects of one bucket. Connects at the first use in each process.

    Raises ConfigurationError where the extra is not installed.
    """

    def __init__(self, url: FirestoreURL) -> None:
        if importlib.util.find_spec("google.cloud.storage") is None:
            raise ConfigurationError(
                "gcs_bucket needs Cloud Storage's library: pip install 'gwi-celery[gcs]'"
            )
        self.name = url.gcs_bucket
        self._url = url
        self._lock = forks.lock()
        self._opened: tuple[int, Any] | None = None

    def put(self, name: str, data: bytes) -> None:
        """Raises StoreUnavailable, StoreUnusable."""
        with self._mapped():
            # Its name is unique, so the upload may be retried.
            self._bucket().blob(name).upload_from_string(
                data,
                content_type="application/octet-stream",
                checksum="crc32c",
                **self._patience(),
            )

    def get(self, name: str) -> bytes | None:
        """None if there is no such object. Raises as :meth:`put`."""
        from google.api_core.exceptions import NotFound

        with self._mapped():
            try:
                data: bytes = self._bucket().blob(name).download_as_bytes(**self._patience())
            except NotFound:
                return None
            return data

    def delete(self, names: list[str]) -> None:
        """Never raises: the lifecycle rule deletes what is left."""
        if not names:
            return
        try:
            with self._mapped():
                self._bucket().delete_blobs(names, on_error=lambda _: None, **self._patience())
        except StoreError as exc:
            logger.warning("could not delete %d objects of %s: %s", len(names), self.name, exc)

    def delete_below(self, prefix: str) -> None:
        """Delete all objects whose names begin with ``prefix``. Never raises."""
        try:
            with self._mapped():
                bucket = self._bucket()
                found = bucket.list_blobs(prefix=prefix, **self._patience())
                self.delete([blob.name for blob in found])
        except StoreError as exc:
            logger.warning("could not look for objects of %s: %s", self.name, exc)

    def _patience(self) -> dict[str, Any]:
        """Retries for the URL's timeout: the library's default of two minutes may outlast a lease."""
        retry: Any = importlib.import_module("google.cloud.storage.retry").DEFAULT_RETRY
        return {"timeout": self._url.timeout, "retry": retry.with_timeout(self._url.timeout)}

    def _bucket(self) -> Any:
        with self._lock:
            # Two processes must not share the sockets of one session.
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = os.getpid(), self._client().bucket(self.name)
            return self._opened[1]

    def _client(self) -> Any:
        storage: Any = importlib.import_module("google.cloud.storage")
        if not self._url.gcs_endpoint:
            return storage.Client(project=self._url.project)
        anonymous: Any = importlib.import_module("google.auth.credentials").AnonymousCredentials
        return storage.Client(
            project=self._url.project,
            credentials=anonymous(),
            client_options={"api_endpoint": self._url.gcs_endpoint},
        )

    def _mapped(self) -> _Mapped:
        return _Mapped(self.name)


class _Mapped:
    """Turns the library's exceptions into StoreUnavailable and StoreUnusable."""

    def __init__(self, bucket: str) -> None:
        self._bucket = bucket

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, exc: Any, traceback: Any) -> None:
        import requests
        from google.api_core import exceptions
        from google.auth.exceptions import GoogleAuthError

        if isinstance(exc, GoogleAuthError) and may_pass(exc):
            raise StoreUnavailable(
                f"Cloud Storage's credentials can't be had now ({exc}): try again"
            ) from exc
        if isinstance(exc, (exceptions.Forbidden, exceptions.Unauthorized, GoogleAuthError)):
            raise StoreUnusable(
                f"Cloud Storage refuses bucket {self._bucket!r} ({exc}): grant this service account "
                "roles/storage.objectUser on it"
            ) from exc
        if isinstance(exc, exceptions.NotFound):
            raise StoreUnusable(
                f"there is no bucket {self._bucket!r} ({exc}): gcloud storage buckets create "
                f"gs://{self._bucket}"
            ) from exc
        if isinstance(
            exc, (exceptions.ServerError, exceptions.TooManyRequests, exceptions.RetryError)
        ):
            raise StoreUnavailable(f"Cloud Storage does not answer ({exc}): try again") from exc
        if isinstance(exc, requests.exceptions.RequestException):
            raise StoreUnavailable(f"Cloud Storage can't be reached ({exc}): try again") from exc
        if isinstance(exc, exceptions.GoogleAPIError):
            raise StoreUnusable(f"Cloud Storage refuses the request: {exc}") from exc
