"""Activations captured while a dictionary is trained on them, and kept nowhere else.

The way of a token: text → `packing` (rows as arrays; host, in a thread) → `_read` (the language
model, on the process' own devices) → `_gather` (what is padding or special is left behind) →
`mixing` (a shuffling buffer over all devices) → a batch. Nothing waits for the device: the next
batch is on its way there while the last step is computed.

Every process reads text of its own and captures on its own devices, as many tokens as its share of
a batch; processes meet in `mixing.draw`. So the model must fit into one host's devices, over which
it is split as `model_shards` says, and a run goes on with another number of devices, token for
token, but with as many processes: each one's part of the text is its own.
"""

import dataclasses
import functools
import itertools
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from emojax.errors import UserError
from emojax.lm import capture, decoder, sharding
from emojax.lm.capture import Tap
from emojax.lm.config import DecoderConfig
from emojax.lm.model import LanguageModel
from emojax.sae import mixing
from emojax.sae.ahead import Stopwatch, ahead
from emojax.sae.mixing import Buffer, Fresh
from emojax.sae.packing import Pack, Packer, TextStream
from emojax.sae.store import Batch

DTYPES = ("float16", "bfloat16", "float32")
MODEL_DTYPES = ("float32", "bfloat16")
# The axes of a process' own mesh: rows, and what a copy of the language model is split over.
OWN = ("data", "model")
PACKS_AHEAD = 2
BATCHES_AHEAD = 2
# Of the text around an activation that is not finite, on each side.
SHOWN_TOKENS = 32


@dataclasses.dataclass(frozen=True)
class ActivationsConfig:
    """How activations come to the trainer.

    Stored, the default: captured once, kept on disk, read for every pass and every dictionary; best
    where capture is dear, as on a CPU. Streamed: no disk, any amount of text, each token captured
    for one use; best where capture is quick.

    Attributes:
      streamed: whether they are streamed.
      buffer_tokens: tokens in the shuffling buffer, a multiple of the batch is used.
      capture_tokens: tokens per forward pass, padding included.
      dtype: of the unit vectors in the buffer.
      model_dtype: of the language model's weights as they are loaded to be captured from, stored
        activations too: one of `MODEL_DTYPES`.
      model_shards: devices of one host over which a copy of the language model is split, heads and
        MLP units; the host's other devices hold copies and share its rows.
    """

    streamed: bool = False
    buffer_tokens: int = 131_072
    capture_tokens: int = 8192
    dtype: str = "float16"
    model_dtype: str = "float32"
    model_shards: int = 1

    def __post_init__(self):
        for name in ("buffer_tokens", "capture_tokens", "model_shards"):
            if getattr(self, name) < 1:
                raise UserError(f"The activations' {name} is {getattr(self, name)}; give a number.")
        for name, known in (("dtype", DTYPES), ("model_dtype", MODEL_DTYPES)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"The activations' {name} {getattr(self, name)!r} is unknown; choose one of "
                    f"{', '.join(known)}."
                )


def width_of(config: DecoderConfig, taps: Sequence[Tap]) -> int:
    """Numbers per activation at the sites that a dictionary reads and, a transcoder, writes.

    Raises:
      UserError: the two are not of one width.
    """
    widths = [decoder.site_width(config, tap.site) for tap in taps]
    if len(set(widths)) > 1:
        raise UserError(
            f"The transcoder would read {taps[0].site}, which is {widths[0]} wide, and write "
            f"{taps[1].site}, which is {widths[1]} wide; set sae.site and sae.target_site to two "
            "of one width."
        )
    return widths[0]


