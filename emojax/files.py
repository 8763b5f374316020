"""Files that are either whole or not there: hashes, atomic writes, room on the disk, the cache.

A `Place` is a path on a disk or an address in a bucket. The address is `etils.epath`'s, which Orbax
uses too; it has pathlib's methods, so that nobody else need know which of the two a place is.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from etils import epath

from emojax.errors import UserError

Place = Path | epath.Path
P = TypeVar("P", bound=Place)


def place(text: str) -> Place:
    """A path on a disk, or an address such as `gs://bucket/folder`.

    Raises:
      UserError: it is an address of another kind.
    """
    if "://" not in text:
        return Path(text)
    if not text.startswith("gs://") or not text[len("gs://") :].strip("/"):
        raise UserError(f"The address {text} cannot be used; give a folder or gs://BUCKET/FOLDER.")
    return epath.Path(text)


def is_address(place: Place) -> bool:
    """Whether a place is in a bucket, where nothing can be appended to and nothing fills a disk."""
    return not isinstance(place, Path)


def cache_dir() -> Path:
    """The folder for what can be made again (`$EMOJAX_CACHE`, else `~/.cache/emojax`)."""
    return Path(os.environ.get("EMOJAX_CACHE") or Path.home() / ".cache" / "emojax")


def sha256(path: Place) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        # pyrefly: ignore [bad-argument-type]  # epath's files have no type of their own
        return hashlib.file_digest(file, "sha256").hexdigest()


def writable_dir(path: P) -> P:
    """Makes the folder if need be and proves that it can be written to.

    Raises:
      UserError: the folder cannot be made or written to.
    """
    if is_address(path):
        _prove_writable(path)
        return path
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


def _prove_writable(address: Place) -> None:
    # Each of several hosts does this, at the same time.
    probe = address / f".{uuid.uuid4().hex}.probe"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except ImportError as error:
        raise UserError(
            f"The address {address} needs a package that is missing ({error}); run: "
            "pip install -e '.[gcs]'"
        ) from None
    except Exception as error:  # what its HTTP and login libraries raise has no common base
        problem = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"The address {address} cannot be written to ({problem}); check the bucket's name, the "
            "login (gcloud auth application-default login) and its rights."
        ) from None


def require_room(path: Place, size: int) -> None:
    """Refuses to start writing `size` bytes under the folder `path` without room for them.

    A bucket has room.

    Raises:
      UserError: the disk is too full.
    """
    if is_address(path):
        return
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
def atomic(path: Place) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which replaces it if the block succeeds.

    An error or an interruption leaves what was there before. Before an address it is a file on this
    machine, sent when it is finished: an object in a bucket is whole or not there.

    Raises:
      UserError: the disk became full, or the folder is not writable. An error about another file,
        such as a source that the block reads, passes as it is.
    """
    name = f".{path.name}.{os.getpid()}.partial"
    beside = path.parent if isinstance(path, Path) else Path(tempfile.gettempdir())
    partial = beside / name
    try:
        beside.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            if isinstance(path, Path):
                partial.replace(path)
            else:
                epath.Path(partial).copy(path, overwrite=True)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        # Writing itself, as on a full disk, names no file.
        named = error.filename
        if named is not None and Path(str(named)) not in (partial, beside, *beside.parents):
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
