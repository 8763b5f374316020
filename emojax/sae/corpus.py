"""Text files → rows of tokens to capture: languages mixed by weight, long rows and short ones.

A corpus is a `.txt` file of running text or a `.tsv` file whose first column is one short text per
line, both plain or `.gz`. It is cut into pieces, 16 neighbouring pieces are one document, and
documents are either trained on or held out, never both: near-duplicates that stand together stay
together.
"""

import dataclasses
import gzip
import hashlib
import re
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from emojax.errors import UserError
from emojax.files import sha256
from emojax.lm.model import LanguageModel
from emojax.lm.text import bos_token, tokenize

PIECE_CHARACTERS = 4096
PIECES_PER_DOCUMENT = 16
SENTENCES_PER_PIECE = 8
SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)]*\s+|(?<=[。！？…])[”’」』）]*\s*")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which text is captured.

    Attributes:
      tokens: tokens to train on, special tokens not counted.
      heldout_tokens: tokens to measure on, from documents that are never trained on.
      languages: names of the corpora's languages.
      weights: each language's share of the tokens.
      row_tokens: tokens of a long row, the first of them the model's BOS.
      short_share: share of the tokens that stand in rows of one sentence or one line.
      heldout_share: share of the documents that are held out.
      seed: of the choice of documents and rows.
      store_gib: the most that the stored activations may fill on the disk, in GiB.
    """

    tokens: int = 1_000_000
    heldout_tokens: int = 40_000
    languages: tuple[str, ...] = ("en", "zh")
    weights: tuple[float, ...] = (0.5, 0.5)
    row_tokens: int = 128
    short_share: float = 0.2
    heldout_share: float = 0.02
    seed: int = 0
    store_gib: float = 8.0

    def __post_init__(self):
        if len(self.languages) != len(self.weights) or not self.languages:
            raise UserError(
                f"The data's languages {self.languages} and weights {self.weights} do not pair up; "
                "give one weight per language."
            )
        if min(self.weights) <= 0:
            raise UserError(f"The data's weights {self.weights} are not all positive; mend them.")
        if min(self.tokens, self.heldout_tokens) < 1 or self.row_tokens < 8:
            raise UserError(
                f"The data's tokens ({self.tokens}), heldout_tokens ({self.heldout_tokens}) or "
                f"row_tokens ({self.row_tokens}) are too few; give at least 1, 1 and 8."
            )
        if not (0 <= self.short_share <= 1 and 0 < self.heldout_share < 1):
            raise UserError(
                f"The data's short_share ({self.short_share}) or heldout_share "
                f"({self.heldout_share}) is no share; give numbers between 0 and 1."
            )


@dataclasses.dataclass(frozen=True)
class Corpus:
    """One file: its language, its pieces of text, whether they are short texts, its hash."""

    path: Path
    language: str
    pieces: tuple[str, ...]
    short: bool
    sha256: str


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of tokens to capture, in the order in which they are captured.

    Attributes:
      tokens: the rows.
      languages: each row's place in `names`.
      names: the languages.
      digest: SHA-256 of all of it, which names what was captured.
    """

    tokens: tuple[tuple[int, ...], ...]
    languages: tuple[int, ...]
    names: tuple[str, ...]
    digest: str


def parse_corpora(flag: str) -> tuple[tuple[str, Path], ...]:
    """`en=novels.txt.gz,en=posts.tsv,zh=dialogues.txt` → language and path of each file.

    Raises:
      UserError: a part is no `language=path`.
    """
    parts = [part.partition("=") for part in flag.split(",") if part]
    if not parts or not all(language and path for language, _, path in parts):
        raise UserError(
            f"The corpora {flag!r} cannot be read; write --corpus en=novels.txt.gz,zh=posts.tsv."
        )
    return tuple((language.strip(), Path(path.strip())) for language, _, path in parts)


def read(language: str, path: Path) -> Corpus:
    """Reads one file and cuts it into pieces.

    Raises:
      UserError: the file is missing, of another kind, empty, cut short, or not UTF-8.
    """
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    if not suffixes or suffixes[-1] not in (".txt", ".tsv"):
        raise UserError(f"The corpus {path} is neither .txt nor .tsv (.gz); convert it.")
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"The corpus {path} is not UTF-8 (byte {error.start}); convert it to UTF-8."
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"The corpus {path} cannot be read ({error}); check the path and the file."
        ) from None
    short = suffixes[-1] == ".tsv"
    lines = [line.split("\t")[0].strip() if short else line for line in text.splitlines()]
    pieces = [line for line in lines if line] if short else list(_cut(lines))
    if not pieces:
        raise UserError(f"The corpus {path} holds no text; give another file.")
    return Corpus(path, language, tuple(pieces), short, sha256(path))


def _cut(lines: Sequence[str]) -> Iterator[str]:
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