def own_mesh(mesh: Mesh, model_shards: int) -> Mesh:
    """This process' devices of the trainer's mesh, in its order, with the axes `OWN`.

    Raises:
      UserError: the shards do not divide them.
    """
    devices = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    if len(devices) % model_shards:
        raise UserError(
            f"A copy of the language model cannot be split over {model_shards} of the "
            f"{len(devices)} devices that a host trains on; set activations.model_shards to a "
            "number that divides them."
        )
    grid = np.array(devices).reshape(-1, model_shards)
    return Mesh(grid, OWN, axis_types=(AxisType.Auto,) * 2)


def buffer_depth(config: ActivationsConfig, batch_tokens: int, devices: int) -> int:
    """Batches that the shuffling buffer holds.

    Raises:
      UserError: they are less than two, or the devices do not divide a batch.
    """
    if batch_tokens % devices:
        raise UserError(
            f"The batch of {batch_tokens} tokens does not divide by the {devices} devices "
            "that capture it; set train.batch_tokens to a multiple."
        )
    depth = config.buffer_tokens // batch_tokens
    if depth < 2:
        raise UserError(
            f"The buffer of {config.buffer_tokens:,} tokens does not hold two batches of "
            f"{batch_tokens:,}; set activations.buffer_tokens higher."
        )
    return depth


def steps_of_pass(tokens: int, batch_tokens: int) -> int:
    """Batches that a pass over so many tokens of the text gives.

    Raises:
      UserError: it gives none.
    """
    if tokens < batch_tokens:
        raise UserError(
            f"A pass of {tokens:,} tokens is less than a batch of {batch_tokens:,}; set "
            "data.tokens higher, or train.batch_tokens lower."
        )
    return tokens // batch_tokens


