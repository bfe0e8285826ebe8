"""What replaces Docker's container object under a broker or backend node."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from gwi_celery.testing.emulators import Emulator


class _Service:
    """The part of Docker's ``Container`` object that pytest-celery looks at."""

    def __init__(self, name: str) -> None:
        self.id = uuid4().hex
        self.name = f"{name}-{self.id[:12]}"
        self.attrs: dict[str, Any] = {
            "Config": {"Hostname": self.id[:12], "Env": []},
            "HostConfig": {"PortBindings": {}},
            "NetworkSettings": {"Networks": {}, "Ports": {}},
        }

    def reload(self) -> None:
        """Nothing to do: Docker's objects are snapshots, this one is always current."""


class FolderService(_Service):
    """A folder with the embedded broker and store. It always runs, and nothing can stop it."""

    status = "running"

    def logs(self) -> bytes:
        return b""

    def kill(self, signal: str | int | None = None) -> None:
        raise RuntimeError(f"{self.name} is a folder: there is no process to kill")

    def restart(self, timeout: float = 10.0) -> None:
        """Nothing to do: a folder keeps its content."""


class EmulatorService(_Service):
    """An emulator. One that the environment named is not ours to kill or restart."""

    def __init__(self, emulator: Emulator) -> None:
        super().__init__(emulator.kind)
        self.emulator = emulator

    @property
    def status(self) -> str:
        return "running" if not self.emulator.ours or self.emulator.pid else "exited"

    def logs(self) -> bytes:
        return self.emulator.log().encode()

    def kill(self, signal: str | int | None = None) -> None:
        self._check_ours()
        self.emulator.kill()

    def restart(self, timeout: float = 10.0) -> None:
        """At the same endpoint, and empty: emulators keep nothing."""
        self._check_ours()
        self.emulator.restart()

    def _check_ours(self) -> None:
        if not self.emulator.ours:
            raise RuntimeError(
                f"the {self.emulator.kind} emulator at {self.emulator.endpoint} was there before "
                "the tests; unset its environment variable to have one that may be killed"
            )
