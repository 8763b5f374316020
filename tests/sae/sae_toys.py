"""Toy activations, a toy language model with a real tokenizer, toy corpora."""

import dataclasses
import gzip
import hashlib
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from emojax.config import Config
from emojax.files import Place
from emojax.lm import decoder, sharding
from emojax.lm.capture import Tap
from emojax.lm.config import DecoderConfig, Rope
from emojax.lm.model import LanguageModel
from emojax.sae import pipeline, store, store_arrays, trainer
from emojax.sae import state as states
from emojax.sae.checkpoints import Checkpoints
from emojax.sae.coder import SaeConfig
from emojax.sae.corpus import Rows
from emojax.sae.packing import TextStream
from emojax.sae.source import Source
from emojax.sae.store import Split, Store
from emojax.sae.stream import ActivationsConfig, Stream
from emojax.sae.train_config import TrainConfig

D, N, K = 16, 64, 4
CHUNK = 256
SAE = SaeConfig(d_model=D, n_latents=N, k=K, model="toy", layer=0)
TRAIN = TrainConfig(
    epochs=2,
    batch_tokens=128,
    learning_rate=3e-3,
    k_aux=8,
    dead_after_tokens=500,
    log_every=1,
    checkpoint_every=10,
)
# A buffer of six batches, and packs that do not divide a batch.
STREAM = ActivationsConfig(
    streamed=True, buffer_tokens=6 * 128, capture_tokens=256, dtype="float32"
)
LETTERS = "abcdefghijklmnopqrstuvwxyz .!?\n我你他很高兴难过今天明天。！？"


def activations(tokens: int, seed: int = 0) -> np.ndarray:
    """Sparse mixtures of 48 directions, with norms that vary."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99).normal(size=(48, D))
    code = (rng.random((tokens, 48)) < 0.06) * rng.random((tokens, 48))
    noise = 0.02 * rng.normal(size=(tokens, D))
    return ((code @ directions + noise) * rng.uniform(5, 50, (tokens, 1))).astype(np.float32)


def split_of(
    directory: Place,
    x: np.ndarray,
    languages: np.ndarray | None = None,
    target: np.ndarray | None = None,
) -> Split:
    """Raw activations as a stored split."""
    sites = {"0.in": x} | ({} if target is None else {"0.out": target})
    widths = {name: raw.shape[1] for name, raw in sites.items()}
    arrays = store_arrays.opened(str(directory), widths, len(x), CHUNK, 4 * CHUNK)
    zeros = np.zeros(len(x), np.int32)
    columns = dict.fromkeys(store_arrays.COLUMNS, zeros)
    columns["languages"] = zeros if languages is None else languages
    for name, raw in sites.items():
        columns[f"{name}/values"], columns[f"{name}/norms"] = store._split_norm(raw)
    store_arrays.write(arrays, columns, 0)
    held = Store({"all": arrays}, {"all": len(x)}, ("en", "zh"), CHUNK, str(directory))
    return held.splits(Tap(0, "in"), None if target is None else Tap(0, "out"))["all"]


TIMELESS = ("tokens_per_second", "input_wait", "sae_mfu")


def read_log(directory: Path) -> list[dict]:
    """A run's log without what depends on the clock."""
    return timeless((directory / "training_log.jsonl").read_text())


def timeless(log: str) -> list[dict]:
    """A log's lines without what depends on the clock."""
    lines = map(json.loads, log.splitlines())
    return [{k: v for k, v in line.items() if k not in TIMELESS} for line in lines]


class Interfering(Split):
    """A split that does something to a given batch just before it is given out."""

    def __init__(self, split: Split, at: int, act):
        super().__init__(
            split.arrays, split.tokens, split.languages, split.chunk_tokens, split.directory
        )
        object.__setattr__(self, "at", at)
        object.__setattr__(self, "act", act)

    def batches(self, batch_tokens, seed, first_step=0):
        for step, batch in enumerate(super().batches(batch_tokens, seed, first_step), first_step):
            if step == self.at:
                self.act(batch)
            yield batch


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per character."""
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<bos>", *LETTERS])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<bos>", unk_token="<unk>")


def language_model(d_model: int = D, name: str = "toy", n_heads: int = 2) -> LanguageModel:
    """A random decoder of two layers."""
    config = DecoderConfig(
        vocab_size=len(LETTERS) + 2,
        n_layers=2,
        d_model=d_model,
        d_ff=32,
        n_heads=n_heads,
        n_kv_heads=1,
        head_dim=8,
        context=64,
        activation="silu",
        norm_eps=1e-6,
        ropes=(Rope(10_000.0),),
        rope_of_layer=(0, 0),
        windows=(0, 0),
        query_scale=0.35,
        bos_token_id=1,
    )
    params = decoder.init(config, jax.random.key(0))
    return LanguageModel(name, config, params, tokenizer(), Path(), "f" * 64)


def load(
    name: str,
    *,
    dtype: Any = np.float32,
    mesh: Mesh | None = None,
    check: Callable[[DecoderConfig], None] | None = None,
) -> LanguageModel:
    """`sources.load` of the toy."""
    lm = language_model(name=name)
    if check is not None:
        check(lm.config)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), lm.params)
    if mesh is not None:
        params = sharding.shard_params(lm.config, params, mesh)
    return dataclasses.replace(lm, params=params)


def train_one(config: Config, corpora: Sequence[tuple[str, Path]], **folders: Any) -> dict:
    """The whole pipeline for one dictionary, in these folders themselves."""
    return pipeline.run_all({"": config}, corpora, command="…", **folders)[""]


def two_processes(arguments: Callable[[str, str], list[str]]) -> list[str]:
    """What a Python program prints in each of two processes at once.

    Args:
      arguments: the program and what it is given, from a free port and the process' number.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    both = [
        subprocess.Popen(
            [sys.executable, *arguments(port, str(i))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=600) for process in both]
    assert all(process.returncode == 0 for process in both), [e[-2000:] for _, e in outputs]
    return [out for out, _ in outputs]


