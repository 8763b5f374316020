"""Activations captured once, kept on disk or in a bucket, read shuffled.

A store is a folder, local or `gs://`: `store.json` (what it holds and how far the capture is) and,
for each split, zarr3 arrays written by TensorStore: `token_ids`, `positions`, `rows` int32,
`languages` uint8, and for each tap, in a folder such as `9.resid_post`, `values` [tokens, width]
float16 unit vectors and `norms` [tokens] float32. All taps are read in one pass of the language
model. Special tokens (BOS, padding) are never stored.

What an array is on the disk is said in `store_arrays`. Format 2, whose chunks are objects of their
own, is read too.
"""

import dataclasses
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts
from tqdm import tqdm

from emojax.errors import UserError
from emojax.files import require_room, writable_dir
from emojax.lm import decoder
from emojax.lm.capture import Tap, check_taps, stream
from emojax.lm.model import LanguageModel
from emojax.sae import interrupt, store_arrays
from emojax.sae.ahead import Stopwatch, ahead
from emojax.sae.corpus import Rows
from emojax.sae.store_arrays import COLUMNS, CONTEXT, TAP_COLUMNS, Shards, kvstore, reading

FORMAT = 3
READABLE = (2, FORMAT)
CHUNK_TOKENS = 2048
BUFFER_CHUNKS = 32
BATCHES_AHEAD = 2
SEGMENT_ROWS = 256


class Batch(NamedTuple):
    """Raw activations `[tokens, width]`, and those of a transcoder's target site."""

    x: Any
    target: Any = None


