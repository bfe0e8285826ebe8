"""Keys by id: one signs, all verify; and how they are read without being shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gwi_celery import Settings
from gwi_celery.config import load
from gwi_celery.errors import ConfigurationError
from gwi_celery.signing import MARK, MESSAGE, Keys, keys_of, read_keys

OLD, NEW = "o" * 32, "n" * 32


def test_the_last_key_signs_and_all_verify() -> None:
    old, both, new = keys_of({"1": OLD}), keys_of({"1": OLD, "2": NEW}), keys_of({"2": NEW})
    by_old, by_new = old.sign(MESSAGE, b"data"), both.sign(MESSAGE, b"data")
    assert by_old.startswith("1:")
    assert by_new.startswith("2:")
    assert both.verify(MESSAGE, b"data", by_old)
    assert both.verify(MESSAGE, b"data", by_new)
    assert not new.verify(MESSAGE, b"data", by_old)
    for wrong in ("", "2", "2:", ":", by_new + "x", "2:\ud800", by_new.upper(), "3:" + by_new[2:]):
        assert not both.verify(MESSAGE, b"data", wrong)
    assert not both.verify(MESSAGE, b"dat", by_new)
    assert not both.verify(MARK, b"data", by_new), "of another purpose"
    assert "nnn" not in repr(both)
    assert not Keys({})


@pytest.mark.parametrize(
    "given",
    [
        {"1": OLD, "2": NEW},
        f'{{"1": "{OLD}", "2": "{NEW}"}}',
        f"1:{OLD},2:{NEW}",
        f"1: {OLD}\n\n2:{NEW}\n",
    ],
)
def test_keys_are_read_as_people_and_secret_managers_write_them(given: object) -> None:
    assert list(read_keys(given, "here").items()) == [("1", OLD), ("2", NEW)]


@pytest.mark.parametrize(
    "given",
    [
        *(5, "x", "a b:" + OLD, "1:short", {"1": 5}, {"store": OLD}, "{", f"1:{OLD},1:{NEW}"),
        f"1:{OLD}\udcff",  # bytes of the environment that are no text
    ],
)
def test_what_is_no_key_is_refused_and_never_shown(given: object) -> None:
    with pytest.raises(ConfigurationError, match="here") as refused:
        read_keys(given, "here")
    assert OLD not in str(refused.value)
    assert "short" not in str(refused.value).replace("secret of", "")


def test_they_come_from_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"1:{OLD}\n")
    loaded = load({}, {}, {"GWI_SIGNING_KEYS_FILE": str(file)})
    assert loaded.signing_keys == {"1": OLD}
    assert OLD not in repr(loaded)
    file.write_text(f"2:{NEW}\n")
    assert replace(loaded, port=1).signing_keys == {"1": OLD}, "as gwi serve makes it"
    assert load({}, {}, {"GWI_SIGNING_KEYS": f"1:{OLD}"}).signing_keys == {"1": OLD}
    with pytest.raises(ConfigurationError, match="keep one"):
        Settings(signing_keys={"1": OLD}, signing_keys_file=str(file))
    with pytest.raises(ConfigurationError, match="can't be read"):
        Settings(signing_keys_file=str(tmp_path / "gone"))
