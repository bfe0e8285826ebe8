"""The peers' suites: taken from the source distributions of the installed versions, at run time.

Nothing of them is kept in this repository. They and what they need beyond our own dependencies are
put in a folder of the system's temporary one, and used again by later runs.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

PEERS = ("celery", "kombu")

#: What the suites import or mark tests with, and we don't otherwise use. Without their own
#: dependencies: those are installed, or named here.
EXTRAS = (
    "asgiref",
    "django",
    "freezegun",
    "pytest-order",
    "pytest-rerunfailures",
    "pytest-subtests",
    "sqlparse",
)

#: Before the name of a result backend of ours in a URL. Many tests keep their notes in Redis, and for
#: that skip themselves unless the result backend's URL begins with ``redis``.
ALIAS = "redis-not-but-"

#: Loaded by each Python of a run, so that subprocesses of a test know our schemes too.
_SITE = f"""\
import gwi_celery  # it registers the transports
from celery.app.backends import BACKEND_ALIASES
from gwi_celery.app import _BACKENDS

BACKEND_ALIASES.update({{"{ALIAS}" + name: path for name, path in _BACKENDS.items()}})
"""


def folder() -> Path:
    """Where everything is, by version."""
    name = "gwi-peers-" + "-".join(f"{peer}{version(peer)}" for peer in PEERS)
    path = Path(tempfile.gettempdir()) / name
    path.mkdir(exist_ok=True)
    return path


def suite(peer: str) -> Path:
    """A folder with the peer's ``t`` package and nothing else of it, downloaded if need be."""
    target = folder() / peer
    if (target / "t" / "integration").exists():
        return target
    with tempfile.TemporaryDirectory(dir=folder()) as name:
        spec = f"{peer}=={version(peer)}"
        _pip("download", "--no-deps", "--no-binary", ":all:", "--dest", name, spec)
        archive = next(Path(name).glob("*.tar.gz"))
        with tarfile.open(archive) as tar:
            tar.extractall(name)
        source = next(path for path in Path(name).iterdir() if path.is_dir())
        target.mkdir(exist_ok=True)
        if (source / "pyproject.toml").exists():
            shutil.copy(source / "pyproject.toml", target)
        shutil.copytree(source / "t", target / "t")
    return target


def site() -> list[Path]:
    """Folders for PYTHONPATH: the extras, and what registers our transports."""
    extras = folder() / "extras"
    if not extras.exists():
        _pip("install", "--no-deps", "--target", str(extras), *EXTRAS)
    ours = folder() / "site"
    ours.mkdir(exist_ok=True)
    (ours / "sitecustomize.py").write_text(_SITE)
    return [ours, extras]


def _pip(*args: str) -> None:
    command = [sys.executable, "-m", "pip", *args, "--quiet", "--disable-pip-version-check"]
    subprocess.run(command, check=True)