def without_bos() -> LanguageModel:
    """The same, trained without a token for a text's beginning."""
    lm = language_model()
    lm.tokenizer.bos_token = None
    return dataclasses.replace(lm, config=dataclasses.replace(lm.config, bos_token_id=None))


def text_rows(count: int, lengths: tuple[int, ...] = (5, 9, 30), seed: int = 0) -> Rows:
    """Random rows that begin with BOS."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice(lengths, count)
    tokens = tuple((1, *rng.integers(2, 40, n).tolist()) for n in sizes)
    digest = f"{count} rows of seed {seed}"
    return Rows(tokens, tuple(rng.integers(0, 2, count).tolist()), ("en", "zh"), digest)


def streamed(
    lm: LanguageModel,
    rows: Rows,
    settings: TrainConfig,
    *,
    tokens: int,
    taps: tuple[Tap, ...] = (Tap(1),),
    text: TextStream | None = None,
    config: ActivationsConfig = STREAM,
) -> Stream:
    """Activations of rows, streamed over the mesh of the settings."""
    mesh = states.make_mesh(settings, N)
    text = Cycle(rows) if text is None else text
    batch = settings.batch_tokens
    return Stream(lm, taps, text, config, tokens=tokens, batch_tokens=batch, mesh=mesh)


def toy_run(kind: str, folder: Place, **settings: Any) -> tuple[SaeConfig, TrainConfig, Source]:
    """What tests of resuming train, `stored` or `streamed`, for 40 steps.

    Streamed, it is with all that only a state can know: a buffer of 6 batches, BatchTopK's cutoff
    and a running mean of the weights.
    """
    train = dataclasses.replace(TRAIN, **settings)
    if kind == "stored":
        return SAE, train, split_of(folder / "store", activations(2560))
    train = dataclasses.replace(train, ema_decay=0.9)
    source = streamed(language_model(), text_rows(400), train, tokens=2560)
    return dataclasses.replace(SAE, architecture="batch_topk"), train, source


def digest(directory: Place, config: SaeConfig, settings: TrainConfig, source: Source) -> str:
    """SHA-256 of what the last checkpoint of a run holds: arrays, and places in its text."""
    mesh = states.make_mesh(settings, config.n_latents)
    like = trainer.Saved(states.like(config, settings, mesh), source.like())
    with Checkpoints(directory / "checkpoints", settings.keep) as kept:
        found = kept.restore(like)
        assert found is not like
        places = kept.positions(int(found.step))
    sha256 = hashlib.sha256(json.dumps(places, sort_keys=True).encode())
    for path, leaf in jax.tree.leaves_with_path(found):
        array = np.asarray(leaf)
        sha256.update(f"{path} {array.dtype} {array.shape}".encode() + array.tobytes())
    return sha256.hexdigest()


class Cycle:
    """Rows in memory, over and over; the place is a number."""

    def __init__(self, rows: Rows, host: int = 0, hosts: int = 1):
        """Every `hosts`-th of the rows, from `host` on."""
        tokens, languages = rows.tokens[host::hosts], rows.languages[host::hosts]
        self._rows, self._next = dataclasses.replace(rows, tokens=tokens, languages=languages), 0

    def __next__(self) -> tuple[Sequence[int], int]:
        place = self._next % len(self._rows.tokens)
        self._next += 1
        return self._rows.tokens[place], self._rows.languages[place]

    def get_state(self) -> int:
        return self._next

    def set_state(self, state: int) -> None:
        self._next = state


def corpora(directory: Path) -> tuple[tuple[str, Path], ...]:
    """English running text (gzip), English short texts, Chinese running text."""
    rng = np.random.default_rng(5)
    words = ["a glad day", "no sad man", "we ran home", "it is cold", "she sang"]
    novel = "\n".join(
        f"{words[i]} and {words[j]}{'.!?'[i % 3]}" for i, j in rng.integers(0, 5, (12_000, 2))
    )
    posts = "\n".join(f"{words[i]} {i}\t3\tid{i}" for i in rng.integers(0, 5, 2000))
    lines = ["我很高兴。", "你很难过！", "他今天很高兴？", "明天我高兴。"]
    talk = "\n".join("".join(lines[i] for i in row) for row in rng.integers(0, 4, (20_000, 4)))
    paths = [directory / name for name in ("novel.txt.gz", "posts.tsv", "talk.txt")]
    paths[0].write_bytes(gzip.compress(novel.encode()))
    paths[1].write_text(posts)
    paths[2].write_text(talk)
    return tuple(zip(("en", "en", "zh"), paths, strict=True))