class Stream:
    """A source of batches for the trainer; see `source.Source`."""

    def __init__(
        self,
        lm: LanguageModel,
        taps: Sequence[Tap],
        text: TextStream,
        config: ActivationsConfig,
        *,
        tokens: int,
        batch_tokens: int,
        mesh: Mesh,
    ):
        """A stream from the beginning of a text.

        Args:
          lm: the language model, in the type in which it is to be read; it is moved to where
            `own_mesh` wants it if it is not there.
          taps: what is read, and what a transcoder is to make of it if there are two.
          text: this process' rows.
          config: sizes.
          tokens: how many make a pass.
          batch_tokens: how many make a step.
          mesh: the trainer's.

        Raises:
          UserError: a tap is not there, two are not of one width, the mesh does not divide the
            batch, the buffer is small, or the model cannot be split so.
        """
        capture.check_taps(lm.config, taps)
        depth = buffer_depth(config, batch_tokens, mesh.size)
        self.width, self.has_target = width_of(lm.config, taps), len(taps) > 1
        self.waiting = Stopwatch()
        self._lm, self._taps, self._tokens, self._mesh = lm, tuple(taps), tokens, mesh
        self._own = own_mesh(mesh, config.model_shards)
        self._params = sharding.shard_params(lm.config, lm.params, self._own)
        # Of all devices, so that the same rows are packed together however the model is split.
        self._packer = Packer(lm, text, config.capture_tokens, self._own.size)
        self._batch_tokens, self._dtype = batch_tokens, config.dtype
        self._like = mixing.shapes(mesh, len(taps), batch_tokens, depth, self.width, config.dtype)
        self._buffer: Buffer | None = None
        # What is in the buffer, and most of what was shortly before.
        packs = 2 + 4 * config.buffer_tokens // config.capture_tokens
        self._recent: deque[tuple[np.ndarray, ...]] = deque(maxlen=packs)
        self._start = self._packer.get_state()
        self._position: dict[str, Any] = {"packer": self._start, "used": 0}

    def steps_per_epoch(self, batch_tokens: int) -> int:
        """Batches that one pass over the text gives.

        Raises:
          UserError: it gives none.
        """
        return steps_of_pass(self._tokens, batch_tokens)

    def sample(self, tokens: int) -> Batch:
        """The first raw activations of the text, of each process' own if there are several."""
        count = min(tokens, self._tokens)
        self._go_to({"packer": self._start, "used": 0})
        found, fresh = 0, self._fresh()
        parts = []
        while found < count:
            part = jax.tree.map(_on_host, next(fresh))
            parts.append(part.values.astype(np.float32) * part.norms[..., None])
            found += self._batch_tokens
        fresh.close()
        self._go_to({"packer": self._start, "used": 0})
        return Batch(*np.concatenate(parts, axis=1)[:, :count])

    def batches(
        self, batch_tokens: int, seed: int, first_step: int = 0
    ) -> Generator[Batch, None, None]:
        """Endless batches of raw activations, from where `restore` went or from the beginning.

        Args:
          batch_tokens: what the stream was made with.
          seed: of what is drawn from the buffer.
          first_step: the step that the first batch is for.
        """
        del batch_tokens
        fresh = self._fresh()
        try:
            if self._buffer is None:
                self._buffer = self._filled(fresh)
            shape = self._like.norms.shape[1:]
            given: deque[Batch] = deque()
            for step in itertools.count(first_step):
                new = next(fresh)
                slots = mixing.slots(self._mesh, shape, np.int32(seed), np.int32(step))
                batch = mixing.draw(self._mesh, self._buffer, slots)
                self._buffer = mixing.put(self._mesh, self._buffer, new, slots)
                # The host must not fill the device's memory with what it asks for.
                given.append(batch)
                if len(given) > BATCHES_AHEAD:
                    jax.block_until_ready(given.popleft())
                yield batch
        finally:
            fresh.close()

    def _filled(self, fresh: Iterator[Fresh]) -> Buffer:
        buffer = mixing.empty(self._like)
        _, tokens, depth, _ = self._like.values.shape
        with tqdm(
            total=tokens * depth,
            desc="fill the buffer",
            unit="tok",
            unit_scale=True,
            disable=None if jax.process_index() == 0 else True,
        ) as bar:
            for slot in range(depth):
                slots = np.full(tokens, slot, np.int32)
                buffer = mixing.put(self._mesh, buffer, next(fresh), slots)
                jax.block_until_ready(buffer.filled)  # so that the bar tells the truth
                bar.update(tokens)
        return buffer

    def like(self) -> Buffer:
        """The shapes of `state`."""
        return self._like

    def state(self) -> Buffer | None:
        """The buffer after the last batch."""
        return self._buffer

    def position(self) -> dict[str, Any]:
        """This process' place in its text after the last batch (JSON)."""
        return self._position

    def restore(self, state: Buffer, position: dict[str, Any]) -> None:
        """Goes on from a state and a position."""
        self._buffer = state
        self._go_to(position)

    def _go_to(self, position: dict[str, Any]) -> None:
        self._packer.set_state(position["packer"])
        self._position = position

    def origin(self, batch_tokens: int, seed: int, step: int) -> str:
        """Whether an activation was not finite when it was captured, and which text it is of.

        Rows count from 0 in the order of a process' text, as its `TextStream` gives them.
        """
        del seed, step
        fault = [-1] * 3 if self._buffer is None else _on_host(self._buffer.fault).tolist()
        row, position, place = fault
        if row < 0:
            return "all activations captured so far are finite"
        said = f"the first activation that is not finite is of row {row}, position {position}"
        process = self._mesh.devices.flat[place * self._mesh.size // batch_tokens].process_index
        if process != jax.process_index():
            return f"{said}, of the text of process {process}"
        for numbers, tokens, mask in self._recent:
            for i in np.flatnonzero(numbers == row)[:1]:
                there = tokens[i][mask[i]][max(0, position - SHOWN_TOKENS) :][: 2 * SHOWN_TOKENS]
                return f'{said}, in "{self._lm.tokenizer.decode(there)}"'
        return said

    def _fresh(self) -> Generator[Fresh, None, None]:
        """Batches of tokens as they are captured, from the position, which moves along."""
        share = self._batch_tokens * self._own.size // self._mesh.size
        packs = ahead(self._packer, PACKS_AHEAD, self.waiting)
        try:
            pack, used = next(packs), self._position["used"]
            self._recent.append((pack.numbers, pack.tokens, pack.mask))
            read = self._read(pack)
            while True:
                fresh, start = None, 0
                while start < share:
                    if used == pack.count:
                        pack, used = next(packs), 0
                        self._recent.append((pack.numbers, pack.tokens, pack.mask))
                        read = self._read(pack)
                    taken = min(share - start, pack.count - used)
                    fresh = _gather(self._own, self._dtype, share, fresh, read, start, used, taken)
                    start, used = start + taken, used + taken
                assert fresh is not None
                self._position = {"packer": pack.before, "used": used}
                yield self._everywhere(fresh)
        finally:
            packs.close()

    def _read(self, pack: Pack) -> "_Read":
        """Starts a forward pass over the process' devices."""
        tokens, mask = sharding.shard_rows(self._own, pack.tokens, pack.mask)
        sites = _capture(self._lm.config, self._taps, self._params, tokens, mask)
        return _Read(sites, pack.kept, pack.numbers)

    def _everywhere(self, own: Fresh) -> Fresh:
        """What this process captured as its part of what all did."""

        def whole(part: Array, spec: P) -> Array:
            shape = list(part.shape)
            shape[len(spec) - 1] = self._batch_tokens
            shards = [shard.data for shard in part.addressable_shards]
            place = NamedSharding(self._mesh, spec)
            return jax.make_array_from_single_device_arrays(tuple(shape), place, shards)

        return jax.tree.map(whole, own, _fresh_specs(mixing.EVERYWHERE))


class _Read(NamedTuple):
    """A forward pass under way, and which of its tokens are kept."""

    sites: Float[Array, "sites rows time width"]
    kept: Int[Any, " places"]
    numbers: Int[Any, " filled"]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _capture(
    config: DecoderConfig,
    taps: tuple[Tap, ...],
    params: Any,
    tokens: Int[Array, "rows time"],
    mask: Bool[Array, "rows time"],
) -> Float[Array, "sites rows time width"]:
    read = capture.capture(config, params, tokens, mask, taps)
    return jnp.stack([read[tap] for tap in taps])


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _gather(
    own: Mesh,
    dtype: str,
    share: int,
    fresh: Fresh | None,
    read: _Read,
    start: Int[Any, ""],
    first: Int[Any, ""],
    count: Int[Any, ""],
) -> Fresh:
    """Puts `count` kept tokens, from the `first` on, into the places of `fresh` from `start` on."""
    sites, _, time, width = read.sites.shape
    place = jnp.arange(share) - start
    flat = jnp.asarray(read.kept)[jnp.clip(first + place, 0, len(read.kept) - 1)]
    x = read.sites.reshape(sites, -1, width)[:, flat].astype(jnp.float32)
    norms = jnp.linalg.norm(x, axis=-1)
    values = (x / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny)[..., None]).astype(dtype)
    new = Fresh(values, norms, jnp.asarray(read.numbers)[flat // time], flat % time)
    if fresh is not None:
        inside = (place >= 0) & (place < count)
        wide = Fresh(inside[:, None], inside, inside, inside)
        new = jax.tree.map(jnp.where, wide, new, fresh)
    there = jax.tree.map(lambda spec: NamedSharding(own, spec), _fresh_specs(OWN))
    return jax.lax.with_sharding_constraint(new, there)


def _fresh_specs(axis: Any) -> Fresh:
    """How tokens are split."""
    specs = (P(None, axis), P(None, axis), P(axis), P(axis))
    return Fresh(*specs)  # pyrefly: ignore [bad-argument-type]  # specs for arrays


def _on_host(x: Array) -> np.ndarray:
    """An array's numbers on every host."""
    if x.is_fully_addressable:
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)
