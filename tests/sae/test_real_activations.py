"""The fused step against the plain reference on a language model's activations, as captured.

One arm is `fused_row_update` and the operations' automatic choice. The other is `jax.grad` of the
plain jnp operations ("reference") and optax.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from emojax_kernels import implementations

from emojax.lm import sources
from emojax.lm.capture import Tap
from emojax.lm.text import tokenize
from emojax.sae import store, trainer
from emojax.sae.coder import SaeConfig
from emojax.sae.corpus import Rows
from emojax.sae.train_config import TrainConfig

STEPS = 200
CHUNK = 256


@pytest.mark.model
def test_the_fused_run_has_the_reference_s_loss_curve(tmp_path, monkeypatch):
    lm = sources.load("gemma-3-270m")
    root = Path(__file__).parents[2]
    # Files that no edit of a document changes.
    texts = [root / "LICENSE", *sorted((root / "emojax/data").glob("concepts_*.toml"))]
    tokens = [t for row in tokenize(lm, [p.read_text() for p in texts]) for t in row]
    rows = tuple(tuple(tokens[i : i + 128]) for i in range(0, len(tokens), 128))
    digest = hashlib.sha256(repr(rows).encode()).hexdigest()
    train = Rows(rows, (0,) * len(rows), ("en",), digest)
    split = store.capture(
        lm, Tap(9), {"train": train}, tmp_path / "store", limit_gib=1.0, chunk_tokens=CHUNK
    )["train"]
    per_epoch = split.steps_per_epoch(CHUNK)
    assert per_epoch > 10
    sae = SaeConfig(d_model=640, n_latents=512, k=16, model="gemma-3-270m", layer=9)
    # A latent is soon dead, so that their loss is compared too; the rate is the shipped one.
    settings = TrainConfig(
        epochs=-(-STEPS // per_epoch),
        batch_tokens=CHUNK,
        learning_rate=1e-3,
        dead_after_tokens=2000,
        log_every=1,
        checkpoint_every=10**6,
    )
    curves, asked = {}, []
    for update, implementation in (("optax", "reference"), ("fused", "xla")):

        def automatic(name=implementation):
            asked.append(name)
            return name

        monkeypatch.setattr(implementations, "automatic", automatic)
        folder = tmp_path / update
        trainer.train(sae, dataclasses.replace(settings, update=update), split, folder)
        lines = (folder / "training_log.jsonl").read_text().splitlines()
        curves[update] = np.array([json.loads(line)["loss"] for line in lines[:STEPS]])
        assert any(json.loads(line)["aux"] > 0 for line in lines)
    assert set(asked) == {"reference", "xla"}
    assert len(curves["optax"]) == STEPS
    assert curves["optax"][-1] < 0.5 * curves["optax"][0]
    np.testing.assert_allclose(curves["fused"], curves["optax"], rtol=1e-3)
