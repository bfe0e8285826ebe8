"""The embedded files are their owner's, and nothing planted among them reaches another file."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery import Celery

from gwi_celery import broker_for, embedded_url, setup, upkeep
from gwi_celery.brokers.base import OutgoingMessage, QueueSpec
from gwi_celery.brokers.embedded import EmbeddedBroker
from gwi_celery.config import Settings
from gwi_celery.errors import BrokerUnusable, StoreUnusable
from gwi_celery.stores.sqlite import SqliteStore
from tests import zygote
from tests.contract.contender import request


def publish(folder: Path) -> None:
    broker = EmbeddedBroker(folder)
    try:
        broker.declare_queue(QueueSpec("q"))
        receiver = broker.receiver()
        receiver.subscribe("q")
        broker.publish("", "q", OutgoingMessage(b"m"))
        receiver.close()
    finally:
        broker.close()


def claim(folder: Path) -> None:
    store = SqliteStore(folder)
    try:
        store.claim(request("k", "o"))
    finally:
        store.close()


@pytest.fixture
def umask() -> Iterator[None]:
    """The most open there is."""
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(p.lstat().st_mode) for p in folder.rglob("*") if not p.is_dir()}


@pytest.mark.parametrize("use", [publish, claim])
def test_it_is_made_for_its_owner_alone(
    use: Callable[[Path], None], tmp_path: Path, umask: None
) -> None:
    folder = tmp_path / "above" / "gwi"
    use(folder)
    for made in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert modes(folder) == {0o600}


def test_files_stay_closed_while_they_are_used(tmp_path: Path, umask: None) -> None:
    broker = EmbeddedBroker(tmp_path / "gwi")
    broker.declare_queue(QueueSpec("q"))
    receiver = broker.receiver()
    receiver.subscribe("q")
    names = {p.name for p in (tmp_path / "gwi").iterdir()}
    assert {"broker.sqlite3-wal", "broker.sqlite3-shm", "wake"} <= names
    assert modes(tmp_path / "gwi") == {0o600}
    receiver.close()
    broker.close()


def test_what_an_older_release_made_is_closed(tmp_path: Path) -> None:
    publish(tmp_path / "gwi")
    claim(tmp_path / "gwi")
    app = Celery(uuid.uuid4().hex, set_as_current=False)
    setup(app, folder=str(tmp_path / "gwi"))
    upkeep.clean(app)
    broker_for(app).close()
    for path in (tmp_path / "gwi", *(tmp_path / "gwi").rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    publish(tmp_path / "gwi")
    claim(tmp_path / "gwi")
    upkeep.clean(app)
    app.close()
    assert stat.S_IMODE((tmp_path / "gwi").stat().st_mode) == 0o700
    assert modes(tmp_path / "gwi") == {0o600}


def test_a_folder_that_holds_more_is_left_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "notes.txt").write_text("x")
    for mode, warned in ((0o755, False), (0o1777, False), (0o777, True)):
        shared.chmod(mode)
        caplog.clear()
        publish(shared)
        assert stat.S_IMODE(shared.stat().st_mode) == mode
        assert ("may write to the folder" in caplog.text) is warned
        assert stat.S_IMODE((shared / "broker.sqlite3").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("use", "name", "error"),
    [
        (publish, "broker.sqlite3", BrokerUnusable),
        (publish, "broker.sqlite3-wal", BrokerUnusable),
        (publish, "broker.sqlite3-shm", BrokerUnusable),
        (publish, "wake", BrokerUnusable),
        (publish, "", BrokerUnusable),
        (claim, "store.sqlite3", StoreUnusable),
        (claim, "store.sqlite3-journal", StoreUnusable),
        (claim, "", StoreUnusable),
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_no_link_is_followed(
    use: Callable[[Path], None], name: str, error: type[Exception], there: bool, tmp_path: Path
) -> None:
    folder, victim = tmp_path / "gwi", tmp_path / "victim"
    if name:
        folder.mkdir(mode=0o700)
    if there and name in ("", "wake"):
        victim.mkdir()
    elif there:
        victim.write_bytes(b"precious")
    (folder / name if name else folder).symlink_to(victim)
    with pytest.raises(error, match="symbolic link"):
        use(folder)
    if there:
        assert (
            list(victim.iterdir()) == [] if victim.is_dir() else victim.read_bytes() == b"precious"
        )
    else:
        assert not victim.exists()


_AS_NOBODY = """
import os, sys
from pathlib import Path
from gwi_celery.errors import BrokerUnusable, StoreUnusable
from tests.unit.test_folder import claim, publish
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for use in (publish, claim):
    try:
        use(Path(sys.argv[1]))
    except (BrokerUnusable, StoreUnusable) as exc:
        print("refused:", exc)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder whose parents anyone may enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("read_only", ["file and folder", "file", "empty folder"])
