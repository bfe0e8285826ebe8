"""pytest-celery with real workers as processes: no Docker, no broker to install.

In the top ``conftest.py``::

    pytest_plugins = ["gwi_celery.testing.fixtures"]

and a test asks for ``celery_setup``, as with pytest-celery and containers. ``gwi_broker`` and
``gwi_backend`` say what the worker runs on, ``gwi_settings`` what ``setup()`` gets; override them, or
parametrize a test with them.
``default_worker_command``, ``default_worker_tasks`` and the other fixtures of pytest-celery's are
overridden as its documentation says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from pytest_celery import (
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryTestBackend,
    CeleryTestBroker,
    CeleryTestSetup,
    CeleryTestWorker,
)

from gwi_celery import setup
from gwi_celery.config import SETTINGS
from gwi_celery.testing.eager import gwi_eager_jobs
from gwi_celery.testing.emulator_fixtures import (
    firestore_emulator,
    gwi_twin_switches,
    pubsub_emulator,
    pubsub_twin,
)
from gwi_celery.testing.process import WorkerProcess, worker_process
from gwi_celery.testing.vendors.embedded.defaults import (
    CELERY_EMBEDDED_BACKEND,
    CELERY_EMBEDDED_BROKER,
)
from gwi_celery.testing.vendors.embedded.fixtures import (
    celery_embedded_backend,
    celery_embedded_broker,
)
from gwi_celery.testing.vendors.emulator import EmulatorNode
from gwi_celery.testing.vendors.firestore.defaults import (
    CELERY_FIRESTORE_BACKEND,
    CELERY_FIRESTORE_PROCESS_BACKEND,
)
from gwi_celery.testing.vendors.firestore.fixtures import (
    celery_firestore_backend,
    celery_firestore_process_backend,
    default_firestore_backend,
    default_firestore_backend_cls,
    default_firestore_backend_command,
    default_firestore_backend_env,
    default_firestore_backend_image,
    default_firestore_backend_ports,
)
from gwi_celery.testing.vendors.pubsub.defaults import (
    CELERY_PUBSUB_BROKER,
    CELERY_PUBSUB_PROCESS_BROKER,
    CELERY_PUBSUB_TWIN_BROKER,
)
from gwi_celery.testing.vendors.pubsub.fixtures import (
    celery_pubsub_broker,
    celery_pubsub_process_broker,
    celery_pubsub_twin_broker,
    default_pubsub_broker,
    default_pubsub_broker_cls,
    default_pubsub_broker_command,
    default_pubsub_broker_env,
    default_pubsub_broker_image,
    default_pubsub_broker_ports,
)

__all__ = [
    "celery_backend_cluster",
    "celery_broker_cluster",
    "celery_embedded_backend",
    "celery_embedded_broker",
    "celery_firestore_backend",
    "celery_firestore_process_backend",
    "celery_pubsub_broker",
    "celery_pubsub_process_broker",
    "celery_pubsub_twin_broker",
    "celery_setup_app",
    "celery_setup_cls",
    "default_firestore_backend",
    "default_firestore_backend_cls",
    "default_firestore_backend_command",
    "default_firestore_backend_env",
    "default_firestore_backend_image",
    "default_firestore_backend_ports",
    "default_pubsub_broker",
    "default_pubsub_broker_cls",
    "default_pubsub_broker_command",
    "default_pubsub_broker_env",
    "default_pubsub_broker_image",
    "default_pubsub_broker_ports",
    "default_worker_container",
    "default_worker_container_cls",
    "default_worker_env",
    "firestore_emulator",
    "gwi_backend",
    "gwi_broker",
    "gwi_eager_jobs",
    "gwi_settings",
    "gwi_start_worker",
    "gwi_twin_switches",
    "pubsub_emulator",
    "pubsub_twin",
]

#: ``gwi_broker`` -> the fixture with its node.
_BROKERS = {
    "embedded": CELERY_EMBEDDED_BROKER,
    "pubsub": CELERY_PUBSUB_PROCESS_BROKER,
    "pubsub-docker": CELERY_PUBSUB_BROKER,
    "twin": CELERY_PUBSUB_TWIN_BROKER,
}

#: ``gwi_backend`` -> the fixture with its node.
_BACKENDS = {
    "embedded": CELERY_EMBEDDED_BACKEND,
    "firestore": CELERY_FIRESTORE_PROCESS_BACKEND,
    "firestore-docker": CELERY_FIRESTORE_BACKEND,
}


def _store(backend_url: str | None) -> dict[str, str]:
    """Results and jobs are stored in the same place where possible."""
    own = str(backend_url or "").startswith(("embedded:", "firestore:"))
    return {"store_url": str(backend_url)} if own else {}


@pytest.fixture
def gwi_broker() -> str:
    """``embedded``, ``pubsub`` (the emulator, found or started), ``pubsub-docker``, or ``twin``.

    The last is a Pub/Sub server as strict as Google documents its own, without Java.
    """
    return "embedded"


@pytest.fixture
def gwi_backend() -> str:
    """``embedded``, ``firestore`` (the emulator, found or started) or ``firestore-docker``."""
    return "embedded"


@pytest.fixture
def celery_broker_cluster(
    request: pytest.FixtureRequest, gwi_broker: str
) -> Iterator[CeleryBrokerCluster]:
    """One node, of the kind that ``gwi_broker`` names."""
    node: CeleryTestBroker = request.getfixturevalue(_BROKERS[gwi_broker])
    cluster = CeleryBrokerCluster(node)
    yield cluster
    cluster.teardown()


@pytest.fixture
def celery_backend_cluster(
    request: pytest.FixtureRequest, gwi_backend: str
) -> Iterator[CeleryBackendCluster]:
    """One node, of the kind that ``gwi_backend`` names."""
    node: CeleryTestBackend = request.getfixturevalue(_BACKENDS[gwi_backend])
    cluster = CeleryBackendCluster(node)
    yield cluster
    cluster.teardown()


@pytest.fixture
def gwi_settings() -> dict[str, Any]:
    """Settings for ``gwi_celery.setup()``, in the test's app and in its workers' apps."""
    return {}


class _Setup(CeleryTestSetup):
    """Makes the test's own app the current one: pytest-celery makes others on its way."""

    def __init__(self, *args: Any, app: Celery, **kwargs: Any) -> None:
        super().__init__(*args, app=app, **kwargs)
        app.set_current()


