"""What older releases left: ``RELEASE.sql`` has their embedded files, made by their own code."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent


def scripts(release: str) -> dict[str, str]:
    """Name of each of its files -> the SQL that makes it."""
    text = (HERE / f"{release}.sql").read_text()
    return dict(re.findall(r"^-- file (\w+)\n(.*?)(?=^-- file |\Z)", text, re.M | re.S))


def older_schema(release: str, name: str) -> str:
    """The same without its rows."""
    return re.sub(r"^INSERT INTO .*?;$", "", scripts(release)[name], flags=re.M | re.S)
