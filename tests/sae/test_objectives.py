"""Every objective's loss and gradients against dense jnp, and the fused step against optax's."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from sae_toys import SAE, TRAIN, D, K, N

from emojax.sae import losses, step
from emojax.sae import state as states
from emojax.sae.objectives import OBJECTIVES, matryoshka
from emojax.sae.store import Batch

VARIANCE = 0.9
SETTINGS = dataclasses.replace(TRAIN, sparsity_coefficient=0.3, bandwidth=0.2)


def config_of(architecture: str, **changes):
    return dataclasses.replace(SAE, architecture=architecture, **changes)


def problem(config, tokens: int = 32) -> tuple[dict, jax.Array]:
    """Parameters off every symmetric point, unit inputs."""
    keys = jax.random.split(jax.random.key(1), 9)
    params = {
        "w_enc": jax.random.normal(keys[0], (N, D)) / 4,
        "b_enc": jax.random.normal(keys[1], (N,)) / 20,
        "w_dec": jax.random.normal(keys[2], (N, D)) / 4,
        "b_dec": jax.random.normal(keys[3], (D,)) / 20,
    }
    for key, name in zip(keys[4:], OBJECTIVES[config.architecture].extra(config), strict=False):
        params[name] = jax.random.normal(key, (N,)) / 4
    x = jax.random.normal(keys[8], (tokens, D))
    return params, x / jnp.linalg.norm(x, axis=1, keepdims=True)


@functools.partial(jax.jit, static_argnums=0)
def ours(config, params, dead, x, target):
    """The trainer's loss, what it logs, and its gradient, on a mesh of one."""

    def shard(params, dead, x, target):
        batch = losses.Batch(x, target, jnp.float32(VARIANCE), dead, jnp.float32(0.5))
        found, gradients = jax.value_and_grad(
            lambda p: losses.loss(config, SETTINGS, p, batch), has_aux=True
        )(params)
        return *found, gradients

    mesh = states.make_mesh(TRAIN, N)
    return jax.shard_map(shard, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)(
        params, dead, x, target
    )


@jax.custom_jvp
def straight_through(pre, threshold):
    """The step function; its derivative by the threshold is that of a ramp as wide as ε."""
    return (pre > threshold).astype(jnp.float32)


@straight_through.defjvp
def _(primals, tangents):
    pre, threshold = primals
    near = (jnp.abs(pre - threshold) < SETTINGS.bandwidth / 2).astype(jnp.float32)
    return straight_through(pre, threshold), -near / SETTINGS.bandwidth * tangents[1]


def dense_terms(config, params, x):
    """Each term's reconstruction (the whole one last) and the penalty, from the equations."""
    stop = jax.lax.stop_gradient
    pre = (x - params["b_dec"]) @ params["w_enc"].T + params["b_enc"]
    if config.target_site is not None:
        pre = x @ params["w_enc"].T + params["b_enc"]
    rows, bias = params["w_dec"], params["b_dec"]
    weight = 0.5 * SETTINGS.sparsity_coefficient
    if config.architecture == "topk":
        z = jnp.where(pre >= jax.lax.top_k(pre, K)[0][:, -1:], jax.nn.relu(pre), 0)
        return [z @ rows + bias], 0.0
    if config.architecture in ("batch_topk", "matryoshka"):
        least = jax.lax.top_k(jax.nn.relu(pre).reshape(-1), K * len(x))[0][-1]
        z = jnp.where(pre >= least, jax.nn.relu(pre), 0)
        sizes = matryoshka.prefixes(config) if config.architecture == "matryoshka" else (N,)
        return [z[:, :size] @ rows[:size] + bias for size in sizes], 0.0
    if config.architecture == "relu":
        z = jax.nn.relu(pre)
        return [z @ rows + bias], weight * jnp.mean(z @ jnp.sqrt(jnp.sum(rows**2, axis=1)))
    if config.architecture == "gated":
        size = jnp.exp(params["r_mag"]) * (pre - params["b_enc"]) + params["b_mag"]
        z = jax.nn.relu(size) * (pre > 0)
        gate = jax.nn.relu(pre)
        penalty = weight * jnp.mean(jnp.sum(gate, axis=1))
        return [gate @ stop(rows) + stop(bias), z @ rows + bias], penalty
    assert config.architecture == "jumprelu"
    threshold = jnp.abs(params["threshold"])
    on = straight_through(pre, threshold)
    # JumpReLU's straight-through gradient takes the threshold for the pre-activation next to it.
    z = jnp.where(on > 0, pre, 0) + threshold * (on - stop(on)) * (pre != 0)
    z = z + stop(jnp.where(on > 0, pre, 0) - z)
    return [z @ rows + bias], weight * (jnp.mean(jnp.sum(on, axis=1)) / K - 1) ** 2


