"""Training a dictionary end to end, capture and SAE steps, beside SAELens' own training runner.

    python -m benchmarks.sae_training [--tokens 24576] [--batch_tokens 2048] [--turns 2]

Prints a table and writes `benchmarks/results/sae_training-<platform>.json`. Ours is what
`experiments.train_sae` does: capture into a store on the disk, then the trainer over it, its start
and its checkpoint included. Theirs is `LanguageModelSAETrainingRunner` with its own loading of the
same weights from a local directory (`AutoModelForCausalLM`, which stops after the tapped layer),
its mixing buffer and Adam, and the saving of its result, once with dense codes, its default, and
once with sparse ones. Both: TopK with AuxK, the middle layer's residual stream, rows of 128 tokens,
special tokens dropped, float32 (bfloat16 where SAELens' autocast takes it on a GPU); in turns. A
turn is a whole run from nothing, less the loading of the model and compilation. What the mixing
buffer of SAELens holds at the end was captured in vain: the table says how much each side captured,
and a longer run makes it matter less.

Then how long the SAE's step waits for input: what a loop such as the trainer's takes longer, from a
store's pass of batches, than the same steps on a batch that lies on the device, in turns. The time
in which batches are made ready is given too; most of it passes while a step is computed. The bars
were set before the measurement.
"""

import functools
import importlib
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
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
from emojax.sae.step import train_step
from emojax.sae.train_config import TrainConfig

flags.set_default(beside_torch.MODELS, ["gemma-3-270m"])
flags.set_default(beside_torch.TURNS, 2)
TOKENS = flags.DEFINE_integer("tokens", 24576, "Tokens of a run.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch_tokens", 2048, "Tokens of an SAE step.", lower_bound=1)
LATENTS = flags.DEFINE_integer("latents", 16384, "Sizes of the dictionary.")
ACTIVE = flags.DEFINE_integer("active", 64, "Latents active on a token.")

OURS, THEIRS, SPARSE = "emojax", "SAELens", "SAELens, sparse codes"
BARS = (Bar(THEIRS, cpu=1.5, gpu=3.0), Bar(SPARSE, cpu=1.5, gpu=3.0))
MOST_WAITING = 0.02
ROW_TOKENS, ROWS = 128, 16
RATE = 3e-4
# Passes of each kind when waiting is measured.
LOOPS = 5


def text(lm: LanguageModel) -> Rows:
    """Random rows that begin with BOS, more of them than the tokens that are trained on."""
    rng = np.random.default_rng(0)
    ordinary = np.setdiff1d(np.arange(lm.config.vocab_size), lm.tokenizer.all_special_ids)
    count = -(-TOKENS.value // (ROW_TOKENS - 1))
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
    return tap, sae, TrainConfig(batch_tokens=BATCH.value, learning_rate=RATE)


def captured(lm: LanguageModel, tap: Tap, folder: Path) -> store.Split:
    """The activations, on the disk."""
    rows = {"train": first(text(lm), TOKENS.value)}
    return store.capture(lm, tap, rows, folder, limit_gib=8.0)["train"]


def ours(model: str) -> Callable[[], int]:
    """Captures, then trains; returns the tokens that were captured."""
    lm = sources.load(model)
    tap, sae, settings = settings_of(lm)

    def run() -> int:
        with tempfile.TemporaryDirectory() as folder:
            split = captured(lm, tap, Path(folder, "store"))
            jax.block_until_ready(trainer.train(sae, settings, split, Path(folder, "run")).w_dec)
        return split.tokens

    return run


def theirs(model: str, sparse: bool) -> Callable[[], int]:
    """SAELens' runner, from the same files; returns the tokens that it captured."""
    try:
        datasets, sae_lens, torch = map(importlib.import_module, ("datasets", "sae_lens", "torch"))
    except ImportError:
        raise UserError(
            "This benchmark compares with SAELens; run: pip install -e '.[bench]' (Python 3.11)."
        ) from None
    lm = sources.load(model)
    tap, sae, settings = settings_of(lm)
    rows = [list(row) for row in text(lm).tokens]
    on_gpu = jax.default_backend() == "gpu"
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
            store_batch_size_prompts=ROWS,
            exclude_special_tokens=list(lm.tokenizer.all_special_ids),
            training_tokens=TOKENS.value,
            train_batch_size_tokens=settings.batch_tokens,
            lr=RATE,
            device="cuda" if on_gpu else "cpu",
            autocast=on_gpu,
            autocast_lm=on_gpu,
            model_from_pretrained_kwargs={"dtype": "float32"},
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
    """Shares of the loop: what its steps wait for input, and what making that ready takes."""
    lm = sources.load(model)
    tap, sae, settings = settings_of(lm)
    with tempfile.TemporaryDirectory() as folder:
        split = captured(lm, tap, Path(folder))
        mesh = states.make_mesh(settings, sae.n_latents)
        steps = split.steps_per_epoch(settings.batch_tokens)
        step = functools.partial(train_step, sae, settings, steps, mesh)
        state = [states.start(sae, settings, states.sample(split), mesh)]
        ready = trainer.placed(split.raw(0, settings.batch_tokens), mesh)

        def loop(batches: Iterator[Any]) -> tuple[float, float]:
            """Seconds of a pass, and of making its batches ready."""
            started, reading = time.perf_counter(), 0.0
            for _ in range(steps):
                asked = time.perf_counter()
                batch = next(batches)
                reading += time.perf_counter() - asked
                state[0] = step(state[0], batch)
            jax.block_until_ready(state)
            return time.perf_counter() - started, reading

        def stored() -> Iterator[Any]:
            for batch in split.batches(settings.batch_tokens, settings.seed):
                yield trainer.placed(batch, mesh)

        loop(itertools.repeat(ready))
        resident, read = [], []
        for _ in range(LOOPS):
            resident.append(loop(itertools.repeat(ready))[0])
            read.append(loop(stored()))
    whole, reading = (float(np.median(column)) for column in zip(*read, strict=True))
    lost = max(0.0, whole - float(np.median(resident)))
    return {"share": round(lost / whole, 5), "making_ready": round(reading / whole, 5)}


def main(argv: Sequence[str]) -> None:
    """Measures, prints, writes."""
    del argv
    if TOKENS.value % store.CHUNK_TOKENS or TOKENS.value % BATCH.value:
        raise UserError(
            f"The run's {TOKENS.value} tokens are no whole number of chunks of "
            f"{store.CHUNK_TOKENS} and batches of {BATCH.value}; give a multiple of both."
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
        title = f"{model}, {LATENTS.value:,} latents, {TOKENS.value:,} tokens"
        verdicts = beside_torch.judge(title, figures, OURS, BARS, TOKENS.value)
        print("  captured tokens:", ", ".join(f"{who} {n:,}" for who, n in seen.items()))
        shares = waiting(model)
        met = shares["share"] < MOST_WAITING
        print(
            f"  bar: the step waits less than {MOST_WAITING:.0%} of the time: "
            f"{shares['share']:.2%}, {'met' if met else 'MISSED'} (making batches ready: "
            f"{shares['making_ready']:.2%} of the time)"
        )
        results[model] = {
            "tokens": TOKENS.value,
            "batch_tokens": BATCH.value,
            "latents": LATENTS.value,
            "active": ACTIVE.value,
            "figures": figures,
            "bars": verdicts,
            "waiting": shares | {"bar": MOST_WAITING, "met": met},
        }
    beside_torch.write("sae_training", results)


if __name__ == "__main__":
    errors.run(main)
