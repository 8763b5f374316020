"""Each architecture finds the dictionary that made its data, and its result is what was trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sae_toys import CHUNK, D, split_of

from emojax.sae import coder, metrics, step, trainer
from emojax.sae import state as states
from emojax.sae.coder import SaeConfig
from emojax.sae.store import Split
from emojax.sae.train_config import TrainConfig

ATOMS, ACTIVE, NORM = 24, 2, 30.0


def planted(tokens: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums of two of 24 true directions, and a linear target of the same codes."""
    rng = np.random.default_rng(seed)
    true = np.random.default_rng(7).normal(size=(2, ATOMS, D))
    true /= np.linalg.norm(true, axis=2, keepdims=True)
    code = np.zeros((tokens, ATOMS))
    for row in code:
        row[rng.choice(ATOMS, ACTIVE, replace=False)] = rng.uniform(0.5, 1.5, ACTIVE)
    return NORM * (code @ true[0]), 100 * NORM * (code @ true[1])


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> Split:
    return split_of(tmp_path_factory.mktemp("store"), planted(16 * CHUNK, 0)[0])


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> Split:
    return split_of(tmp_path_factory.mktemp("held"), planted(2 * CHUNK, 1)[0])


SAE = SaeConfig(
    d_model=D, n_latents=64, k=3, model="toy", layer=0, input_scale="mean_norm", max_active=16
)
TRAIN = TrainConfig(
    epochs=50,
    batch_tokens=CHUNK,
    learning_rate=5e-3,
    dead_after_tokens=4000,
    k_aux=8,
    log_every=100,
    checkpoint_every=10**6,
    bandwidth=0.1,
)
# Weight of the penalty, and the share of the variance that may be left.
CASES = {
    "topk": (0.0, 0.03),
    "batch_topk": (0.0, 0.03),
    "matryoshka": (0.0, 0.1),
    "jumprelu": (0.1, 0.06),
    "gated": (0.3, 0.06),
    "relu": (0.2, 0.1),  # L1 shrinks what it keeps
}


@pytest.mark.parametrize("architecture", CASES)
def test_an_architecture_fits_planted_data(architecture, split, held_out, tmp_path):
    weight, left = CASES[architecture]
    config = dataclasses.replace(SAE, architecture=architecture)
    settings = dataclasses.replace(TRAIN, sparsity_coefficient=weight)
    sae = trainer.train(config, settings, split, tmp_path)
    found = metrics.reconstruction(sae, held_out)
    before = metrics.reconstruction(states.untrained(config, states.sample(split)), held_out)
    assert found["fvu"]["raw"]["all"] < left < 0.5 * before["fvu"]["raw"]["all"]
    if architecture in ("batch_topk", "matryoshka", "jumprelu"):  # L0 is what k says
        np.testing.assert_allclose(found["l0"], SAE.k, rtol=0.2)
    else:
        assert 0.5 * ACTIVE < found["l0"] < 2.5 * SAE.k
    np.testing.assert_allclose(np.linalg.norm(sae.w_dec, axis=1), 1, rtol=1e-5)


def test_a_transcoder_explains_another_site(tmp_path):
    x, target = planted(16 * CHUNK, 0)
    split = split_of(tmp_path / "store", x, target=target)
    held = split_of(tmp_path / "held", *planted(2 * CHUNK, 1)[:1], target=planted(2 * CHUNK, 1)[1])
    config = dataclasses.replace(SAE, target_site="mlp_out", k=4)
    sae = trainer.train(config, TRAIN, split, tmp_path / "run")
    found = metrics.reconstruction(sae, held)
    assert found["fvu"]["raw"]["all"] < 0.15


