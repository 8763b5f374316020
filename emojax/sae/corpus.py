"""Text → rows of tokens to capture: languages mixed by weight, long rows and short ones.

What a corpus may be stands in `emojax.sae.documents` (files) and `emojax.sae.hub` (data sets). Here
a finite number of rows is drawn without replacement and held in memory; `emojax.sae.text_stream`
reads on and on.

A document is either trained on or held out, never both: near-duplicates that stand together stay
together.
"""

import dataclasses
import hashlib
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emojax.errors import UserError
from emojax.files import sha256
from emojax.lm.model import LanguageModel
from emojax.lm.text import beginning, tokenize
from emojax.sae import documents, hub
from emojax.sae.documents import Document, Source

SENTENCES_PER_PIECE = 8
SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)]*\s+|(?<=[。！？…])[”’」』）]*\s*")
# Of a corpus that may be endless, `draw` reads this much per token that it needs.
CHARACTERS_PER_TOKEN = 16


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which text is captured.

    Attributes:
      tokens: tokens to train on, special tokens not counted.
      heldout_tokens: tokens to measure on, from documents that are never trained on.
      languages: names of the corpora's languages.
      weights: each language's share of the tokens.
      row_tokens: tokens of a long row, the first of them BOS if the model knows it.
      packed: whether long rows are always full: streamed documents are packed into them, drawn
        ones cut into them and what is left dropped. Otherwise a row is of one document, and its
        last row is as short as it comes.
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
    packed: bool = True
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
        if not all(0 < weight < float("inf") for weight in self.weights):
            raise UserError(f"The data's weights {self.weights} are not all positive; mend them.")
        if len(set(self.languages)) < len(self.languages):
            raise UserError(
                f"The data's languages {self.languages} name one twice; name each once, whatever "
                "number of corpora it has."
            )
        if min(self.tokens, self.heldout_tokens) < 1 or self.row_tokens < 8:
            raise UserError(
                f"The data's tokens ({self.tokens}), heldout_tokens ({self.heldout_tokens}) or "
                f"row_tokens ({self.row_tokens}) are too few; give at least 1, 1 and 8."
            )
        if self.seed < 0:
            raise UserError(f"The data's seed is {self.seed}; give 0 or a positive number.")
        if not (0 <= self.short_share <= 1 and 0 < self.heldout_share < 1):
            raise UserError(
                f"The data's short_share ({self.short_share}) or heldout_share "
                f"({self.heldout_share}) is no share; give numbers between 0 and 1."
            )


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A corpus to draw from.

    Attributes:
      source: where it lies.
      documents: all of it; None where `draw` is to read as much as it needs.
      sha256: of its one file; else of what identifies the source.
    """

    source: Source
    documents: tuple[Document, ...] | None
    sha256: str

    @property
    def language(self) -> str:
        """The language of its text."""
        return self.source.language

    @property
    def path(self) -> Path:
        """As the user wrote it."""
        return self.source.path


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

    @staticmethod
    def of(drawn: Sequence[tuple[tuple[int, ...], int]], names: tuple[str, ...]) -> "Rows":
        """Rows, each with its language's place in `names`."""
        rows, languages = (tuple(part) for part in zip(*drawn, strict=True))
        digest = hashlib.sha256(repr((rows, languages, names)).encode()).hexdigest()
        return Rows(rows, languages, names, digest)


def parse_corpora(flag: str) -> tuple[tuple[str, Path], ...]:
    """`en=novels.txt.gz,en=posts.jsonl:body,zh=hf:owner/name` → language and place of each corpus.

    Raises:
      UserError: a part is no `language=place`.
    """
    parts = [part.partition("=") for part in flag.split(",") if part]
    if not parts or not all(language and path for language, _, path in parts):
        raise UserError(
            f"The corpora {flag!r} cannot be read; write --corpus en=novels.txt.gz,zh=posts.tsv."
        )
    return tuple((language.strip(), Path(path.strip())) for language, _, path in parts)


def name(path: Path) -> str:
    """A corpus as a record names it: not by where this machine keeps it."""
    return str(path) if str(path).startswith("hf:") else path.name


