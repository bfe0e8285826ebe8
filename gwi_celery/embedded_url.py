"""``embedded://`` URLs: the folder that a broker, a store or results are kept in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gwi_celery import folder, options
from gwi_celery.errors import ConfigurationError


@dataclass(frozen=True)
class EmbeddedURL:
    """``embedded:///absolute/folder``, ``embedded://relative/folder``, ``embedded://`` (.gwi), or
    ``embedded://:memory:`` and ``embedded://:memory:/name``; options follow after ``?``."""

    #: None for memory.
    folder: Path | None
    #: Names the memory shared by all who use it in this process.
    memory: str
    options: Mapping[str, float]


#: The embedded broker's URL options, and how each is read. The store may have the same URL.
OPTIONS = {
    "lease_seconds": options.NUMBER,
    "max_deliveries": options.WHOLE.called("a number"),
    "retention": options.NUMBER,
}
#: Folder of ``embedded://``.
DEFAULT_FOLDER = folder.DEFAULT
_MEMORY = ":memory:"


def parse(url: str) -> EmbeddedURL:
    """Take an ``embedded://`` URL apart. Raises ConfigurationError, naming what is wrong."""
    scheme, found, _ = url.partition("://")
    if not found or scheme != "embedded":
        raise ConfigurationError(
            f"{url!r} is no embedded URL: write embedded:///path/to/folder, embedded:// for "
            f"{DEFAULT_FOLDER}/, or embedded://:memory:"
        )
    rest = url.partition("://")[2]
    # urlsplit would read a folder's name as a host: its case and ':' would be lost.
    parts = urlsplit("//x/" + rest)
    if parts.fragment:
        raise ConfigurationError(f"{url!r}: write '#' in a folder's name as %23")
    given = read(options.query(url, parts.query, OPTIONS), url)
    path = unquote(parts.path[1:])
    if path == _MEMORY or path.startswith(_MEMORY + "/"):
        return EmbeddedURL(None, path[len(_MEMORY) + 1 :] or "default", given)
    return EmbeddedURL(folder.place(path or DEFAULT_FOLDER), "", given)


def read(given: Mapping[str, object], url: str) -> dict[str, float]:
    """The broker's options, of its URL or transport options. Raises ConfigurationError."""
    found = {
        name: OPTIONS[name].convert(value, f"{url!r}: {name}") for name, value in given.items()
    }
    for name, value in found.items():
        if value <= 0:
            raise ConfigurationError(f"{url!r}: {name} must be above 0, not {given[name]!r}")
        if value > options.LONGEST:
            raise ConfigurationError(
                f"{url!r}: {name} must be at most {options.LONGEST:.0f}, not {given[name]!r}"
            )
    return found


def absolute(url: str) -> str:
    """The same URL, naming its folder by an absolute path. Raises ConfigurationError."""
    if parse(url).folder is None:
        return url
    head, mark, query = url.partition("?")
    name = unquote(head.partition("://")[2]) or DEFAULT_FOLDER
    return f"embedded://{quote_folder(name)}{mark}{query}"


def quote_folder(name: str) -> str:
    """The folder of this name as it stands in an ``embedded://`` URL: its absolute path."""
    absolute = str(folder.place(name))
    return absolute.replace("%", "%25").replace("?", "%3F").replace("#", "%23").replace(";", "%3B")
