"""Documents → an endless mix of rows of tokens, on every host its own, that can be resumed.

For each corpus and kind of row (long, short) a Grain pipeline of its own:

    files shuffled, dealt out to hosts ─> documents ─> train or held out, long or short
      ─> tokens ─> rows ─> shuffled within a window

`Rows` then takes each next row from the pipeline that is furthest behind its share, counted in
tokens, not in rows: the shares are right at any time, to less than a row per pipeline.

Long rows are packed (`data.packed`) or of one document each. Packed rows have exactly
`data.row_tokens` tokens; each row and each document in it begins with BOS (if the model knows it),
and what the end of a document leaves free, the next one fills. Otherwise each document begins a row
of its own, is split as often as it is longer, and its last row is as short as it comes. Rows never
pad.

A hash of its text and `data.seed` decides whether a document is trained on or held out, and whether
a piece of running text is read sentence by sentence or goes into long rows. Both are known while
streaming, and equal documents go the same way.

A pass over the text to train on is `data.tokens`, dealt out to hosts and parts. Where there are
several, the next reads the same rows again; so it does, with a warning, where a corpus ends before.
"""

import copy
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import grain
import numpy as np
from grain import experimental

from emojax.errors import UserError
from emojax.lm.model import LanguageModel
from emojax.lm.text import beginning, tokenize
from emojax.sae import corpus, documents, hub
from emojax.sae.corpus import DataConfig, check_languages, cut, find, sentences, shares
from emojax.sae.documents import Document, Source

# How many documents are tokenised at once, rows shuffled at once.
DOCUMENTS, ROWS = 16, 1024

Row = tuple[int, ...]


class Documents(grain.IterDataset):
    """The documents `first`, `first + step`, … of each of some files or row groups."""

    def __init__(self, units: Sequence[documents.Unit], field: str, first: int, step: int):
        super().__init__()
        self._arguments = units, field, first, step

    def __iter__(self) -> grain.DatasetIterator[Document]:
        return _DocumentIterator(*self._arguments)


class _DocumentIterator(grain.DatasetIterator[Document]):
    """Where it stands is the unit and the number of the next document in it."""

    def __init__(self, units: Sequence[documents.Unit], field: str, first: int, step: int):
        super().__init__()
        self._units, self._field, self._first, self._step = units, field, first, step
        self.set_state({"unit": 0, "next": first})

    def __next__(self) -> Document:
        while (document := next(self._left, None)) is None:
            if self._unit == len(self._units):
                raise StopIteration
            self.set_state({"unit": self._unit + 1, "next": self._first})
        self._next += self._step
        return document

    def get_state(self) -> dict[str, Any]:
        return {"unit": self._unit, "next": self._next}

    def set_state(self, state: dict[str, Any]) -> None:
        self._unit, self._next = state["unit"], state["next"]
        self._left: Iterator[Document] = iter(())
        if self._unit < len(self._units):
            unit = self._units[self._unit]
            self._left = documents.documents(unit, self._field, self._next, self._step)


class HubDocuments(grain.IterDataset):
    """A host's part of a data set on the hub: whole shards if they can be dealt out evenly."""

    def __init__(self, source: Source, host: int, hosts: int):
        super().__init__()
        self._arguments = source, host, hosts

    def __iter__(self) -> grain.DatasetIterator[Document]:
        return _HubIterator(*self._arguments)


class _HubIterator(grain.DatasetIterator[Document]):
    """Where it stands is what the data set says."""

    def __init__(self, source: Source, host: int, hosts: int):
        super().__init__()
        from datasets.distributed import split_dataset_by_node

        self._source = source
        self._dataset = split_dataset_by_node(hub.load(source), host, hosts)
        self._left = hub.documents(source, iter(self._dataset))

    def __next__(self) -> Document:
        return next(self._left)

    def get_state(self) -> dict[str, Any]:
        return self._dataset.state_dict()

    def set_state(self, state: dict[str, Any]) -> None:
        self._dataset.load_state_dict(copy.deepcopy(state))
        self._left = hub.documents(self._source, iter(self._dataset))