def record(corpora: Sequence[Corpus]) -> list[dict[str, Any]]:
    """What provenance says of corpora: names, hashes, and of data sets on the hub the commit."""
    result = []
    for corpus in corpora:
        entry: dict[str, Any] = {
            "language": corpus.language,
            "file": name(corpus.path),
            "sha256": corpus.sha256,
        }
        if corpus.source.kind == "hub":
            entry["revision"] = corpus.source.identity
        elif len(corpus.source.files) > 1:
            entry["files"] = [file.name for file in corpus.source.files]
        result.append(entry)
    return result


def find(language: str, path: Path) -> Source:
    """Finds a corpus and reads its first document.

    Raises:
      UserError: it is missing, damaged or not what its name says.
    """
    if not str(path).startswith("hf:"):
        return documents.find(language, path)
    return hub.find(language, path)


def each_document(source: Source) -> Iterator[Document]:
    """All documents of a corpus, in order, but those without text."""
    return (hub if source.kind == "hub" else documents).each_document(source)


def read(language: str, path: Path, *, hold: bool = True) -> Corpus:
    """Finds a corpus; running text and short texts in one file are read as a whole.

    Args:
      language: its language.
      path: where it lies.
      hold: whether to keep what was read for `draw`; otherwise it is only looked through.

    Raises:
      UserError: it is missing, damaged or not what its name says.
    """
    source = find(language, path)
    if source.kind == "hub" or len(source.files) > 1:
        digest = hashlib.sha256(source.identity.encode()).hexdigest()
    else:
        digest = sha256(source.files[0])
    if source.kind not in ("txt", "tsv") or len(source.files) > 1:
        return Corpus(source, None, digest)
    if hold:
        return Corpus(source, tuple(each_document(source)), digest)
    deque(each_document(source), maxlen=0)
    return Corpus(source, None, digest)


def check_languages(languages: Sequence[str], config: DataConfig) -> None:
    """Refuses corpora in other languages than the config mixes.

    Raises:
      UserError: a language has no corpus, or no weight.
    """
    if set(languages) != set(config.languages):
        raise UserError(
            f"The corpora are in {', '.join(sorted(set(languages)))} but the config mixes "
            f"{', '.join(config.languages)}; give --corpus a file for each, or set data.languages."
        )


def shares(sources: Sequence[Source], config: DataConfig) -> list[tuple[float, float]]:
    """Each source's share of all tokens, in short rows and in long ones.

    A language's short rows come in equal parts from each of its sources, its long rows from its
    sources of running text.
    """
    result = []
    for source in sources:
        own = [other for other in sources if other.language == source.language]
        running = [other for other in own if not other.short]
        weight = config.weights[config.languages.index(source.language)] / sum(config.weights)
        short = config.short_share if running else 1.0
        long = 0.0 if source.short else (1 - short) / len(running)
        result.append((weight * short / len(own), weight * long))
    return result


def sentences(piece: str) -> list[str]:
    """The sentences of a piece of running text, empty ones with them."""
    return [" ".join(part.split()) for part in SENTENCE_END.split(piece)]


def draw(lm: LanguageModel, corpora: Sequence[Corpus], config: DataConfig) -> Mapping[str, Rows]:
    """Draws the rows to train on (`"train"`) and to measure on (`"heldout"`), without replacement.

    Of a corpus of several files, `.jsonl`, `.parquet` or the hub no more is read than is needed:
    about `CHARACTERS_PER_TOKEN` for each token, from its beginning.

    Raises:
      UserError: a language has no corpus, or too little text for the tokens asked for.
    """
    check_languages([corpus.language for corpus in corpora], config)
    of_corpus = shares([corpus.source for corpus in corpora], config)
    texts = [
        _documents(corpus, sum(share), config)
        for corpus, share in zip(corpora, of_corpus, strict=True)
    ]
    held = [_heldout(len(text), config, number) for number, text in enumerate(texts)]
    budget = {"train": config.tokens, "heldout": config.heldout_tokens}
    result = {}
    for split, tokens in budget.items():
        drawn: list[tuple[tuple[int, ...], int]] = []
        for place, language in enumerate(config.languages):
            rng = np.random.default_rng([config.seed, place, len(split)])
            for corpus, share, text, out in zip(corpora, of_corpus, texts, held, strict=True):
                if corpus.language != language:
                    continue
                wanted = split == "heldout"
                pieces = [p for i, pieces in enumerate(text) if out[i] == wanted for p in pieces]
                for row in _corpus_rows(lm, corpus, pieces, tokens, share, config, rng):
                    drawn.append((row, place))
        order = np.random.default_rng([config.seed, len(split)]).permutation(len(drawn))
        result[split] = Rows.of([drawn[i] for i in order], config.languages)
    return result


