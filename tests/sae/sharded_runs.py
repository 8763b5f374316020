"""A program for `test_meshes.py`: training runs on meshes of fake devices, or as one of several
processes. Prints the loss curves as JSON.

    python sharded_runs.py FOLDER MESHES STEPS [PORT PROCESS PROCESSES]

FOLDER holds the runs; MESHES is such as `1x1,4x2` (data by latent shards).
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax

FOLDER, MESHES, STEPS = Path(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3])
if len(sys.argv) > 4:
    port, process, processes = map(int, sys.argv[4:])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
else:
    jax.config.update("jax_num_cpu_devices", 8)

from sae_toys import CHUNK, SAE, TRAIN, activations, split_of  # noqa: E402

from emojax.sae import trainer  # noqa: E402

# What needs the whole batch's codes, and the number of each latent, on fewer meshes.
NESTED = ("1x1", "8x1", "2x4", "1x8") if len(MESHES) > 2 else ()
curves = {}
split = split_of(FOLDER / f"store{jax.process_index()}", activations(10 * CHUNK))
for mesh in MESHES:
    data, latent = map(int, mesh.split("x"))
    for architecture in ("topk", "matryoshka") if mesh in NESTED else ("topk",):
        sae = dataclasses.replace(SAE, architecture=architecture, prefixes=())
        settings = dataclasses.replace(
            TRAIN,
            epochs=-(-STEPS // split.steps_per_epoch(TRAIN.batch_tokens)),
            update="fused",
            data_shards=data,
            latent_shards=latent,
            dead_after_tokens=150,
        )
        run = FOLDER / f"{architecture}-{mesh}"
        sae = trainer.train(sae, settings, split, run)
        if jax.process_index() > 0:
            continue
        lines = (run / "training_log.jsonl").read_text().splitlines()
        curve = [[json.loads(x)[key] for key in ("loss", "aux", "l0", "dead")] for x in lines]
        curves[f"{architecture} {mesh}"] = curve[:STEPS]
if jax.process_index() == 0:
    print("CURVES" + json.dumps(curves))
