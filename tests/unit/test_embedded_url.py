"""The forms of an embedded URL, and which folder each names. The default one: test_folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from gwi_celery import embedded_url
from gwi_celery.embedded_url import quote_folder
from gwi_celery.errors import ConfigurationError


@pytest.mark.parametrize("folder", ["/a/b", "/a b/ä#?%;x", "/UPPER/Case:8"])
def test_any_folder_goes_through_a_url(folder: str) -> None:
    assert embedded_url.parse(f"embedded://{quote_folder(folder)}").folder == Path(folder)


def test_the_forms_of_an_embedded_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert embedded_url.parse("embedded://").folder == tmp_path / ".gwi"
    assert embedded_url.parse("embedded://Sub/dir").folder == tmp_path / "Sub/dir"
    assert embedded_url.parse("embedded://:memory:").memory == "default"
    assert embedded_url.parse("embedded://:memory:/x").memory == "x"
    options = embedded_url.parse("embedded:///x?lease_seconds=5").options
    assert options == {"lease_seconds": 5.0}


def test_a_name_that_leads_nowhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in ("embedded://~nobody-of-this-name/x", "embedded://a%00b"):
        with pytest.raises(ConfigurationError, match="write a"):
            embedded_url.parse(url)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert embedded_url.parse(f"embedded://{tmp_path}/x").folder == tmp_path / "x"
    with pytest.raises(ConfigurationError, match="write an absolute path"):
        embedded_url.parse("embedded://x")