@dataclasses.dataclass(frozen=True)
class Part:
    """One pipeline's part of the mix.

    Attributes:
      source: its documents.
      language: place of their language in the config.
      short: whether its rows are sentences or short texts.
      share: of all tokens.
      sentence_share: of the source's pieces, those that are read sentence by sentence.
    """

    source: Source
    language: int
    short: bool
    share: float
    sentence_share: float


def parts(sources: Sequence[Source], config: DataConfig) -> list[Part]:
    """What the mix is made of, as `corpus.draw` mixes too.

    Raises:
      UserError: the languages of the corpora are not those of the config.
    """
    check_languages([source.language for source in sources], config)
    found = []
    for source, (short, long) in zip(sources, shares(sources, config), strict=True):
        language = config.languages.index(source.language)
        for share, is_short in ((short, True), (long, False)):
            if share:
                found.append(Part(source, language, is_short, share, short / (short + long)))
    return found


def rows(
    lm: LanguageModel,
    config: DataConfig,
    corpora: Sequence[tuple[str, Path]],
    split: Literal["train", "heldout"],
    host: int = 0,
    hosts: int = 1,
    passes: int = 1,
) -> "Rows":
    """This host's rows of one split: `(tokens, language)`, one after another.

    No row is seen by two hosts, none comes twice in a pass, and none of a held-out document comes
    in "train". Rows to train on come without end.

    Args:
      lm: the model whose tokenizer is used.
      config: the languages, their weights, and how rows are made.
      corpora: language and path of each corpus.
      split: which documents.
      host: this host's number.
      hosts: how many there are.
      passes: how often the first `config.tokens` are read; then comes what is behind them.

    Raises:
      UserError: a corpus cannot be read, or the languages do not fit the config.
    """
    sources = [find(language, path) for language, path in corpora]
    grain.sharding.ShardOptions(host, hosts)  # refuses a host that is none of them
    return Rows(lm, config, parts(sources, config), split, host, hosts, passes)


def heldout(
    lm: LanguageModel, config: DataConfig, corpora: Sequence[tuple[str, Path]]
) -> corpus.Rows:
    """The first `config.heldout_tokens` of the held-out rows, on every host the same ones.

    Raises:
      UserError: as `rows`, or there is too little text, or no row of a language among them.
    """
    special = frozenset(lm.tokenizer.all_special_ids)
    left, drawn = config.heldout_tokens, []
    for row, language in rows(lm, config, corpora, "heldout"):
        drawn.append((row, language))
        left -= sum(token not in special for token in row)
        if left <= 0:
            break
    found = {language for _, language in drawn}
    without = [name for i, name in enumerate(config.languages) if i not in found]
    if without:
        raise UserError(
            f"The held-out text of {config.heldout_tokens:,} tokens ends before a row in "
            f"{', '.join(without)}; set data.heldout_tokens higher."
        )
    return corpus.Rows.of(drawn, config.languages)