def dense_loss(config, params, dead, x, target):
    reconstructions, penalty = dense_terms(config, params, x)
    errors = [target - made for made in reconstructions]
    total = sum(jnp.mean(jnp.sum(e**2, axis=1)) for e in errors) / VARIANCE + penalty
    e = jax.lax.stop_gradient(errors[-1])
    centred = x if config.target_site else x - jax.lax.stop_gradient(params["b_dec"])
    pre = jnp.where(dead, centred @ params["w_enc"].T + params["b_enc"], -jnp.inf)
    kept = pre >= jax.lax.top_k(pre, SETTINGS.k_aux)[0][:, -1:]
    guess = jnp.where(kept & dead, jax.nn.relu(pre), 0) @ params["w_dec"]
    aux = jnp.mean(jnp.sum((e - guess) ** 2, axis=1)) / jnp.mean(jnp.sum(e**2, axis=1))
    return total + jnp.any(dead) * SETTINGS.aux_coefficient * aux


CASES = [config_of(name, max_active=N) for name in OBJECTIVES] + [
    config_of("topk", target_site="mlp_out", input_scale="none"),
    config_of("matryoshka", prefixes=(5, 30), max_active=N),
]


@pytest.mark.parametrize("config", CASES, ids=lambda c: f"{c.architecture}-{c.target_site}")
def test_loss_and_gradients_are_those_of_the_dense_equations(config):
    params, x = problem(config)
    target = x[:, ::-1] if config.target_site else x
    expected_of = jax.jit(jax.value_and_grad(functools.partial(dense_loss, config)))
    for dead in (jnp.arange(N) % 3 == 0, jnp.zeros(N, bool)):
        loss, found, gradients = ours(config, params, dead, x, target)
        expected, wanted = expected_of(params, dead, x, target)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        assert (found["aux"] > 0) == bool(dead.any())
        for name in params:
            scale = float(jnp.abs(wanted[name]).max())
            assert scale > 0, name
            np.testing.assert_allclose(
                gradients[name], wanted[name], rtol=1e-4, atol=2e-6 * max(1, scale), err_msg=name
            )


def test_dead_latents_get_a_gradient_only_through_the_auxiliary_loss():
    params, x = problem(SAE)
    dead = jnp.arange(N) < 8
    # Far too low to be among the k largest, yet active where only the dead compete.
    params["b_enc"] = jnp.where(dead, -0.3, params["b_enc"] + 1.0)
    alive = ours(SAE, params, jnp.zeros(N, bool), x, x)[2]
    revived = ours(SAE, params, dead, x, x)[2]
    for name in ("w_enc", "b_enc", "w_dec"):
        assert not np.any(alive[name][:8])
        assert np.count_nonzero(np.any(np.atleast_2d(revived[name][:8].T), axis=0)) >= 6


# One code per token, one per batch and prefix, and a transcoder's.
@pytest.mark.parametrize("config", [CASES[0], *CASES[-2:]], ids=lambda c: c.architecture)
def test_the_fused_step_is_the_optax_step(config):
    """Five steps, dead latents among them: all parameters and moments, and what is logged."""
    params, x = problem(config, tokens=TRAIN.batch_tokens)
    params["w_dec"] /= jnp.linalg.norm(params["w_dec"], axis=1, keepdims=True)
    target = 0.3 + x[:, ::-1] if config.target_site else None
    mesh = states.make_mesh(TRAIN, N)
    found = {}
    for update in ("optax", "fused"):
        settings = dataclasses.replace(TRAIN, update=update, warmup_share=0.0)
        state = states.TrainState(
            params=dict(params),
            mu=jax.tree.map(jnp.zeros_like, params),
            nu=jax.tree.map(jnp.zeros_like, params),
            average={},
            idle=jnp.where(jnp.arange(N) % 5 == 0, TRAIN.dead_after_tokens, 0),
            cutoff=jnp.zeros(()),
            scales=jnp.ones(2),
            variance=jnp.float32(VARIANCE),
            dead=jnp.zeros(()),
            sums={name: jnp.zeros(()) for name in states.LOGGED},
            bad=jnp.zeros((), jnp.int32),
            step=jnp.zeros((), jnp.int32),
        )
        state = jax.device_put(state, states.shardings(state, mesh))
        state = jax.tree.map(jnp.copy, state)  # the step takes the memory of what it is given
        for _ in range(5):
            state = step.train_step(config, settings, 100, mesh, state, Batch(x, target))
        found[update] = jax.device_get(state)
    assert found["optax"].sums["aux"] > 0
    for name in ("sums", "params"):
        for key, wanted in getattr(found["optax"], name).items():
            got = getattr(found["fused"], name)[key]
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=2e-5, err_msg=key)
    np.testing.assert_array_equal(found["fused"].idle, found["optax"].idle)
    np.testing.assert_allclose(found["fused"].cutoff, found["optax"].cutoff, rtol=1e-5)
