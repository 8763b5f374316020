"""Files of text → documents, one after another, without reading a file whole.

| kind | a document | its text |
|---|---|---|
| `.txt` | 16 neighbouring pieces of about 4,096 characters | the lines |
| `.tsv` | 16 neighbouring lines | the first column, one short text per line |
| `.jsonl` | a line | the field `text`, or the one named in `posts.jsonl:body` |
| `.parquet` | a row | the column `text`, or the one named in `wiki.parquet:content` |

All but `.parquet` may also be `.gz`. A folder, or a pattern such as `'wiki/*.parquet'`, stands for
all its files of one kind. A document is what is trained on or held out as one, and what one host
reads: near-duplicates that stand together stay together.
"""

import contextlib
import dataclasses
import glob
import gzip
import hashlib
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from emojax.errors import UserError

PIECE_CHARACTERS = 4096
PIECES_PER_DOCUMENT = 16
FIELD = "text"
KINDS = ("txt", "tsv", "jsonl", "parquet")
WITH_FIELDS = ("jsonl", "parquet", "hub")

# A document is its pieces: neighbouring lines of a text, or several short texts.
Document = tuple[str, ...]
# What is read in one go: a file, or a row group of a parquet file.
Unit = tuple[str, int]


@dataclasses.dataclass(frozen=True)
class Source:
    """Where documents of one language come from, found but not yet read.

    Attributes:
      language: their language.
      path: as the user wrote it.
      kind: one of `KINDS`, or "hub" (`emojax.sae.hub`).
      field: the field or column that holds the text.
      units: the files, or the row groups of each.
      identity: SHA-256 of the files' names and sizes; of a data set on the hub, its commit.
    """

    language: str
    path: Path
    kind: str
    field: str
    units: tuple[Unit, ...]
    identity: str

    @property
    def short(self) -> bool:
        """Whether each piece is a short text of its own."""
        return self.kind == "tsv"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, each once."""
        return tuple(dict.fromkeys(Path(name) for name, _ in self.units))


def find(language: str, path: Path) -> Source:
    """Finds the files that a path, a folder or a pattern stands for, and reads one document.

    Raises:
      UserError: a file is missing, empty, of another kind, damaged, or lacks the field or column.
    """
    place, field = _split_field(path)
    files = _files(place)
    if not files:
        raise UserError(
            f"The corpus {place} has no file of the kinds {', '.join(KINDS)}; give another place."
        )
    kinds = sorted({str(_kind(file)) for file in files})
    if len(kinds) > 1:
        raise UserError(
            f"The corpus {place} mixes files of the kinds {', '.join(kinds)}; give each kind on "
            "its own, as in en=texts/*.txt,en=texts/*.jsonl."
        )
    (kind,) = kinds
    if kind not in KINDS:
        raise UserError(
            f"The corpus {place} is neither .txt nor .tsv nor .jsonl (each also .gz) nor .parquet; "
            "convert it."
        )
    if field and kind not in WITH_FIELDS:
        raise UserError(f"The corpus {path} names the field {field!r}, which a .{kind} lacks.")
    field = field or FIELD
    listing = hashlib.sha256()
    units: list[Unit] = []
    for file in files:
        try:
            listing.update(f"{file.name} {file.stat().st_size}\n".encode())
        except OSError as error:
            raise _unreadable(file, error) from None
        units += _row_groups(file, field) if kind == "parquet" else [(str(file), 0)]
    source = Source(language, path, kind, field, tuple(units), listing.hexdigest())
    if next(each_document(source), None) is None:
        raise UserError(f"The corpus {path} holds no text; give another file.")
    return source


def each_document(source: Source) -> Iterator[Document]:
    """All documents of a source, in order, but those without text."""
    for unit in source.units:
        yield from filter(None, documents(unit, source.field))


def documents(unit: Unit, field: str, first: int = 0, step: int = 1) -> Iterator[Document]:
    """The documents `first`, `first + step`, … of a unit; one without text is empty.

    The others are passed over without being parsed.

    Raises:
      UserError: the file cannot be read, is not UTF-8, or a line of it is not what it should be.
    """
    path, group = Path(unit[0]), unit[1]
    kind = _kind(path)
    if kind == "parquet":
        yield from map(cut, itertools.islice(_column(path, group, field), first, None, step))
        return
    with _opened(path) as file:
        numbered = enumerate(file, 1)
        if kind == "jsonl":
            for number, raw in itertools.islice(numbered, first, None, step):
                yield cut(_field(path, number, raw, field))
            return
        lines = (
            line for number, raw in numbered for line in _decoded(path, number, raw).splitlines()
        )
        if kind == "tsv":
            pieces = (text for line in lines if (text := line.split("\t")[0].strip()))
        else:
            pieces = _cut(lines)
        groups = iter(lambda: tuple(itertools.islice(pieces, PIECES_PER_DOCUMENT)), ())
        yield from itertools.islice(groups, first, None, step)


def cut(text: str | None) -> Document:
    """A text as a document: pieces of whole lines."""
    return tuple(_cut((text or "").splitlines()))


def _cut(lines: Iterable[str]) -> Iterator[str]:
    """Neighbouring lines as pieces of about `PIECE_CHARACTERS`."""
    held: list[str] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line) + 1
        if size >= PIECE_CHARACTERS:
            yield "\n".join(held)
            held, size = [], 0
    if any(line.strip() for line in held):
        yield "\n".join(held)


def _split_field(path: Path) -> tuple[Path, str]:
    """`posts.jsonl:body` → `posts.jsonl` and `body`."""
    name, colon, field = path.name.rpartition(":")
    return (path.with_name(name), field) if colon and not path.exists() else (path, "")


def _files(place: Path) -> list[Path]:
    """The files that a path, a folder or a pattern stands for, by name."""
    if place.is_dir():
        return sorted(file for file in place.rglob("*") if file.is_file() and _kind(file))
    if glob.has_magic(str(place)) and not place.exists():
        root = Path(place.anchor)
        return sorted(root.glob(str(place.relative_to(root))))
    return [place]


def _kind(path: Path) -> str | None:
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    kind = suffixes[-1][1:] if suffixes else None
    # Parquet compresses inside.
    known = kind in KINDS and not (kind == "parquet" and path.suffix == ".gz")
    return kind if known else None


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"The corpus {path} cannot be read ({error}); check the path and the file.")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Iterable[bytes]]:
    """A file, unpacked if it is `.gz`."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from None


