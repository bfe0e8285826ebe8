"""The Firestore emulator: a container of Docker's, or a process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gwi_celery.gcp.emulators import FIRESTORE_HOST
from gwi_celery.testing.vendors.emulator import DockerEmulator, EmulatorNode, ProcessEmulator
from gwi_celery.testing.vendors.firestore.defaults import FIRESTORE_PORT, FIRESTORE_PREFIX

if TYPE_CHECKING:
    from google.cloud.firestore import Client


class FirestoreNode(EmulatorNode):
    host_variable = FIRESTORE_HOST

    def url(self, endpoint: str) -> str:
        # The environment names the emulator's address, as for all of Google's clients.
        return f"{FIRESTORE_PREFIX}{self.project}"

    @property
    def client(self) -> Client:
        """A client of Google's own; FIRESTORE_EMULATOR_HOST must name the emulator."""
        from google.auth.credentials import AnonymousCredentials
        from google.cloud.firestore import Client

        return Client(project=self.project, credentials=AnonymousCredentials())


class FirestoreContainer(FirestoreNode, DockerEmulator):
    kind = "firestore"
    inner_port = FIRESTORE_PORT

    @property
    def ready_prompt(self) -> str:
        return "Dev App Server is now running"


class FirestoreProcess(FirestoreNode, ProcessEmulator):
    pass
