"""Files that are either whole or not there: hashes, atomic writes, room on the disk, the cache."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from emojax.errors import UserError


def cache_dir() -> Path:
    """The folder for what can be made again (`$EMOJAX_CACHE`, else `~/.cache/emojax`)."""
    return Path(os.environ.get("EMOJAX_CACHE") or Path.home() / ".cache" / "emojax")


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def writable_dir(path: Path) -> Path:
    """Makes the folder if need be and proves that it can be written to.

    Raises:
      UserError: the folder cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(
            f"The folder {path} cannot be written to ({reason(error)}); "
            "choose another one or mend its permissions."
        ) from None
    return path


def require_room(path: Path, size: int) -> None:
    """Refuses to start writing `size` bytes under the folder `path` without room for them.

    Raises:
      UserError: the disk is too full.
    """
    free = shutil.disk_usage(path).free
    if free < size:
        raise UserError(
            f"The disk of {path} has {free / 2**20:,.0f} MiB free and {size / 2**20:,.0f} MiB are "
            "needed; free some, or choose another folder."
        )


def reason(error: OSError) -> str:
    """What went wrong, in the system's words where it has some."""
    return error.strerror or str(error) or type(error).__name__


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which replaces it if the block succeeds.

    An error or an interruption leaves what was there before.

    Raises:
      UserError: the disk became full, or the folder is not writable. An error about another file,
        such as a source that the block reads, passes as it is.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        # Writing itself, as on a full disk, names no file.
        if error.filename is not None and Path(str(error.filename)) not in (partial, *path.parents):
            raise
        raise UserError(
            f"{path} could not be written ({reason(error)}); mend that and run again: "
            "nothing that was there before is lost."
        ) from error


def replace_between(path: Path, begin: str, end: str, text: str) -> None:
    """Replaces the lines of a document between a mark and the next `end`, which stay.

    Raises:
      UserError: the marks are missing, or `begin` is there more than once.
    """
    before = path.read_text(encoding="utf-8")
    head, _, rest = before.partition(begin)
    if before.count(begin) != 1 or end not in rest:
        raise UserError(f"{path} does not hold {begin} once and then {end}; restore them.")
    with atomic(path) as partial:
        partial.write_text(
            f"{head}{begin}\n{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8"
        )
