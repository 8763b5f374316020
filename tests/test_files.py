import errno
import os
from pathlib import Path

import pytest

from emojax import files
from emojax.errors import UserError

pytestmark = pytest.mark.smoke


def test_atomic_replaces_only_on_success(tmp_path: Path):
    path = tmp_path / "result.json"
    path.write_text("before")
    with pytest.raises(ValueError), files.atomic(path) as partial:
        partial.write_text("half of it")
        raise ValueError
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]
    with files.atomic(path) as partial:
        partial.write_text("after")
    assert path.read_text() == "after"
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path: Path):
    path = tmp_path / "result.json"
    path.write_text("before")
    with pytest.raises(UserError, match="No space left") as error, files.atomic(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(path) in str(error.value)
    assert path.read_text() == "before"


def test_an_error_about_another_file_passes_as_it_is(tmp_path: Path):
    with pytest.raises(FileNotFoundError), files.atomic(tmp_path / "result.json"):
        (tmp_path / "source").read_bytes()
    assert not list(tmp_path.iterdir())


def test_an_error_without_words_is_still_named(tmp_path: Path):
    with (
        pytest.raises(UserError, match=r"written \(the device is gone\)"),
        files.atomic(tmp_path / "result.json"),
    ):
        raise OSError("the device is gone")
    (tmp_path / "taken").write_text("")
    with (
        pytest.raises(UserError, match="could not be written"),
        files.atomic(tmp_path / "taken" / "result.json"),
    ):
        pass


def test_a_disk_without_room_is_refused_before_writing(tmp_path: Path):
    with pytest.raises(UserError, match="MiB free"):
        files.require_room(tmp_path, 1 << 60)
    files.require_room(tmp_path, 1)


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="cannot be written to"):
        files.writable_dir(tmp_path / "taken" / "runs")
    assert files.writable_dir(tmp_path / "new" / "runs").is_dir()


def test_sha256_and_cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "abc").write_bytes(b"abc")
    assert files.sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")
    monkeypatch.setenv("EMOJAX_CACHE", str(tmp_path))
    assert files.cache_dir() == tmp_path
