"""The fused step against the plain reference on a language model's activations, as captured.

One arm is `fused_row_update` and the operations' automatic choice. The other is `jax.grad` of the
plain jnp operations ("reference") and optax.
"""

import dataclasses
import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emojax_kernels import implementations

from emojax.lm import sources
from emojax.lm.capture import Tap
from emojax.lm.text import tokenize
from emojax.sae import state as states
from emojax.sae import store, trainer
from emojax.sae.coder import SaeConfig
from emojax.sae.corpus import Rows
from emojax.sae.step import train_step
from emojax.sae.train_config import TrainConfig

STEPS = 200
TOKENS = 256


@pytest.mark.model
def test_the_fused_step_has_the_reference_s_loss_curve(tmp_path, monkeypatch):
    """Each of the fused steps starts from where the reference is.

    Two free runs part sooner or later, even two of the reference on inputs that differ in the last
    bit: a latent is selected in one of them only, and Adam's first step for a rare latent is as
    large as any. What such runs differ by is theirs; what one step differs by is the step's.
    """
    lm = sources.load("gemma-3-270m")
    root = Path(__file__).parents[2]
    # Files that no edit of a document changes.
    texts = [root / "LICENSE", *sorted((root / "emojax/data").glob("concepts_*.toml"))]
    tokens = [t for row in tokenize(lm, [p.read_text() for p in texts]) for t in row]
    rows = tuple(tuple(tokens[i : i + 128]) for i in range(0, len(tokens), 128))
    digest = hashlib.sha256(repr(rows).encode()).hexdigest()
    train = Rows(rows, (0,) * len(rows), ("en",), digest)
    split = store.capture(
        lm, Tap(9), {"train": train}, tmp_path / "store", limit_gib=1.0, chunk_tokens=TOKENS
    )["train"]
    assert split.steps_per_epoch(TOKENS) > 10
    sae = SaeConfig(d_model=640, n_latents=512, k=16, model="gemma-3-270m", layer=9)
    # A latent is soon dead, so that their loss is compared too; the rate is the shipped one.
    reference = TrainConfig(
        batch_tokens=TOKENS,
        learning_rate=1e-3,
        dead_after_tokens=2000,
        log_every=1,
        update="optax",
    )
    fused = dataclasses.replace(reference, update="fused")
    mesh = states.make_mesh(reference, sae.n_latents)
    state = states.start(sae, reference, states.sample(split), mesh)
    batches = split.batches(TOKENS, seed=0)
    asked = []

    def step(settings, state, batch):
        name = {"optax": "reference", "fused": "xla"}[settings.update]
        # Asked while the step is traced.
        monkeypatch.setattr(implementations, "automatic", lambda: asked.append(name) or name)
        return train_step(sae, settings, STEPS, mesh, state, batch)

    after: dict[str, list[dict]] = {"fused": [], "optax": []}
    moved = []
    ours = None
    for _ in range(STEPS):
        batch = trainer.placed(next(batches), mesh)
        before = jax.tree.map(jnp.copy, state)
        if ours is not None:
            # Where the last fused step led to, measured as the reference measures it.
            ours = step(reference, ours, batch)
            after["fused"].append(jax.device_get(ours.sums))
        ours = step(fused, jax.tree.map(jnp.copy, state), batch)
        state = step(reference, state, batch)
        after["optax"].append(jax.device_get(state.sums))
        moved.append(
            jax.tree.map(
                lambda old, a, b: float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b - old)),
                (before.params, before.mu, before.nu),
                (ours.params, ours.mu, ours.nu),
                (state.params, state.mu, state.nu),
            )
        )
    assert set(asked) == {"reference", "xla"}
    loss, auxiliary = (
        {name: np.array([sums[part] for sums in curve]) for name, curve in after.items()}
        for part in ("loss", "aux")
    )
    assert (auxiliary["optax"] > 0).sum() > STEPS / 2
    assert loss["optax"][-1] < 0.5 * loss["optax"][0]
    np.testing.assert_allclose(loss["fused"], loss["optax"][1:], rtol=1e-3)
    # What each step moves, parameters and moments, is the reference's too; but the arms' GEMMs may
    # round otherwise, and once in thousands of tokens that selects another latent.
    assert np.quantile([max(jax.tree.leaves(step)) for step in moved], 0.95) < 1e-3