@pytest.fixture
def celery_setup_cls() -> type[CeleryTestSetup]:
    return _Setup


@pytest.fixture
def celery_setup_app(
    celery_setup_cls: type[CeleryTestSetup],
    celery_setup_config: dict[str, Any],
    celery_setup_name: str,
    celery_broker_cluster: CeleryBrokerCluster,
    celery_backend_cluster: CeleryBackendCluster,
    gwi_settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Celery]:
    """The test's own app, set up for reliable tasks; closed at its end."""
    for name, value in _emulators(celery_broker_cluster, celery_backend_cluster).items():
        monkeypatch.setenv(name, value)
    app = celery_setup_cls.create_setup_app(
        celery_setup_config=celery_setup_config, celery_setup_app_name=celery_setup_name
    )
    setup(app, **{**_store(app.conf.result_backend), **gwi_settings})
    yield app
    app.close()


@pytest.fixture
def default_worker_container_cls() -> type[WorkerProcess]:
    return WorkerProcess


@pytest.fixture
def default_worker_env(
    default_worker_container_cls: type[WorkerProcess],
    celery_worker_cluster_config: dict[str, Any],
    celery_broker_cluster: CeleryBrokerCluster,
    celery_backend_cluster: CeleryBackendCluster,
    gwi_settings: dict[str, Any],
) -> dict[str, str]:
    """Broker, results and store, as a process of this machine reaches them, and the settings."""
    env = {
        **default_worker_container_cls.initial_env(_from_here(celery_worker_cluster_config)),
        **_emulators(celery_broker_cluster, celery_backend_cluster),
    }
    for name, value in {**_store(env.get("CELERY_RESULT_BACKEND")), **gwi_settings}.items():
        env[SETTINGS[name].metadata["env"]] = str(value)
    return env


def _from_here(config: dict[str, Any]) -> dict[str, Any]:
    """The nodes' addresses outside of Docker's network."""
    return {
        name: cluster and {**cluster, "urls": cluster["host_urls"]}
        for name, cluster in config.items()
    }


def _emulators(*clusters: Any) -> dict[str, str]:
    env: dict[str, str] = {}
    for cluster in clusters:
        for node in cluster or ():
            if isinstance(node.container, EmulatorNode):
                env.update(node.container.environment)
    return env


@pytest.fixture
def default_worker_container(
    default_worker_container_cls: type[WorkerProcess],
    default_worker_command: list[str],
    default_worker_env: dict[str, str],
    default_worker_initial_content: dict[str, bytes],
    tmp_path: Path,
) -> Iterator[WorkerProcess]:
    """A real ``celery worker``, ready."""
    with worker_process(
        default_worker_command,
        tmp_path / "worker",
        env=default_worker_env,
        content=default_worker_initial_content,
        cls=default_worker_container_cls,
    ) as container:
        container.ready()
        yield container


@pytest.fixture
def gwi_start_worker(
    default_worker_cls: type[CeleryTestWorker],
    default_worker_container_cls: type[WorkerProcess],
    default_worker_env: dict[str, str],
    default_worker_initial_content: dict[str, bytes],
    celery_setup_app: Celery,
    tmp_path: Path,
) -> Iterator[Callable[..., CeleryTestWorker]]:
    """Starts more workers on the same broker: ``gwi_start_worker("--pool", "solo")``.

    Returns the node, ready; all are stopped with the test.
    """
    with ExitStack() as stack:
        count = 0

        def start(*args: str) -> CeleryTestWorker:
            nonlocal count
            count += 1
            container = stack.enter_context(
                worker_process(
                    default_worker_container_cls.command(*args),
                    tmp_path / f"worker-{count}",
                    env=default_worker_env,
                    content=default_worker_initial_content,
                    cls=default_worker_container_cls,
                )
            )
            container.ready()
            return default_worker_cls(container, app=celery_setup_app)

        yield start