class Rows:
    """An iterator of `(tokens, language)` with `get_state` and `set_state`.

    `tokens` begin with BOS if the model knows it; `language` is a place in `config.languages`. The
    state is plain JSON. It fits the same corpora, settings and number of hosts.
    """

    def __init__(
        self,
        lm: LanguageModel,
        config: DataConfig,
        mix: Sequence[Part],
        split: str,
        host: int,
        hosts: int,
        passes: int,
    ):
        self._parts, self._split, self._passes = mix, split, passes
        self._special = frozenset(lm.tokenizer.all_special_ids)
        self._datasets = [
            _pipeline(lm, config, part, split, number, host, hosts)
            for number, part in enumerate(mix)
        ]
        self._pipelines = [iter(dataset) for dataset in self._datasets]
        self._per_pass = [config.tokens * part.share / hosts for part in mix]
        self._spent = [0] * len(mix)
        self._said: set[int] = set()
        # What was spent when each pass ended.
        self._ends: list[list[int]] = [[] for _ in mix]
        self._settings = _settings(config, mix, split, host, hosts)

    def __iter__(self) -> "Rows":
        return self

    def __next__(self) -> tuple[Row, int]:
        """The next row.

        Raises:
          UserError: a corpus has no held-out text left, or no text to train on.
        """
        behind = [spent / part.share for spent, part in zip(self._spent, self._parts, strict=True)]
        number = behind.index(min(behind))
        part, ends = self._parts[number], self._ends[number]
        if len(ends) < self._passes - 1 and self._of_pass(number) >= self._per_pass[number]:
            self._begin_again(number)
        row = next(self._pipelines[number], None)
        if row is None and self._split == "train" and self._of_pass(number):
            if number not in self._said:
                self._said.add(number)
                logging.warning(
                    "The corpus %s gives %s tokens on this host and is asked for more; it is read "
                    "again from its beginning.", part.source.path, f"{self._of_pass(number):,}",
                )  # fmt: skip
            self._begin_again(number)
            row = next(self._pipelines[number], None)
        if row is None:
            kind = "sentences" if part.short and not part.source.short else "text"
            raise UserError(
                f"The corpus {part.source.path} has no more {self._split} {kind} after "
                f"{self._spent[number]:,} tokens on this host; give more text, or set "
                "data.heldout_tokens or the language's weight lower."
            )
        self._spent[number] += sum(token not in self._special for token in row)
        return row, part.language

    def _of_pass(self, number: int) -> int:
        """What a pipeline has given since its pass began."""
        return self._spent[number] - (self._ends[number] or [0])[-1]

    def _begin_again(self, number: int) -> None:
        self._pipelines[number].close()
        self._pipelines[number] = iter(self._datasets[number])
        self._ends[number].append(self._spent[number])

    def get_state(self) -> dict[str, Any]:
        """Where the iterator stands."""
        return {
            "settings": self._settings,
            "spent": list(self._spent),
            "ends": [list(ends) for ends in self._ends],
            "pipelines": [pipeline.get_state() for pipeline in self._pipelines],
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from where an iterator stood: the next row is the one that it would have given.

        Raises:
          UserError: the state belongs to other corpora, settings or hosts.
        """
        for name, now in self._settings.items():
            if (before := state["settings"].get(name)) != now:
                raise UserError(
                    f"The text was read with {name} {before} and is now to be read on with {now}; "
                    "go on as it began, or begin anew in another folder."
                )
        self._spent = list(state["spent"])
        self._ends = [list(ends) for ends in state["ends"]]
        for pipeline, where in zip(self._pipelines, state["pipelines"], strict=True):
            pipeline.set_state(_with_tuples(where))


def distinct(state: Mapping[str, Any], asked: float) -> float:
    """How many of the tokens that a host is asked for in a pass its text has.

    Args:
      state: of its `Rows`.
      asked: tokens of a pass; a corpus that did not begin again has given its share of them.
    """
    parts = zip(state["ends"], state["settings"]["shares"], strict=True)
    return sum(min(ends[0], asked * share) if ends else asked * share for ends, share in parts)


def _settings(
    config: DataConfig, mix: Sequence[Part], split: str, host: int, hosts: int
) -> dict[str, Any]:
    """What a state depends on."""
    order = ("seed", "row_tokens", "packed", "short_share", "heldout_share")
    shown = {f"data.{name}": getattr(config, name) for name in order}
    return shown | {
        "split": split,
        "host": host,
        "hosts": hosts,
        "corpora": [
            [part.source.language, part.source.kind, part.source.field, part.source.identity]
            for part in mix
        ],
        "shares": [part.share for part in mix],
    }


def _with_tuples(state: Any) -> Any:
    """Grain's packing compares its slices with tuples, of which JSON makes lists."""
    if isinstance(state, Mapping):
        return {
            key: {name: tuple(pair) for name, pair in value.items()}
            if key == "remainder_slices"
            else _with_tuples(value)
            for key, value in state.items()
        }
    return [_with_tuples(value) for value in state] if isinstance(state, list) else state


class _Each(experimental.FlatMapTransform):
    """The elements of lists, one by one."""

    max_fan_out = 2**31

    def flat_map(self, element: Sequence[Any]) -> Sequence[Any]:
        return element


def _pipeline(
    lm: LanguageModel,
    config: DataConfig,
    part: Part,
    split: str,
    number: int,
    host: int,
    hosts: int,
) -> grain.IterDataset:
    """One part's rows."""
    seeds = np.random.SeedSequence([config.seed, number]).generate_state(2)
    files_seed, rows_seed = (int(seed) // 2 for seed in seeds)
    packed = config.packed and not part.short
    texts = _documents(part.source, files_seed, host, hosts).map(_kept(part, config, split))
    lists = (
        texts.filter(bool)
        .batch(DOCUMENTS, batch_fn=list)
        .map(_tokens(lm) if packed else _rows(lm, config, part))
    )
    lists = experimental.ThreadPrefetchIterDataset(lists, prefetch_buffer_size=2)
    result: grain.IterDataset = experimental.FlatMapIterDataset(lists, _Each())
    if packed:
        first = beginning(lm)
        handling = experimental.BOSHandling
        result = experimental.ConcatThenSplitIterDataset(
            result,
            length_struct={"tokens": config.row_tokens},
            bos_handling=handling.REPLACE_FIRST_TOKEN_WITH_BOS if first else handling.DO_NOTHING,
            bos_features=("tokens",) if first else (),
            bos_token_id=first[0] if first else None,
        )
        # The last row of all may not be full.
        result = result.filter(lambda row: row["tokens_segment_ids"][-1] > 0)
        result = result.map(lambda row: tuple(row["tokens"].tolist()))
    result = experimental.WindowShuffleIterDataset(result, window_size=ROWS, seed=rows_seed)
    # Held-out documents are few, and grain would warn of it.
    return experimental.WithOptionsIterDataset(
        result, experimental.DatasetOptions(filter_warn_threshold_ratio=None)
    )


def _documents(source: Source, seed: int, host: int, hosts: int) -> grain.IterDataset[Document]:
    """A host's documents: whole files or row groups if there are enough, else every n-th."""
    if source.kind == "hub":
        return HubDocuments(source, host, hosts)
    units = grain.MapDataset.source(source.units).shuffle(seed)
    if len(units) >= hosts:
        units, host, hosts = units[host::hosts], 0, 1
    mine = [unit for i in range(len(units)) if (unit := units[i]) is not None]
    return Documents(mine, source.field, host, hosts)


def _kept(part: Part, config: DataConfig, split: str) -> Callable[[Document], Document]:
    """What a document gives to a part: nothing if it is of the other split, else some pieces."""

    def kept(document: Document) -> Document:
        if (_chance(config, *document) < config.heldout_share) != (split == "heldout"):
            return ()
        return tuple(
            piece
            for piece in document
            if (_chance(config, "sentences", piece) < part.sentence_share) == part.short
        )

    return kept


def _chance(config: DataConfig, *texts: str) -> float:
    """A number from 0 to 1 that follows from texts and the seed."""
    data = "\n".join((str(config.seed), *texts)).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()) / 2**64


def _tokens(lm: LanguageModel) -> Callable[[list[Document]], list[dict[str, np.ndarray]]]:
    """Whole documents, to be packed."""
    return lambda texts: [{"tokens": np.array(ids, np.int32)} for ids in _whole(lm, texts)]


def _whole(lm: LanguageModel, texts: Sequence[Document]) -> list[list[int]]:
    """The tokens of each document, BOS first if the model knows it; pieces go side by side."""
    pieces = [
        piece + "\n" * (number < len(text))
        for text in texts
        for number, piece in enumerate(text, 1)
    ]
    ids = iter(tokenize(lm, pieces, bos=False))
    return [[*beginning(lm), *(token for _ in text for token in next(ids))] for text in texts]


def _rows(
    lm: LanguageModel, config: DataConfig, part: Part
) -> Callable[[list[Document]], list[Row]]:
    """Rows that hold one sentence, one short text, or one document or what a row holds of it."""

    def short(texts: list[Document]) -> list[Row]:
        pieces = [piece for text in texts for piece in text]
        if not part.source.short:
            pieces = [sentence for piece in pieces for sentence in sentences(piece)]
        shortest = len(beginning(lm)) + 2
        rows = tokenize(lm, pieces)
        return [tuple(row[: config.row_tokens]) for row in rows if len(row) >= shortest]

    def split(texts: list[Document]) -> list[Row]:
        first = beginning(lm)
        return [
            row
            for ids in _whole(lm, texts)
            for row in cut(ids[len(first) :], first, config.row_tokens, shortest=2)
        ]

    return short if part.short else split