@pytest.mark.parametrize("architecture", [*CASES, "transcoder", "averaged"])
def test_what_is_saved_computes_what_was_trained(architecture):
    """Folding scales, norms and gates changes no reconstruction, but for the units."""
    transcoder, averaged = architecture == "transcoder", architecture == "averaged"
    architecture = "batch_topk" if averaged else architecture
    config = dataclasses.replace(
        SAE,
        architecture="topk" if transcoder else architecture,
        target_site="mlp_out" if transcoder else None,
        max_active=SAE.n_latents,
    )
    rng = np.random.default_rng(4)
    n, cutoff, scales = config.n_latents, 0.4, np.array([1 / 30, 1 / 200 if transcoder else 1 / 30])
    params = {
        "w_enc": rng.normal(size=(n, D)) / 2,
        "b_enc": rng.normal(size=n) / 5,
        "w_dec": rng.normal(size=(n, D)),
        "b_dec": rng.normal(size=D) / 5,
    }
    if architecture != "relu" and not averaged:  # a mean of unit vectors is shorter than one
        params["w_dec"] /= np.linalg.norm(params["w_dec"], axis=1, keepdims=True)
    extra = {"jumprelu": ["threshold"], "gated": ["r_mag", "b_mag"]}.get(architecture, [])
    params |= {name: rng.normal(size=n) / 3 - 1 for name in extra}
    raw = 30 * rng.normal(size=(40, D))

    x = raw * scales[0]
    read = (x if transcoder else x - params["b_dec"]) @ params["w_enc"].T
    pre = read + params["b_enc"]
    if architecture in ("topk", "transcoder"):
        z = np.where(pre >= np.sort(pre, axis=1)[:, [-config.k]], np.maximum(pre, 0), 0)
    elif architecture in ("batch_topk", "matryoshka"):
        z = np.where(pre > cutoff, pre, 0)
    elif architecture == "jumprelu":
        z = np.where(pre > np.abs(params["threshold"]), pre, 0)
    elif architecture == "gated":
        size = np.exp(params["r_mag"]) * read + params["b_mag"]
        z = np.where(pre > 0, np.maximum(size, 0), 0)
    else:
        z = np.maximum(pre, 0)
    wanted = (z @ params["w_dec"] + params["b_dec"]) / scales[1]

    empty = jnp.zeros(())
    arrays = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    state = states.TrainState(
        params=jax.tree.map(jnp.zeros_like, arrays) if averaged else arrays,
        mu={},
        nu={},
        average=arrays if averaged else {},
        idle=empty,
        cutoff=jnp.float32(cutoff),
        scales=jnp.asarray(scales, jnp.float32),
        variance=empty,
        dead=empty,
        sums={},
        bad=empty,
        step=empty,
    )
    sae = states.finish(config, state)
    made = coder.reconstruct(sae, jnp.asarray(raw, jnp.float32))
    np.testing.assert_allclose(made, wanted, rtol=2e-4, atol=2e-4 * np.abs(wanted).max())
    np.testing.assert_allclose(np.linalg.norm(sae.w_dec, axis=1), 1, rtol=1e-5)


def test_a_step_keeps_the_running_means(split):
    """Of the weights, and of the least activation that the batch keeps, by hand in float64."""
    config = dataclasses.replace(SAE, architecture="batch_topk", max_active=SAE.n_latents)
    settings = dataclasses.replace(TRAIN, ema_decay=0.75)
    mesh = states.make_mesh(settings, config.n_latents)
    state = states.start(config, settings, states.sample(split), mesh)
    batches = split.batches(CHUNK, 0)
    mean, cutoff = jax.device_get(state.params), None
    for _ in range(3):
        before, batch = jax.device_get(state.params), next(batches)
        w = {name: value.astype(np.float64) for name, value in before.items()}
        x = np.asarray(batch.x) * float(state.scales[0])
        pre = (x - w["b_dec"]) @ w["w_enc"].T + w["b_enc"]
        least = np.sort(pre.ravel())[-CHUNK * config.k]
        assert least > 0
        cutoff = least if cutoff is None else 0.99 * cutoff + 0.01 * least
        state = step.train_step(config, settings, 10, mesh, state, batch)
        after = jax.device_get(state.params)
        mean = {name: 0.75 * mean[name] + 0.25 * after[name] for name in after}
        for name, value in mean.items():
            np.testing.assert_allclose(state.average[name], value, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state.cutoff, cutoff, rtol=1e-4)
