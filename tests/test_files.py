import errno
import os
from pathlib import Path

import pytest
from etils.epath import testing

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


def test_a_place_is_a_path_or_an_address():
    assert files.place("runs/a") == Path("runs/a")
    assert not files.is_address(files.place("runs/a"))
    address = files.place("gs://bucket/runs")
    assert files.is_address(address)
    assert str(address / "a" / "run.json") == "gs://bucket/runs/a/run.json"
    for text in ("memory://bucket/runs", "s3://bucket/runs", "gs://"):
        with pytest.raises(UserError, match=f"The address {text} cannot be used"):
            files.place(text)


def test_what_works_on_a_disk_works_at_an_address(bucket):
    """`etils.epath` over a folder in the bucket's place: see `tests/sae/test_bucket.py`."""
    path = files.writable_dir(bucket / "run") / "result.json"
    files.require_room(bucket, 1 << 60)
    with files.atomic(path) as partial:
        partial.write_text("before")
    with pytest.raises(ValueError), files.atomic(path) as partial:
        partial.write_text("half of it")
        raise ValueError
    said = r"gs://bucket/run/result\.json could not be written \(Permission denied"
    with pytest.raises(UserError, match=said), files.atomic(path):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    assert path.read_text() == "before"
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]
    assert files.sha256(path).startswith("6db7d803e74f1ffa")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("install gcsfs"), r"install gcsfs\); run: pip install -e '\.\[gcs\]'"),
        (PermissionError("Forbidden\nand more"), r"cannot be written to \(Forbidden\); check"),
        (RuntimeError("no login"), r"cannot be written to \(no login\); check"),
    ],
)
def test_an_address_that_cannot_be_written_to_is_refused_in_one_line(error, said):
    def fail(*_, **__):
        raise error

    with testing.mock_epath(makedirs=fail), pytest.raises(UserError, match=said) as refused:
        files.writable_dir(files.place("gs://bucket/run"))
    assert "\n" not in str(refused.value)
