"""Google's emulators as nodes: what the Pub/Sub and the Firestore vendor have in common."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import uuid4

from pytest_celery import CeleryTestContainer

from gwi_celery.testing.emulators import DOCKER_IMAGE, Emulator
from gwi_celery.testing.vendors.machine import EmulatorService


class EmulatorNode(CeleryTestContainer):
    """An emulator, and a project of this node's own so that many nodes may share the emulator."""

    #: The environment variable by which Google's clients find the emulator.
    host_variable: ClassVar[str]

    def __init__(self, container: Any) -> None:
        super().__init__(container)
        self.project = f"test-{uuid4().hex[:12]}"

    @property
    def endpoint(self) -> str:
        """``host:port`` as this machine reaches it."""
        raise NotImplementedError  # each vendor names its own

    @property
    def inner_endpoint(self) -> str:
        """``host:port`` as a container in the same Docker network reaches it."""
        return self.endpoint

    def url(self, endpoint: str) -> str:
        """The Celery setting that names this node at one of its endpoints."""
        raise NotImplementedError  # each vendor names its own

    @property
    def celeryconfig(self) -> dict[str, str]:
        return {
            "url": self.url(self.inner_endpoint),
            "host_url": self.url(self.endpoint),
            "project": self.project,
        }

    @property
    def environment(self) -> dict[str, str]:
        """What a process of this machine needs to reach it; no credentials are needed then."""
        return {self.host_variable: self.endpoint}


class ProcessEmulator(EmulatorNode):
    """One that was found or started by :mod:`gwi_celery.testing.emulators`."""

    def __init__(self, emulator: Emulator) -> None:
        super().__init__(EmulatorService(emulator))
        self.emulator = emulator

    @property
    def endpoint(self) -> str:
        return self.emulator.endpoint


class DockerEmulator(EmulatorNode):
    """Google's image, run by Docker."""

    kind: ClassVar[str]
    #: The port inside the container, as Docker names it.
    inner_port: ClassVar[str]

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def inner_endpoint(self) -> str:
        return f"{self.hostname}:{self._port_number()}"

    @property
    def hostname(self) -> str:
        name: str = self.attrs["Config"]["Hostname"]
        return name

    @property
    def port(self) -> int:
        """The port on this machine."""
        port: int = self._wait_port(self.inner_port)
        return port

    @classmethod
    def _port_number(cls) -> str:
        return cls.inner_port.partition("/")[0]

    @classmethod
    def command(cls, *args: str, **kwargs: Any) -> list[str]:
        """Docker's CMD instruction."""
        address = f"--host-port=0.0.0.0:{cls._port_number()}"
        return ["gcloud", "beta", "emulators", cls.kind, "start", address, *args]

    @classmethod
    def image(cls) -> str:
        return DOCKER_IMAGE

    @classmethod
    def version(cls) -> str:
        return cls.image().rpartition(":")[2]

    @classmethod
    def initial_env(cls) -> dict[str, str]:
        return {}

    @classmethod
    def ports(cls) -> dict[str, None]:
        """Published on any free port of this machine."""
        return {cls.inner_port: None}
