"""A program for `test_split_model.py`: one stream on eight fake devices, the model split in several
ways. Prints what was captured, and how much of it a device held, as JSON.

    python split_model.py FOLDER
"""

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")

from sae_toys import STREAM, TRAIN, language_model, streamed, text_rows  # noqa: E402

from emojax.errors import UserError  # noqa: E402
from emojax.lm import sharding  # noqa: E402
from emojax.lm.capture import Tap  # noqa: E402
from emojax.lm.loss import next_token_loss  # noqa: E402
from emojax.sae import state, store, stream  # noqa: E402

SETTINGS = dataclasses.replace(TRAIN, data_shards=4, latent_shards=2)
lm = language_model(n_heads=4)
rows = text_rows(200, lengths=(30,))


def captured(dtype: str, shards: int) -> dict:
    config = dataclasses.replace(STREAM, model_dtype=dtype, model_shards=shards)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(dtype)), lm.params)
    typed = dataclasses.replace(lm, params=params)
    source = streamed(typed, rows, SETTINGS, tokens=4000, config=config)
    weight = source._params["layers"]["up"]
    batches = source.batches(TRAIN.batch_tokens, seed=0)
    found = [np.asarray(batch.x, np.float64).tolist() for batch in itertools.islice(batches, 2)]
    share = weight.addressable_shards[0].data.nbytes / weight.nbytes
    return {"batches": found, "share": share, "devices": len(weight.sharding.device_set)}


found = {f"float32 {n}": captured("float32", n) for n in (1, 2, 4)}
found["bfloat16 2"] = captured("bfloat16", 2)
refused = []
for shards in (3, 8):  # devices, heads
    try:
        captured("float32", shards)
    except UserError as error:
        refused.append(str(error))

own = stream.own_mesh(state.make_mesh(SETTINGS, 64), 2)
split = dataclasses.replace(lm, params=sharding.shard_params(lm.config, lm.params, own))
texts = {"train": text_rows(12)}
tokens = np.array([row for row in texts["train"].tokens if len(row) == 31], np.int32)
for name, model in (("whole", lm), ("split", split)):
    folder = Path(sys.argv[1], name)
    held = store.capture_taps(model, [Tap(1)], texts, folder, limit_gib=1.0, chunk_tokens=16)
    read = held.splits(Tap(1))["train"]
    losses = next_token_loss(model.config, model.params, tokens, np.ones_like(tokens, bool))
    found[name] = {"stored": read.raw(0, read.tokens).x.tolist(), "loss": losses.tolist()}
print("FOUND" + json.dumps(found | {"refused": refused}))
