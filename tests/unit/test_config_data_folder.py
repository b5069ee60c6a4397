"""The data folder has a version, one owner, and remembers keys that only the owner can read."""

import errno
import os
import stat
from pathlib import Path

import pytest

from millrace import data_folder
from schemas.errors import ConfigError


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_new_folder_gets_its_version(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "data"
    data_folder.prepare(folder)
    data_folder.prepare(folder)
    assert contents(folder) == {"VERSION": "1\n"}


def test_a_folder_of_a_newer_release_is_left_untouched(tmp_path: Path) -> None:
    (tmp_path / "VERSION").write_text("2\n")

    with pytest.raises(ConfigError, match=r"newer Millrace \(data version 2, this one knows 1\); upgrade Millrace"):
        data_folder.prepare(tmp_path)

    assert contents(tmp_path) == {"VERSION": "2\n"}


def test_a_version_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "VERSION").write_text("grain")
    with pytest.raises(ConfigError, match="says 'grain', not a version; restore the folder"):
        data_folder.prepare(tmp_path)


@pytest.mark.parametrize("inside", ["", "/data"])
def test_a_file_in_the_way_is_said(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--data or MILLRACE_DATA"):
        data_folder.prepare(Path(f"{tmp_path}/file{inside}"))


def test_a_full_disk_is_said_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(ConfigError, match=r"No space left on device; free space or permissions"):
        data_folder.prepare(tmp_path)
    assert contents(tmp_path) == {}


def test_a_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    first = data_folder.remembered(tmp_path, data_folder.WRITE_KEY, "wk_")

    assert data_folder.remembered(tmp_path, data_folder.WRITE_KEY, "wk_") == first
    assert data_folder.recall(tmp_path, data_folder.WRITE_KEY) == first
    assert first.startswith("wk_")
    assert len(first) == 35
    assert stat.S_IMODE((tmp_path / data_folder.WRITE_KEY).stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path)) == ["write-key"]


def test_processes_that_start_together_agree_on_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = data_folder.remembered(tmp_path, "theirs", "wk_")

    monkeypatch.setattr(Path, "exists", lambda _self: False)  # both looked before either wrote

    assert data_folder.remembered(tmp_path, "theirs", "wk_") == mine


def test_an_emptied_key_is_said(tmp_path: Path) -> None:
    (tmp_path / "write-key").write_text("\n")
    with pytest.raises(ConfigError, match="is empty; delete it"):
        data_folder.remembered(tmp_path, "write-key", "wk_")


def test_one_folder_has_one_owner(tmp_path: Path) -> None:
    with (
        data_folder.locked(tmp_path),
        pytest.raises(ConfigError, match=rf"in use by another `millrace up` \(process {os.getpid()}\)"),
        data_folder.locked(tmp_path),
    ):
        pass
    with data_folder.locked(tmp_path):
        pass


def test_what_is_not_kept_is_none(tmp_path: Path) -> None:
    assert data_folder.recall(tmp_path / "gone", "address") is None
    data_folder.note_address(tmp_path, "http://127.0.0.1:1")
    data_folder.note_address(tmp_path, "http://127.0.0.1:2")
    assert data_folder.recall(tmp_path, data_folder.ADDRESS) == "http://127.0.0.1:2"
