"""Training a dictionary end to end, capture and SAE steps, beside SAELens' own training runner.

    python -m benchmarks.sae_training [--lms=a/directory] [--tokens=24576] [--turns=2]

Prints a table and writes `benchmarks/results/sae_training-<platform>.json`, which
`python -m benchmarks.sae_tables` brings into the README. Ours is what `experiments.train_sae` does:
on a CPU, capture into a store on the disk and then the trainer over it; on a GPU (`--streamed`)
the trainer over a stream of activations; its start and its checkpoint included. Theirs is
`LanguageModelSAETrainingRunner` with its own loading of the same weights from a local directory
(`AutoModelForCausalLM`, which stops after the tapped layer), its mixing buffer and Adam, and the
saving of its result, once with dense codes, its default, and once with sparse ones. Both: TopK with
AuxK, the middle layer's residual stream, rows of 128 tokens, special tokens dropped; float32 on a
CPU; on a GPU a language model in bfloat16, and SAELens' autocast of its SAE to bfloat16, while ours
stays in float32; in turns. A turn is a whole run from nothing, less the loading of the model and
compilation. What a mixing buffer holds at the end was captured in vain: the table says how much
each side captured, and a longer run makes it matter less. Nothing is fetched where a model is given
as a directory.

Then how long the SAE's step waits for input, told in two ways, both of which must stay under the
bar. Each is a loop of whole passes in which, as in the trainer, the next batch is asked for while a
step is computed.

    standing   share of the loop in which it stood still: no step under way, no batch on the device
    share      how much of the loop's time a batch that lies on the device would have saved, in
               turns: what stands still, and what readying batches takes from the step's cores

The first reading of a run is part of the first; the second compares median passes. A stream
captures on the device that trains, so of it only the wait for text is told (`standing`). The bars
were set before the measurement.
"""

import functools
import importlib
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import beside_torch
from benchmarks.beside_torch import Bar
from emojax import errors
from emojax.errors import UserError
from emojax.lm import sources
from emojax.lm.capture import Tap
from emojax.lm.model import LanguageModel
from emojax.lm.text import bos_token
from emojax.sae import state as states
from emojax.sae import store, trainer
from emojax.sae.coder import SaeConfig
from emojax.sae.corpus import Rows
from emojax.sae.source import Source
from emojax.sae.step import train_step
from emojax.sae.stream import ActivationsConfig, Stream
from emojax.sae.train_config import TrainConfig

flags.set_default(beside_torch.MODELS, ["gemma-3-270m"])
flags.set_default(beside_torch.TURNS, 2)
TOKENS = flags.DEFINE_integer("tokens", None, "Tokens of a run (24576; on a GPU 2097152).")
BATCH = flags.DEFINE_integer("step_tokens", None, "Tokens of an SAE step (2048; on a GPU 4096).")
STREAMED = flags.DEFINE_bool("streamed", None, "Stream activations (on a GPU) or store them.")
LATENTS = flags.DEFINE_integer("n_latents", 16384, "Sizes of the dictionary.")
ACTIVE = flags.DEFINE_integer("k", 64, "Latents active on a token.")

OURS, THEIRS, SPARSE = "emojax", "SAELens", "SAELens, sparse codes"
BARS = (Bar(THEIRS, cpu=1.5, gpu=3.0), Bar(SPARSE, cpu=1.5, gpu=3.0))
MOST_WAITING = 0.02
RATE = 3e-4
ROW_TOKENS = 128
# Tokens of a stream's shuffling buffer.
BUFFER = 131_072
# Passes of each kind when waiting is measured.
LOOPS = 9


class Sizes(NamedTuple):
    """What a platform takes at once, and in which type its language model is."""

    tokens: int
    batch: int
    rows: int
    streamed: bool
    dtype: str


SIZES = {
    "cpu": Sizes(24_576, 2048, 16, False, "float32"),
    "gpu": Sizes(2_097_152, 4096, 64, True, "bfloat16"),
}


def sizes() -> Sizes:
    """Those of the platform, but for what a flag says."""
    own = SIZES["cpu" if jax.default_backend() == "cpu" else "gpu"]
    return Sizes(
        tokens=own.tokens if TOKENS.value is None else TOKENS.value,
        batch=own.batch if BATCH.value is None else BATCH.value,
        rows=own.rows,
        streamed=own.streamed if STREAMED.value is None else STREAMED.value,
        dtype=beside_torch.DTYPE.value if beside_torch.DTYPE.present else own.dtype,
    )


class Text:
    """Rows again and again: a `TextStream`."""

    def __init__(self, rows: Rows):
        self._rows, self._at = rows.tokens, 0

    def __next__(self) -> tuple[tuple[int, ...], str]:
        row = self._rows[self._at % len(self._rows)]
        self._at += 1
        return row, "en"

    def get_state(self) -> int:
        """Rows read."""
        return self._at

    def set_state(self, state: int) -> None:
        """Goes on after so many rows."""
        self._at = state


