"""The Pub/Sub emulator, as a container of Docker's or a process, and its strict twin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gwi_celery.gcp.emulators import PUBSUB_HOST
from gwi_celery.testing.twin import PUBSUB_VARIABLES
from gwi_celery.testing.vendors.emulator import DockerEmulator, EmulatorNode, ProcessEmulator
from gwi_celery.testing.vendors.pubsub.defaults import PUBSUB_PORT, PUBSUB_PREFIX

if TYPE_CHECKING:
    from google.cloud.pubsub_v1 import PublisherClient


class PubSubNode(EmulatorNode):
    host_variable = PUBSUB_HOST

    def url(self, endpoint: str) -> str:
        return f"{PUBSUB_PREFIX}{endpoint}/{self.project}"

    @property
    def client(self) -> PublisherClient:
        """A publisher of Google's own, connected to the emulator."""
        import grpc
        from google.cloud.pubsub_v1 import PublisherClient
        from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport

        channel = grpc.insecure_channel(self.endpoint)
        return PublisherClient(transport=PublisherGrpcTransport(channel=channel))


class PubSubContainer(PubSubNode, DockerEmulator):
    kind = "pubsub"
    inner_port = PUBSUB_PORT

    @property
    def ready_prompt(self) -> str:
        return "Server started, listening on"


class PubSubProcess(PubSubNode, ProcessEmulator):
    pass


class PubSubTwinProcess(PubSubProcess):
    """:mod:`gwi_celery.testing.twin`: its clients must know that it is strict."""

    @property
    def environment(self) -> dict[str, str]:
        return dict.fromkeys(PUBSUB_VARIABLES, self.endpoint)