def test_files_that_may_not_be_written(open_folder: Path, read_only: str, tmp_path: Path) -> None:
    """In a process that may not: root may write anywhere."""
    folder = open_folder / "gwi"
    folder.mkdir()
    if read_only != "empty folder":
        for use in (publish, claim):
            use(folder)
        for name in ("broker.sqlite3", "store.sqlite3"):
            (folder / name).chmod(0o444)
    folder.chmod(0o777 if read_only == "file" else 0o555)
    done = zygote.run(_AS_NOBODY, str(folder), folder=tmp_path)
    assert done.returncode == 0, done.stdout
    broker, store = re.findall("^refused: (.*)", done.stdout, re.MULTILINE)
    assert str(folder / "broker.sqlite3") in broker
    assert str(folder / "store.sqlite3") in store
    assert "writ" in broker
    assert "writ" in store


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", ["", "broker.sqlite3", "broker.sqlite3-wal", "wake"])
def test_what_is_anothers_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "gwi"
    publish(folder)
    (folder / "broker.sqlite3-wal").touch()
    os.chown(folder / name, 12345, -1)
    with pytest.raises(BrokerUnusable, match="belongs to user 12345"):
        publish(folder)


@pytest.mark.parametrize(
    "planted", ["../../victim", "victim", "link", "0" * 32, "", "/etc/passwd", "x.polled"]
)
def test_a_name_in_the_database_reaches_no_other_file(planted: str, tmp_path: Path) -> None:
    folder, victim = tmp_path / "gwi", tmp_path / "victim"
    victim.write_bytes(b"precious")
    broker = EmbeddedBroker(folder)
    broker.declare_queue(QueueSpec("q"))
    receiver = broker.receiver()
    receiver.subscribe("q")
    wake = folder / "wake"
    name = uuid.uuid4().hex if planted == "link" else planted
    if planted == "link":
        (wake / name).symlink_to(victim)
    elif planted == "0" * 32:
        (wake / name).write_bytes(b"precious")
    (wake / "victim").write_bytes(b"precious")
    with broker.database.write() as c:
        c.execute("UPDATE listeners SET intake = ?", (name,))
    broker.publish("", "q", OutgoingMessage(b"m"))
    broker.publish("", "q", OutgoingMessage(b"m"))
    receiver.close()
    broker.close()
    assert victim.read_bytes() == b"precious"
    assert (wake / "victim").read_bytes() == b"precious"


# --- where it is ----------------------------------------------------------------------------------


def test_the_default_one_is_at_the_projects_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """So a worker and a producer that are started in two of its folders share a queue."""
    project = tmp_path / "project"
    (project / "shop" / "jobs").mkdir(parents=True)
    (project / "pyproject.toml").touch()
    monkeypatch.chdir(project / "shop" / "jobs")
    for url in ("embedded://", "embedded://.gwi"):
        assert embedded_url.parse(url).folder == project / ".gwi"
        assert embedded_url.absolute(url) == f"embedded://{project}/.gwi"
    assert Settings().effective_broker_url == f"embedded://{project}/.gwi"
    assert (
        embedded_url.absolute("embedded://x%25?retention=5")
        == f"embedded://{Path.cwd()}/x%25?retention=5"
    )
    publish(embedded_url.parse("embedded://").folder)  # type: ignore[arg-type]
    assert caplog.text == ""
    # 0.1 made it in the current directory: there it stays.
    (project / "shop" / "jobs" / ".gwi").mkdir()
    assert embedded_url.parse("embedded://").folder == Path.cwd() / ".gwi"


@pytest.mark.parametrize("url", ["embedded://", "embedded://data"])
def test_where_its_place_is_by_chance_that_is_said_when_it_begins(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        publish(embedded_url.parse(url).folder)  # type: ignore[arg-type]
    (warning,) = caplog.messages
    assert warning.startswith(f"made {tmp_path}/")
    assert "Set GWI_FOLDER" in warning
    caplog.clear()
    publish(embedded_url.parse(f"embedded://{tmp_path}/named").folder)  # type: ignore[arg-type]
    assert caplog.text == ""


def test_a_worker_prints_the_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = Celery(uuid.uuid4().hex, set_as_current=False)
    setup(app, broker_url="embedded://", store_url="embedded://")
    assert app.connection().as_uri() == app.backend.as_uri() == f"embedded://{tmp_path}/.gwi"
    app.close()