def text(lm: LanguageModel) -> Rows:
    """Random rows that begin with BOS, more of them than the tokens that are trained on."""
    rng = np.random.default_rng(0)
    ordinary = np.setdiff1d(np.arange(lm.config.vocab_size), lm.tokenizer.all_special_ids)
    count = -(-sizes().tokens // (ROW_TOKENS - 1))
    rows = rng.choice(ordinary, (2 * count, ROW_TOKENS))
    rows[:, 0] = bos_token(lm)
    tokens = tuple(map(tuple, rows.tolist()))
    return Rows(tokens, (0,) * len(tokens), ("en",), digest="random")


def first(rows: Rows, tokens: int) -> Rows:
    """As many rows as hold that many tokens, BOS not counted."""
    count = -(-tokens // (ROW_TOKENS - 1))
    return Rows(rows.tokens[:count], rows.languages[:count], rows.names, rows.digest)


def settings_of(lm: LanguageModel) -> tuple[Tap, SaeConfig, TrainConfig]:
    """Where it is read, what is trained and how."""
    tap = Tap(lm.config.n_layers // 2)
    sae = SaeConfig(
        d_model=lm.config.d_model,
        n_latents=LATENTS.value,
        k=ACTIVE.value,
        model=lm.name,
        layer=tap.layer,
    )
    return tap, sae, TrainConfig(batch_tokens=sizes().batch, learning_rate=RATE)


def source_of(lm: LanguageModel, tap: Tap, settings: TrainConfig, folder: Path) -> Source:
    """Captured into a store on the disk, or to be streamed while the trainer runs."""
    own = sizes()
    if not own.streamed:
        rows = {"train": first(text(lm), own.tokens)}
        return store.capture(lm, tap, rows, folder, limit_gib=8.0)["train"]
    return Stream(
        lm,
        [tap],
        Text(text(lm)),
        ActivationsConfig(
            streamed=True, buffer_tokens=BUFFER, capture_tokens=own.rows * ROW_TOKENS
        ),
        tokens=own.tokens,
        batch_tokens=own.batch,
        mesh=states.make_mesh(settings, LATENTS.value),
    )


def ours(model: str) -> Callable[[], int]:
    """Captures and trains; returns the tokens that were captured."""
    lm = sources.load(model, dtype=jnp.dtype(sizes().dtype))
    tap, sae, settings = settings_of(lm)

    def run() -> int:
        with tempfile.TemporaryDirectory() as folder:
            source = source_of(lm, tap, settings, Path(folder, "store"))
            trained = trainer.train(sae, settings, source, Path(folder, "run"))
            jax.block_until_ready(trained.w_dec)
        if isinstance(source, store.Split):
            return source.tokens
        rows = source.position()["packer"]["text"] + sizes().rows
        return rows * (ROW_TOKENS - 1) + min(states.SAMPLE_TOKENS, sizes().tokens)

    return run


def theirs(model: str, sparse: bool) -> Callable[[], int]:
    """SAELens' runner, from the same files; returns the tokens that it captured."""
    try:
        datasets, sae_lens, torch = map(importlib.import_module, ("datasets", "sae_lens", "torch"))
    except ImportError:
        raise UserError(
            "This benchmark compares with SAELens; run: pip install -e '.[bench]' (Python 3.11), "
            "or install sae-lens==6.54.12 beside the PyTorch that is there."
        ) from None
    lm, own = sources.load(model), sizes()
    tap, sae, settings = settings_of(lm)
    rows = [list(row) for row in text(lm).tokens]
    on_gpu = jax.default_backend() == "gpu"
    # Its default, 20 rows, where ours has no buffer either; but no less than a batch.
    held = BUFFER if own.streamed else max(20 * ROW_TOKENS, own.batch)
    torch.set_num_threads(os.cpu_count() or 1)
    runner = sae_lens.LanguageModelSAETrainingRunner

    def config(folder: str) -> Any:
        return sae_lens.LanguageModelSAERunnerConfig(
            sae=sae_lens.TopKTrainingSAEConfig(
                d_in=sae.d_model,
                d_sae=sae.n_latents,
                k=sae.k,
                use_sparse_activations=sparse,
                # PyTorch has no backward of a sparse code that is rescaled.
                rescale_acts_by_decoder_norm=not sparse,
            ),
            model_class_name="AutoModelForCausalLM",
            model_name=str(lm.directory),
            hook_name=f"model.layers.{tap.layer}",
            context_size=ROW_TOKENS,
            store_batch_size_prompts=own.rows,
            n_batches_in_buffer=-(-held // ROW_TOKENS),
            exclude_special_tokens=list(lm.tokenizer.all_special_ids),
            training_tokens=own.tokens,
            train_batch_size_tokens=settings.batch_tokens,
            lr=RATE,
            device="cuda" if on_gpu else "cpu",
            autocast=on_gpu,
            autocast_lm=on_gpu,
            model_from_pretrained_kwargs={"dtype": own.dtype},
            logger=sae_lens.LoggingConfig(log_to_wandb=False),
            checkpoint_path=None,
            output_path=folder,
            verbose=False,
        )

    loaded = runner(config(""), override_dataset=datasets.Dataset.from_dict({"input_ids": rows}))

    def run() -> int:
        with tempfile.TemporaryDirectory() as folder:
            data = datasets.Dataset.from_dict({"input_ids": rows})
            job = runner(config(folder), override_dataset=data, override_model=loaded.model)
            job.run()
            return job.activations_store.n_dataset_processed * (ROW_TOKENS - 1)

    return run


def waiting(model: str) -> dict[str, float]:
    """Shares of the loop's time, as the top of this file says."""
    lm = sources.load(model, dtype=jnp.dtype(sizes().dtype))
    tap, sae, settings = settings_of(lm)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as watch:
        source = source_of(lm, tap, settings, Path(folder))
        mesh = states.make_mesh(settings, sae.n_latents)
        steps = source.steps_per_epoch(settings.batch_tokens)
        step = functools.partial(train_step, sae, settings, steps, mesh)
        sample = states.sample(source)
        state = [states.start(sae, settings, sample, mesh)]
        lying = trainer.placed(store.Batch(sample.x[: settings.batch_tokens]), mesh)
        state[0] = step(state[0], lying)  # which compiles

        def finished() -> float:
            jax.block_until_ready(state)
            return time.perf_counter()

        def loop(batches: Iterator[Any]) -> tuple[float, float]:
            """Seconds of a pass, and those that it stood still."""
            done, standing = watch.submit(finished), 0.0
            started = done.result()
            for _ in range(steps):
                batch = jax.block_until_ready(trainer.placed(next(batches), mesh))
                standing += max(0.0, time.perf_counter() - done.result())
                state[0] = step(state[0], batch)
                done = watch.submit(finished)
            return done.result() - started, standing

        batches = source.batches(settings.batch_tokens, settings.seed)
        if isinstance(source, Stream):
            loop(batches)
            before = source.waiting.seconds
            whole, _ = loop(batches)
            batches.close()
            return {"standing": round((source.waiting.seconds - before) / whole, 5)}
        there, read = [], []
        for _ in range(LOOPS):
            there.append(loop(itertools.repeat(lying)))
            read.append(loop(batches))
        batches.close()
    whole, standing = np.sum(read, axis=0).tolist()
    # Medians: a pass that something else disturbs would outweigh what is measured.
    with_reading, without = (float(np.median(part, axis=0)[0]) for part in (read, there))
    return {
        "standing": round(standing / whole, 5),
        "share": round(max(0.0, 1 - without / with_reading), 5),
    }


def judged(shares: dict[str, float]) -> dict[str, Any]:
    """Prints what became of the bar on waiting."""
    on_gpu, met = jax.default_backend() == "gpu", max(shares.values()) < MOST_WAITING
    said = f"stands still for {shares['standing']:.2%} of the time"
    if "share" in shares:
        said += f", and would be {shares['share']:.2%} shorter with a batch that lies there"
    print(
        f"  bar: the step waits for less than {MOST_WAITING:.0%}: the loop {said}: "
        f"{'met' if met else 'MISSED'}"
    )
    if not on_gpu:
        print(f"  bar: the step waits for less than {MOST_WAITING:.0%} on a GPU: not run here")
    return shares | {"bar": MOST_WAITING, "met": met}


def main(argv: Sequence[str]) -> None:
    """Measures, prints, writes."""
    del argv
    own = sizes()
    flags.set_default(beside_torch.DTYPE, own.dtype)
    if own.batch < 1 or own.tokens % own.batch or own.tokens % store.CHUNK_TOKENS:
        raise UserError(
            f"The run's {own.tokens:,} tokens are no whole number of chunks of "
            f"{store.CHUNK_TOKENS:,} and batches of {own.batch:,}; give a multiple of both."
        )
    results = {}
    for model in beside_torch.MODELS.value:
        makers = {
            OURS: functools.partial(ours, model),
            THEIRS: functools.partial(theirs, model, sparse=False),
            SPARSE: functools.partial(theirs, model, sparse=True),
        }
        figures, seen = beside_torch.in_turns(makers)
        for name, figure in figures.items():
            figure["captured_tokens"] = seen[name]
        title = f"{model}, {LATENTS.value:,} latents, {own.tokens:,} tokens"
        verdicts = beside_torch.judge(title, figures, OURS, BARS, own.tokens)
        print("  captured tokens:", ", ".join(f"{who} {n:,}" for who, n in seen.items()))
        results[model] = {
            "tokens": own.tokens,
            "batch_tokens": own.batch,
            "latents": LATENTS.value,
            "active": ACTIVE.value,
            "streamed": own.streamed,
            "figures": figures,
            "bars": verdicts,
            "waiting": judged(waiting(model)),
        }
    beside_torch.write("sae_training", results)


if __name__ == "__main__":
    errors.run(main)