def draw(lm: LanguageModel, corpora: Sequence[Corpus], config: DataConfig) -> Mapping[str, Rows]:
    """Draws the rows to train on (`"train"`) and to measure on (`"heldout"`), without replacement.

    A language's short rows come in equal parts from each of its files, its long rows from its files
    of running text.

    Raises:
      UserError: a language has no corpus, or too little text for the tokens asked for.
    """
    known = {corpus.language for corpus in corpora}
    if known != set(config.languages):
        raise UserError(
            f"The corpora are in {', '.join(sorted(known))} but the config mixes "
            f"{', '.join(config.languages)}; give --corpus a file for each, or set data.languages."
        )
    held = [_heldout(corpus, config, number) for number, corpus in enumerate(corpora)]
    budget = {"train": config.tokens, "heldout": config.heldout_tokens}
    result = {}
    for split, tokens in budget.items():
        drawn: list[tuple[tuple[int, ...], int]] = []
        for place, language in enumerate(config.languages):
            share = tokens * config.weights[place] / sum(config.weights)
            files = [
                (corpus, [p for p, out in zip(corpus.pieces, flags, strict=True) if out == wanted])
                for corpus, flags in zip(corpora, held, strict=True)
                for wanted in [split == "heldout"]
                if corpus.language == language
            ]
            rng = np.random.default_rng([config.seed, place, len(split)])
            for row in _language_rows(lm, files, config, share, rng):
                drawn.append((row, place))
        order = np.random.default_rng([config.seed, len(split)]).permutation(len(drawn))
        rows = tuple(drawn[i][0] for i in order)
        languages = tuple(drawn[i][1] for i in order)
        digest = hashlib.sha256(repr((rows, languages, config.languages)).encode()).hexdigest()
        result[split] = Rows(rows, languages, config.languages, digest)
    return result


def _heldout(corpus: Corpus, config: DataConfig, number: int) -> list[bool]:
    """Which pieces are held out: whole documents, at least one."""
    documents = -(-len(corpus.pieces) // PIECES_PER_DOCUMENT)
    chosen = np.random.default_rng([config.seed, number]).permutation(documents)
    chosen = set(chosen[: max(1, round(config.heldout_share * documents))].tolist())
    return [i // PIECES_PER_DOCUMENT in chosen for i in range(len(corpus.pieces))]


def _language_rows(
    lm: LanguageModel,
    files: Sequence[tuple[Corpus, list[str]]],
    config: DataConfig,
    tokens: float,
    rng: np.random.Generator,
) -> Iterator[tuple[int, ...]]:
    """One language's rows: short ones from each file, long ones from the pieces that are left."""
    running = [corpus for corpus, _ in files if not corpus.short]
    short = tokens * config.short_share if running else tokens
    for corpus, pieces in files:
        left = deque(pieces[i] for i in rng.permutation(len(pieces)))
        yield from _take(_short_rows(lm, left, corpus, config, rng), short / len(files), corpus)
        if not corpus.short:
            long = (tokens - short) / len(running)
            yield from _take(_long_rows(lm, left, config), long, corpus)


def _short_rows(
    lm: LanguageModel,
    left: deque[str],
    corpus: Corpus,
    config: DataConfig,
    rng: np.random.Generator,
) -> Iterator[tuple[int, ...]]:
    """Lines of a `.tsv`, or a few sentences of each piece of running text."""
    while left:
        texts = [left.popleft()]
        if not corpus.short:
            sentences = [" ".join(part.split()) for part in SENTENCE_END.split(texts[0])]
            chosen = rng.permutation(len(sentences))[:SENTENCES_PER_PIECE]
            texts = [sentences[i] for i in chosen if sentences[i]]
        for row in tokenize(lm, texts):
            if len(row) > 2:
                yield tuple(row[: config.row_tokens])


def _long_rows(
    lm: LanguageModel, left: deque[str], config: DataConfig
) -> Iterator[tuple[int, ...]]:
    """Full rows, as many as each piece has; what is left at its end is dropped."""
    bos, width = bos_token(lm), config.row_tokens - 1
    while left:
        (tokens,) = tokenize(lm, [left.pop()], bos=False)
        for begin in range(0, len(tokens) - width + 1, width):
            yield (bos, *tokens[begin : begin + width])


def _take(
    rows: Iterator[tuple[int, ...]], tokens: float, corpus: Corpus
) -> Iterator[tuple[int, ...]]:
    """Rows until they hold that many tokens, BOS not counted."""
    left = tokens
    while left > 0:
        row = next(rows, None)
        if row is None:
            raise UserError(
                f"The corpus {corpus.path} has {left:,.0f} tokens less than the {tokens:,.0f} "
                "asked of it; give more text, or set data.tokens and data.heldout_tokens lower."
            )
        left -= len(row) - 1
        yield row