@dataclasses.dataclass(frozen=True)
class Sample:
    """Stored tokens, in memory: `values` are unit vectors, `values * norms` the raw activations."""

    values: np.ndarray
    norms: np.ndarray
    token_ids: np.ndarray
    positions: np.ndarray
    rows: np.ndarray
    languages: np.ndarray
    target_values: np.ndarray | None = None
    target_norms: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a store, opened.

    Attributes:
      arrays: a TensorStore per column.
      tokens: how many tokens there are.
      languages: the names that the column `languages` counts in.
      chunk_tokens: tokens per chunk, the unit of shuffled reading.
      directory: the store's folder or address.
      waiting: how long the disk was waited for.
    """

    arrays: Mapping[str, Any]
    tokens: int
    languages: tuple[str, ...]
    chunk_tokens: int
    directory: str
    waiting: Stopwatch = dataclasses.field(default_factory=Stopwatch, compare=False)

    @property
    def width(self) -> int:
        """Numbers per activation."""
        return self.arrays["values"].shape[1]

    @property
    def has_target(self) -> bool:
        """Whether a transcoder's target is there."""
        return "target_values" in self.arrays

    def read(self, start: int, stop: int) -> Sample:
        """Tokens `start` to `stop`, in the order in which they were captured.

        Raises:
          UserError: the store is damaged or cannot be reached, here as in all that reads it.
        """
        futures = {name: self.arrays[name][start:stop].read() for name in self.arrays}
        return Sample(**{name: self._came(future) for name, future in futures.items()})

    def raw(self, start: int, stop: int) -> Batch:
        """Raw activations of tokens `start` to `stop`, and of the target if there is one."""
        parts = []
        for values, norms in self._sites():
            both = [self.arrays[name][start:stop].read() for name in (values, norms)]
            unit, norm = (self._came(future).astype(np.float32) for future in both)
            parts.append(unit * norm[:, None])
        return Batch(*parts)

    def sample(self, tokens: int) -> Batch:
        """The first raw activations."""
        return self.raw(0, min(tokens, self.tokens))

    def _came(self, future: Any) -> np.ndarray:
        """What was read, its checksums found right."""
        with reading(self.directory):
            return future.result()

    def _sites(self) -> list[tuple[str, str]]:
        """The columns of values and norms: of the input, and of the target if there is one."""
        return [("values", "norms")] + [("target_values", "target_norms")] * self.has_target

    def _buffers(self, batch_tokens: int) -> tuple[int, int]:
        """Chunks per buffer, and whole chunks."""
        check_pass(self.tokens, batch_tokens, self.chunk_tokens)
        per_buffer = max(BUFFER_CHUNKS, -(-batch_tokens // self.chunk_tokens))
        return per_buffer, self.tokens // self.chunk_tokens

    def steps_per_epoch(self, batch_tokens: int) -> int:
        """Batches that one pass gives.

        Raises:
          UserError: there are fewer tokens than one batch needs.
        """
        return sum(n for _, n in self._plan(batch_tokens))

    def _plan(self, batch_tokens: int) -> list[tuple[int, int]]:
        """Chunks and batches of each buffer of a pass: the same for every pass."""
        per_buffer, chunks = self._buffers(batch_tokens)
        sizes = [min(per_buffer, chunks - i) for i in range(0, chunks, per_buffer)]
        return [(size, size * self.chunk_tokens // batch_tokens) for size in sizes]

    def batches(
        self, batch_tokens: int, seed: int, first_step: int = 0
    ) -> Generator[Batch, None, None]:
        """Endless batches of raw activations, shuffled on every pass.

        A pass takes the chunks in random order, a buffer of them at a time, and shuffles the
        tokens of each buffer. The order is a function of `seed` and the step alone, so that a run
        that goes on at `first_step` sees what it would have seen. A thread reads ahead.
        """
        return ahead(self._batches(batch_tokens, seed, first_step), BATCHES_AHEAD, self.waiting)

    def _batches(self, batch_tokens: int, seed: int, first_step: int) -> Iterator[Batch]:
        buffers = self._buffers_from(batch_tokens, seed, first_step)
        upcoming = next(buffers)
        under_way = self._read_chunks(upcoming[0])
        while True:
            _, order, first, n = upcoming
            columns = [np.concatenate([self._came(f) for f in column]) for column in under_way]
            pairs = list(zip(columns[::2], columns[1::2], strict=True))
            # The next buffer, the next pass's too, is read while this one is trained on.
            upcoming = next(buffers)
            under_way = self._read_chunks(upcoming[0])
            for j in range(first, n):
                chosen = order[j * batch_tokens : (j + 1) * batch_tokens]
                yield Batch(*(values[chosen] * norms[chosen, None] for values, norms in pairs))

    def _buffers_from(
        self, batch_tokens: int, seed: int, first_step: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, int, int]]:
        """Endless buffers: chunks, the order of the tokens, the first batch wanted, all batches."""
        epoch, skip = divmod(first_step, self.steps_per_epoch(batch_tokens))
        while True:
            for ids, order, n in self._pass(batch_tokens, seed, epoch):
                if skip < n:
                    yield ids, order, skip, n
                skip = max(0, skip - n)
            epoch += 1

    def like(self) -> dict[str, Any]:
        """There is no state but the step."""
        return {}

    def state(self) -> dict[str, Any]:
        """As `like`."""
        return {}

    def position(self) -> None:
        """The step says where in the data a run is."""

    def restore(self, state: dict[str, Any], position: None) -> None:
        """Nothing is to be done: `batches` is given the step."""

    def origin(self, batch_tokens: int, seed: int, step: int) -> str:
        """Which stored tokens a step's batch (counted from 0) is made of, a broken one first."""
        tokens = self.tokens_of(batch_tokens, seed, step)
        values, norms, rows, positions = (
            self._came(self.arrays[name][tokens].read())
            for name in ("values", "norms", "rows", "positions")
        )
        broken = np.flatnonzero(~(np.isfinite(norms) & np.isfinite(values).all(axis=1)))
        said = "all of its batch's stored activations are finite, "
        if len(broken):
            said = f"{len(broken)} of its batch's stored activations are not finite, "
        i = broken[0] if len(broken) else 0
        return said + f"the first is token {tokens[i]}, row {rows[i]}, position {positions[i]}"

    def tokens_of(self, batch_tokens: int, seed: int, step: int) -> np.ndarray:
        """Which stored tokens the batch of a step (counted from 0) is made of, in its order."""
        epoch, skip = divmod(step, self.steps_per_epoch(batch_tokens))
        for ids, order, n in self._pass(batch_tokens, seed, epoch):
            if skip < n:
                chosen = order[skip * batch_tokens : (skip + 1) * batch_tokens]
                chunk, offset = np.divmod(chosen, self.chunk_tokens)
                return ids[chunk] * self.chunk_tokens + offset
            skip -= n
        raise AssertionError("a pass has as many batches as its buffers have")

    def _pass(
        self, batch_tokens: int, seed: int, epoch: int
    ) -> list[tuple[np.ndarray, np.ndarray, int]]:
        """Each buffer of a pass: its chunks, the order of its tokens, how many batches it gives."""
        plan = self._plan(batch_tokens)
        rng = np.random.default_rng([seed, epoch])
        chunks = rng.permutation(sum(size for size, _ in plan))
        orders = [rng.permutation(size * self.chunk_tokens) for size, _ in plan]
        ends = np.cumsum([size for size, _ in plan])
        return [
            (chunks[end - size : end], order, n)
            for (size, n), order, end in zip(plan, orders, ends, strict=True)
        ]

    def _read_chunks(self, ids: np.ndarray) -> list[list[Any]]:
        size = self.chunk_tokens
        return [
            [self.arrays[name][i * size : (i + 1) * size].read() for i in ids]
            for site in self._sites()
            for name in site
        ]


@dataclasses.dataclass(frozen=True)
class Store:
    """All that one capture read.

    Attributes:
      arrays: by split and name.
      tokens: by split.
      languages: the names that the column `languages` counts in.
      chunk_tokens: tokens per chunk.
      directory: the folder or address.
    """

    arrays: Mapping[str, Mapping[str, Any]]
    tokens: Mapping[str, int]
    languages: tuple[str, ...]
    chunk_tokens: int
    directory: str

    def splits(self, tap: Tap, target: Tap | None = None) -> dict[str, Split]:
        """What one dictionary is trained and measured on."""
        found = {}
        for split, arrays in self.arrays.items():
            own = {name: arrays[name] for name in COLUMNS}
            own |= {name: arrays[f"{_named(tap)}/{name}"] for name in TAP_COLUMNS}
            if target is not None:
                own |= {f"target_{n}": arrays[f"{_named(target)}/{n}"] for n in TAP_COLUMNS}
            tokens = self.tokens[split]
            found[split] = Split(own, tokens, self.languages, self.chunk_tokens, self.directory)
        return found


def check_pass(tokens: int, batch_tokens: int, chunk_tokens: int = CHUNK_TOKENS) -> None:
    """Refuses to train on so few stored tokens.

    Raises:
      UserError: their whole chunks do not make one batch.
    """
    if tokens // chunk_tokens * chunk_tokens < batch_tokens:
        raise UserError(
            f"A pass of {tokens:,} stored tokens, in whole chunks of {chunk_tokens:,}, is less "
            f"than a batch of {batch_tokens:,}; set data.tokens higher, or train.batch_tokens "
            "lower."
        )


def counted(lm: LanguageModel, part: Rows) -> int:
    """Tokens of a split's rows that a store keeps: all but the special ones."""
    special = _special(lm)
    return int(sum(np.isin(row, special, invert=True).sum() for row in part.tokens))


def _special(lm: LanguageModel) -> np.ndarray:
    """The ids of tokens that no store keeps."""
    return np.array(sorted(lm.tokenizer.all_special_ids), np.int32)


def identity(lm: LanguageModel, taps: Sequence[Tap], rows: Mapping[str, Rows]) -> dict[str, Any]:
    """What a store holds: the model by its weights, the taps, the text by its tokens."""
    return {
        "format": FORMAT,
        "model": lm.name,
        "fingerprint": lm.fingerprint,
        "model_dtype": lm.params["embed"].dtype.name,
        "taps": sorted({_named(tap) for tap in taps}),
        "d_model": lm.config.d_model,
        "languages": list(next(iter(rows.values())).names),
        "text": {split: part.digest for split, part in rows.items()},
    }


def _named(tap: Tap) -> str:
    return f"{tap.layer}.{tap.site}"


def capture(
    lm: LanguageModel,
    tap: Tap,
    rows: Mapping[str, Rows],
    directory: Path | str,
    *,
    limit_gib: float,
    target: Tap | None = None,
    batch_tokens: int = 1024,
    chunk_tokens: int = CHUNK_TOKENS,
) -> dict[str, Split]:
    """`capture_taps` for one dictionary, whose target is another tap if it is a transcoder."""
    taps = [tap] if target is None else [tap, target]
    held = capture_taps(
        lm,
        taps,
        rows,
        directory,
        limit_gib=limit_gib,
        batch_tokens=batch_tokens,
        chunk_tokens=chunk_tokens,
    )
    return held.splits(tap, target)


def capture_taps(
    lm: LanguageModel,
    taps: Sequence[Tap],
    rows: Mapping[str, Rows],
    directory: Path | str,
    *,
    limit_gib: float,
    batch_tokens: int = 1024,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Store:
    """Captures each split's rows into the store at `directory`, or goes on where it stopped.

    Whole shards are on the disk; Ctrl-C and SIGTERM save what is captured of the one at work, and a
    kill loses that.

    Args:
      lm: the language model.
      taps: where it is read, all in one pass; a store that holds others besides is used as it is.
      rows: what it reads, by split.
      directory: the store, a folder or a `gs://` address.
      limit_gib: the most that the store may fill.
      batch_tokens: tokens per forward pass; a store that was begun keeps its own.
      chunk_tokens: tokens per chunk on the disk.

    Raises:
      UserError: the store holds something else, would exceed the limit, or the disk has no room.
      KeyboardInterrupt: a signal came.
    """
    check_taps(lm.config, taps)
    local = "://" not in str(directory)
    if local:
        writable_dir(Path(directory))
    wanted = identity(lm, taps, rows) | {"chunk_tokens": chunk_tokens}
    done = {split: {"rows": 0, "tokens": 0, "written": 0} for split in rows}
    special = _special(lm)
    totals = {split: counted(lm, part) for split, part in rows.items()}
    state = _read_state(directory, wanted)
    if state is not None:
        wanted, done = state["holds"], state["done"]
    else:
        widths = [decoder.site_width(lm.config, tap.site) for tap in set(taps)]
        size = sum(totals.values()) * (sum(2 * width + 4 for width in widths) + 13)
        if size > limit_gib * 2**30:
            raise UserError(
                f"The activations would fill {size / 2**30:.1f} GiB and data.store_gib allows "
                f"{limit_gib:g}; raise it, or set data.tokens lower."
            )
        if local:
            require_room(Path(directory), size)
        # What is gone on with is captured in the same batches, so that its tokens lie in one order.
        wanted["batch_tokens"] = batch_tokens
        wanted["shard_tokens"] = store_arrays.shard_size(max(widths), chunk_tokens)
        _write_state(directory, wanted, done)
    batch_tokens = wanted.get("batch_tokens", batch_tokens)
    shard_tokens = wanted.get("shard_tokens")
    named = (name.split(".") for name in wanted["taps"])
    held = {f"{layer}.{site}": Tap(int(layer), site) for layer, site in named}
    widths = {name: decoder.site_width(lm.config, tap.site) for name, tap in held.items()}
    opened = {}
    with interrupt.requested() as stop:
        for split, part in rows.items():
            arrays = opened[split] = store_arrays.opened(
                f"{directory}/{split}", widths, totals[split], chunk_tokens, shard_tokens
            )
            if done[split]["rows"] == len(part.tokens):
                continue
            # Format 2 counted whole segments only, all of them written.
            written = done[split].get("written", done[split]["tokens"])
            with reading(directory):
                shards = Shards(arrays, shard_tokens or chunk_tokens, written)
            with tqdm(
                total=totals[split],
                initial=written,
                desc=f"capture {split}",
                unit="tok",
                unit_scale=True,
            ) as progress:
                segments = _segments(lm, held, part, done[split], special, batch_tokens)
                for columns, segment in segments:
                    shards.add(columns)
                    progress.update(shards.tokens - progress.n)
                    if stopping := stop():
                        shards.write()
                    if shards.written > written:
                        written = shards.written
                        done[split] = segment | {"written": written}
                        _write_state(directory, wanted, done)
                    if stopping:
                        raise KeyboardInterrupt
            shards.write()
            done[split] = {
                "rows": len(part.tokens),
                "tokens": totals[split],
                "written": totals[split],
            }
            _write_state(directory, wanted, done)
    languages = next(iter(rows.values())).names
    return Store(opened, totals, languages, chunk_tokens, str(directory))


def _segments(
    lm: LanguageModel,
    taps: Mapping[str, Tap],
    part: Rows,
    done: Mapping[str, int],
    special: np.ndarray,
    batch_tokens: int,
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, int]]]:
    """What is not yet written, batch by batch, each with the row and token its segment begins at.

    A segment begun is captured again as a whole, so that its batches are the same ones.
    """
    at = done["tokens"]
    known = done.get("written", at)
    for first in range(done["rows"], len(part.tokens), SEGMENT_ROWS):
        begins = {"rows": first, "tokens": at}
        segment = part.tokens[first : first + SEGMENT_ROWS]
        for columns in _captured(lm, taps, segment, part, first, special, batch_tokens):
            skipped = max(0, known - at)
            at += len(columns["rows"])
            yield {name: column[skipped:] for name, column in columns.items()}, begins


def _captured(
    lm: LanguageModel,
    taps: Mapping[str, Tap],
    segment: tuple[tuple[int, ...], ...],
    part: Rows,
    first: int,
    special: np.ndarray,
    batch_tokens: int,
) -> Iterator[dict[str, np.ndarray]]:
    """The segment's activations as stored: special tokens dropped, unit vectors and norms."""
    languages = np.array(part.languages[first : first + len(segment)], np.uint8)
    for captured in stream(lm, [list(row) for row in segment], list(taps.values()), batch_tokens):
        of_tokens = captured[next(iter(taps.values()))]
        keep = ~np.isin(np.asarray(of_tokens.token_ids), special)
        rows = np.asarray(of_tokens.rows)[keep]
        columns = {
            "token_ids": np.asarray(of_tokens.token_ids)[keep],
            "positions": np.asarray(of_tokens.positions)[keep],
            "rows": rows + first,
            "languages": languages[rows],
        }
        for name, tap in taps.items():
            parts = _split_norm(np.asarray(captured[tap].values, np.float32)[keep])
            columns |= {f"{name}/{column}": x for column, x in zip(TAP_COLUMNS, parts, strict=True)}
        yield columns


def _split_norm(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors and norms."""
    norms = np.linalg.norm(values, axis=1)
    return values / np.maximum(norms, np.finfo(np.float32).tiny)[:, None], norms


def _read_state(directory: Path | str, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """The store's progress, if it holds what is wanted; None where there is no store yet."""
    try:
        found = ts.KvStore.open(kvstore(directory), context=CONTEXT).result().read("store.json")
        if found.result().state == "missing":
            return None
        state = json.loads(found.result().value)
        # Stores that do not say it are of models in float32.
        holds = {"model_dtype": "float32"} | dict(state["holds"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"The activation store's {directory}/store.json cannot be read ({error}); remove the "
            f"folder {directory} to capture again."
        ) from None
    for name, value in wanted.items():
        fits = holds.get(name) == value
        if name == "taps":
            fits = set(value) <= set(holds.get(name, ()))
        if name == "format":
            fits = holds.get(name) in READABLE
        if not fits:
            raise UserError(
                f"The activation store {directory} was made with another {name} "
                f"({_short(holds.get(name))}, not {_short(value)}); give another --store, or "
                "remove that folder."
            )
    return state


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "…"


def _write_state(directory: Path | str, holds: Mapping[str, Any], done: Mapping[str, Any]) -> None:
    text = json.dumps({"holds": holds, "done": done}, indent=2) + "\n"
    folder = ts.KvStore.open(kvstore(directory), context=CONTEXT).result()
    try:
        folder.write("store.json", text.encode()).result()
    except ValueError as error:
        raise UserError(
            f"The activation store's {directory}/store.json could not be written ({error}); mend "
            "that and run again."
        ) from None