def _documents(corpus: Corpus, share: float, config: DataConfig) -> tuple[Document, ...]:
    """The documents that are drawn from."""
    if corpus.documents is not None:
        return corpus.documents
    tokens = max(
        config.tokens / (1 - config.heldout_share), config.heldout_tokens / config.heldout_share
    )
    left = CHARACTERS_PER_TOKEN * tokens * share
    held: list[Document] = []
    for document in each_document(corpus.source):
        held.append(document)
        left -= sum(map(len, document))
        if left <= 0:
            break
    return tuple(held)


def _heldout(documents: int, config: DataConfig, number: int) -> list[bool]:
    """Which of a corpus' documents are held out: at least one."""
    chosen = np.random.default_rng([config.seed, number]).permutation(documents)
    chosen = set(chosen[: max(1, round(config.heldout_share * documents))].tolist())
    return [i in chosen for i in range(documents)]


def _corpus_rows(
    lm: LanguageModel,
    corpus: Corpus,
    pieces: Sequence[str],
    tokens: int,
    share: tuple[float, float],
    config: DataConfig,
    rng: np.random.Generator,
) -> Iterator[tuple[int, ...]]:
    """One corpus' rows: short ones, and long ones from the pieces that are left."""
    left = deque(pieces[i] for i in rng.permutation(len(pieces)))
    short, long = (tokens * part for part in share)
    first = beginning(lm)
    yield from _take(_short_rows(lm, left, corpus, config, rng), short, corpus, len(first))
    yield from _take(_long_rows(lm, left, config), long, corpus, len(first))


def _short_rows(
    lm: LanguageModel,
    left: deque[str],
    corpus: Corpus,
    config: DataConfig,
    rng: np.random.Generator,
) -> Iterator[tuple[int, ...]]:
    """Short texts, or a few sentences of each piece of running text."""
    while left:
        texts = [left.popleft()]
        if not corpus.source.short:
            found = sentences(texts[0])
            chosen = rng.permutation(len(found))[:SENTENCES_PER_PIECE]
            texts = [found[i] for i in chosen if found[i]]
        for row in tokenize(lm, texts):
            if len(row) > len(beginning(lm)) + 1:
                yield tuple(row[: config.row_tokens])


def _long_rows(
    lm: LanguageModel, left: deque[str], config: DataConfig
) -> Iterator[tuple[int, ...]]:
    """Rows of one piece each."""
    first = beginning(lm)
    shortest = config.row_tokens - len(first) if config.packed else 2
    while left:
        (tokens,) = tokenize(lm, [left.pop()], bos=False)
        yield from cut(tokens, first, config.row_tokens, shortest)


def cut(
    tokens: Sequence[int], first: Sequence[int], row_tokens: int, shortest: int
) -> Iterator[tuple[int, ...]]:
    """Rows of `first` and then tokens; of less than `shortest` tokens no row is made."""
    width = row_tokens - len(first)
    for begin in range(0, len(tokens) - shortest + 1, width):
        yield (*first, *tokens[begin : begin + width])


def _take(
    rows: Iterator[tuple[int, ...]], tokens: float, corpus: Corpus, special: int
) -> Iterator[tuple[int, ...]]:
    """Rows until they hold that many tokens, their `special` first ones (BOS) not counted."""
    left = tokens
    while left > 0:
        row = next(rows, None)
        if row is None:
            raise UserError(
                f"The corpus {corpus.path} has {left:,.0f} tokens less than the {tokens:,.0f} "
                "asked of it; give more text, or set data.tokens and data.heldout_tokens lower."
            )
        left -= len(row) - special
        yield row