def _decoded(path: Path, number: int, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"The corpus {path} is not UTF-8 (line {number}, byte {error.start}); convert it to "
            "UTF-8."
        ) from None


def _field(path: Path, number: int, raw: bytes, field: str) -> str:
    """The text of one line of a `.jsonl`."""
    text = _decoded(path, number, raw)
    if not text.strip():
        return ""
    try:
        record: Any = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"Line {number} of the corpus {path} is no JSON ({error}); mend or remove it."
        ) from None
    value = record.get(field) if isinstance(record, Mapping) else None
    if not isinstance(value, str):
        there = ", ".join(record) if isinstance(record, Mapping) else "no fields"
        raise UserError(
            f"Line {number} of the corpus {path} has no text in a field {field!r} (it has "
            f"{there}); name the field as in {path.name}:FIELD."
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell out half of a character
        raise UserError(
            f"Line {number} of the corpus {path} holds half a character ({error.reason}); mend or "
            "remove it."
        ) from None
    return value


def _parquet(path: Path) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"The corpus {path} is read by the package pyarrow, which is missing; run: "
            "pip install -e '.[data]'"
        ) from None
    try:
        return parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from None


def _row_groups(path: Path, field: str) -> list[Unit]:
    """The row groups of a parquet file; only its footer is read."""
    with _parquet(path) as file:
        schema = file.schema_arrow
        if field not in schema.names:
            raise UserError(
                f"The corpus {path} has no column {field!r} (it has {', '.join(schema.names)}); "
                f"name the column as in {path.name}:COLUMN."
            )
        kind = str(schema.field(field).type)
        if kind.removeprefix("large_") not in ("string", "string_view"):
            raise UserError(
                f"The column {field!r} of the corpus {path} holds {kind}, not text; name another "
                f"as in {path.name}:COLUMN."
            )
        return [(str(path), group) for group in range(file.num_row_groups)]


def _column(path: Path, group: int, field: str) -> Iterator[str | None]:
    """The texts of a row group, a few at a time."""
    with _parquet(path) as file:
        import pyarrow

        try:
            for batch in file.iter_batches(batch_size=256, row_groups=[group], columns=[field]):
                yield from batch.column(0).to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise _unreadable(path, error) from None
