"""The folder as a node's container."""

from __future__ import annotations

from pathlib import Path

from pytest_celery import CeleryTestContainer

from gwi_celery.embedded_url import quote_folder
from gwi_celery.testing.vendors.embedded.defaults import EMBEDDED_PREFIX
from gwi_celery.testing.vendors.machine import FolderService


class EmbeddedContainer(CeleryTestContainer):
    """A folder that broker, store and results share."""

    def __init__(self, folder: Path) -> None:
        super().__init__(FolderService("embedded"))
        self.folder = folder

    @property
    def client(self) -> Path:
        return self.folder

    @property
    def celeryconfig(self) -> dict[str, str]:
        url = f"{EMBEDDED_PREFIX}{quote_folder(str(self.folder))}"
        return {"url": url, "host_url": url}
