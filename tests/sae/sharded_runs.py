"""A program for `test_meshes.py`: training runs on meshes of fake devices, or as one of several
processes. Prints the loss curves as JSON.

    python sharded_runs.py FOLDER RUNS STEPS [PORT PROCESS PROCESSES]

FOLDER holds the runs; RUNS is such as `topk=1x1,relu=4x2` (data by latent shards).
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np

FOLDER, RUNS, STEPS = Path(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3])
if len(sys.argv) > 4:
    port, process, processes = map(int, sys.argv[4:])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
else:
    jax.config.update("jax_num_cpu_devices", 8)

from sae_toys import (  # noqa: E402
    CHUNK,
    SAE,
    TRAIN,
    D,
    activations,
    language_model,
    split_of,
    streamed,
    text_rows,
)

from emojax.sae import trainer  # noqa: E402
from emojax.sae.objectives import OBJECTIVES  # noqa: E402

x = activations(10 * CHUNK)
split = split_of(FOLDER / f"store{jax.process_index()}", x)
lm, rows = language_model(), text_rows(600)


def curve(case: str, data: int, latent: int) -> list[list[float]]:
    """What the log says of a run: of an architecture, or of what the name says instead."""
    architecture = case if case in OBJECTIVES else "topk"
    sae = dataclasses.replace(SAE, architecture=architecture)
    fused = OBJECTIVES[architecture].codes is not None and case != "optax"
    settings = dataclasses.replace(
        TRAIN,
        epochs=-(-STEPS // split.steps_per_epoch(TRAIN.batch_tokens)),
        update="fused" if fused else "optax",
        data_shards=data,
        latent_shards=latent,
        dead_after_tokens=150,
        checkpoint_every=STEPS,
    )
    source = split
    if case == "transcoder":
        sae = dataclasses.replace(sae, target_site="out", input_scale="mean_norm")
        turned = x @ np.random.default_rng(1).normal(size=(D, D)).astype(np.float32)
        source = split_of(FOLDER / f"both{data}x{latent}", x, target=turned)
    if case == "streamed":
        settings = dataclasses.replace(settings, epochs=1)
        source = streamed(lm, rows, settings, tokens=STEPS * TRAIN.batch_tokens)
    run = FOLDER / f"{case}-{data}x{latent}"
    trainer.train(sae, settings, source, run)
    if jax.process_index() > 0:
        return []
    lines = (run / "training_log.jsonl").read_text().splitlines()[:STEPS]
    return [[json.loads(x)[key] for key in ("loss", "aux", "l0", "dead")] for x in lines]


curves = {}
for name in RUNS:
    case, mesh = name.split("=")
    curves[name] = curve(case, *map(int, mesh.split("x")))
if jax.process_index() == 0:
    print("CURVES" + json.dumps(curves))
