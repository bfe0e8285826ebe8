"""The folder of embedded files: private to its owner, and without links out of it.

Whoever can write there can run jobs as the workers' user. So folders are made 0700 and files 0600, what
belongs to another user is refused, and no link is followed: neither the folder itself nor a file in it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import stat
from pathlib import Path

from gwi_celery import forks
from gwi_celery.errors import ConfigurationError

logger = logging.getLogger(__name__)

#: What SQLite keeps beside a database.
_BESIDE = ("", "-wal", "-shm", "-journal")
#: Names of our files. A folder that holds nothing else is made private.
_OURS = re.compile(
    r"(broker|store)\.sqlite3(-wal|-shm|-journal)?|upkeep\.lock|wake|[0-9a-f]{32}(\.polled)?"
)

#: Held while a file is made: closing a file drops the locks that this process's SQLite has on it.
_making = forks.lock()
#: Folders that were warned about.
_warned: set[Path] = set()


#: The default folder's name, and the files that mark a project's root.
DEFAULT = ".gwi"
_ROOTS = ("pyproject.toml", "setup.py", "setup.cfg", "manage.py")
#: Folders that were named relative to the current directory.
_relative: set[Path] = set()


def place(name: str) -> Path:
    """The absolute path of the folder with this name.

    The default folder is the one in the current directory if that exists, else the one at the root of the
    project that the current directory is in. Any other relative name is below the current directory.

    Raises ConfigurationError for a name that leads nowhere.
    """
    if "\0" in name:
        raise ConfigurationError(f"no folder can have the name {name!r}: write another one")
    try:
        path = Path(name).expanduser()
        if path.is_absolute():
            return path
        here = Path.cwd()
    except (RuntimeError, OSError) as exc:  # no such user, or the current directory was deleted
        raise ConfigurationError(
            f"can't tell where the folder {name!r} is ({exc}): write an absolute path"
        ) from exc
    found = here / path
    if name == DEFAULT and not found.is_dir():
        for above in (here, *here.parents):
            if any((above / root).is_file() for root in _ROOTS):
                return above / DEFAULT
    _relative.add(found)
    return found


class Refused(Exception):
    """The folder or file can't be trusted; the text says why, and what to do."""


def make(folder: Path) -> None:
    """Make the folder, or check the one that is there. Raises Refused, OSError."""
    try:
        found = os.lstat(folder)
    except FileNotFoundError:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
            if folder in _relative:
                logger.warning(
                    "made %s for queues and jobs. It is empty, and its place depends on the current "
                    "directory: a process started in another directory uses another folder. Set "
                    "GWI_FOLDER to an absolute path",
                    folder,
                )
        found = os.lstat(folder)
    if stat.S_ISLNK(found.st_mode):
        raise Refused(f"the folder {folder} is a symbolic link: name the folder that it leads to")
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    _check_owner(folder, found)
    if not found.st_mode & 0o077:
        return
    if found.st_uid == os.geteuid() and all(map(_OURS.fullmatch, os.listdir(folder))):
        _chmod(folder, found)
    elif (
        found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX and folder not in _warned
    ):
        _warned.add(folder)
        logger.warning(
            "everybody on this machine may write to the folder %s, and so run jobs here: make it mode "
            "0700, or name another one",
            folder,
        )


def make_file(path: Path) -> None:
    """Make the database's file, empty, or check the one that is there. Raises Refused, OSError."""
    for beside in _BESIDE:
        _check_file(Path(f"{path}{beside}"))
    with _making, contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    _check_file(path)


def _check_file(path: Path) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "no file"
        raise Refused(f"{path} is {kind}, and what is there is not touched: move it away")
    _check_owner(path, found)
    if found.st_uid == os.geteuid() and found.st_mode & 0o077:
        _chmod(path, found)


def _check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in (os.geteuid(), 0):
        raise Refused(
            f"{path} belongs to user {found.st_uid}, and this process runs as {os.geteuid()}: run it as "
            "that user, or name another folder (GWI_FOLDER)"
        )


def _chmod(path: Path, found: os.stat_result) -> None:
    with contextlib.suppress(OSError):  # a file system without modes, or a read-only one
        os.chmod(path, stat.S_IMODE(found.st_mode) & 0o700)
