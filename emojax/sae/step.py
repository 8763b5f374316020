"""One jitted training step over a mesh, in two ways that give the same numbers.

* `optax`: the gradient of the loss by JAX, Adam by optax: the plain reference, for every objective.
* `fused`: where codes are sparse, `fused_row_update` makes both gradients of a latent, its norm and
  its Adam step in one pass over the rows, from the codes and the loss's gradient at their
  reconstructions. Rows stay with their shard of latents; the tokens of all shards of `data` come
  to it, so that no `[n, d]` gradient crosses the network.

Adam's ε is that of Gao et al. 2024 (arXiv:2406.04093, appendix A.3).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from emojax_kernels import RowAdam, RowState, fused_row_update, sparse_decode
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from emojax.errors import UserError
from emojax.sae import coder, losses, schedule
from emojax.sae import state as states
from emojax.sae.coder import Codes, SaeConfig
from emojax.sae.objectives import OBJECTIVES
from emojax.sae.objectives.objective import Params, Term, sparse_forward
from emojax.sae.state import TrainState
from emojax.sae.store import Batch
from emojax.sae.train_config import TrainConfig

ADAM = RowAdam(b1=0.9, b2=0.999, eps=6.25e-10)
CUTOFF_DECAY = 0.99
ROWS = ("w_enc", "w_dec", "b_enc")


# With memory's rate as the unit: how many times as slow the links between devices are, and how many
# FLOPs take as long as one byte. Published peaks: an H100 (float32 as TF32, NVLink one way), TPU
# v5e (bfloat16, ICI). Several CPU devices share the memory.
RATES = {"gpu": (7.4, 148.0), "tpu": (4.1, 240.0)}


def fused_moves_less(
    platform: str, tokens: int, slots: int, rows: int, d_model: int, data_shards: int
) -> bool:
    """Whether a step's fused update costs a device less than optax's, by what each moves.

    Both stream every row once, since Adam's moments move rows that no token touches too, and both
    make the products of a device's own tokens. Beyond that:

    * fused receives the inputs and slopes of the other shards' tokens, and makes three products
      with them;
    * optax sums the gradients of both matrices over the shards (each row travels twice), and makes
      the gradient of the input, a product of its own tokens, of which b_dec needs the sum alone.

    A product touches its rows for every slot of a code on a CPU, once to read and twice to add;
    elsewhere XLA multiplies densely, through codes `[tokens, rows]`. Dead latents are left out.

    Args:
      platform: of the devices, as JAX calls it.
      tokens: of the whole batch.
      slots: of a token's code.
      rows: of the dictionary that a device holds.
      d_model: width of a row.
      data_shards: over which the tokens are split.
    """
    row = 4 * d_model
    if platform == "cpu":
        link, read, add = 1.0, slots * row, 2 * slots * row
    else:
        link, flops = RATES.get(platform, RATES["gpu"])
        read = add = rows * (8 + 2 * d_model / flops)
    own = tokens / data_shards
    others = tokens - own
    fused = others * (2 * link * row + read + 2 * add)
    optax = own * read + (1 - 1 / data_shards) * 4 * rows * link * row
    return fused < optax


def is_fused(config: SaeConfig, settings: TrainConfig, platform: str) -> bool:
    """Which of the two it is; `auto` takes what moves less.

    Raises:
      UserError: "fused" is asked for where codes are dense.
    """
    objective = OBJECTIVES[config.architecture]
    if settings.update == "fused" and objective.codes is None:
        raise UserError(
            f"The fused update is for sparse codes, and {config.architecture} trains with dense "
            "ones; set train.update to auto."
        )
    if settings.update != "auto":
        return settings.update == "fused"
    return (
        objective.codes is not None
        and objective.one_term
        and fused_moves_less(
            platform,
            settings.batch_tokens,
            config.slots,
            config.n_latents // settings.latent_shards,
            config.d_model,
            settings.data_shards,
        )
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=4)
def train_step(
    config: SaeConfig,
    settings: TrainConfig,
    steps: int,
    mesh: Mesh,
    state: TrainState,
    batch: Batch,
) -> TrainState:
    """One step of a run of `steps` on raw activations; the state's memory is reused (donated)."""
    x, target = states.scaled(config, state.scales, batch)
    data = losses.Batch(
        x=x,
        target=target,
        variance=state.variance,
        dead=state.idle >= settings.dead_after_tokens,
        warmth=schedule.warmth(settings, steps)(state.step),
    )
    rate = schedule.learning_rate(settings, config.n_latents, steps)(state.step)
    fused = is_fused(config, settings, mesh.devices.flat[0].platform)
    update = fused_update if fused else optax_update
    parts: Any = (P("data"), P("data"), P(), P("latent"), P())
    trained = (state.params, state.mu, state.nu)
    # Kernels need check_vma off: JAX cannot see what of their output varies over the mesh.
    trained, metrics = jax.shard_map(
        functools.partial(update, config, settings),
        mesh=mesh,
        in_specs=(states.specs(trained), P(), P(), losses.Batch(*parts)),
        out_specs=(
            states.specs(trained),
            {name: P() for name in (*states.LOGGED, "dead", "least")} | {"fired": P("latent")},
        ),
        check_vma=False,
    )(trained, state.step, rate, data)
    new = _after(settings, state, trained, metrics, x.shape[0])
    return jax.lax.with_sharding_constraint(new, states.shardings(new, mesh))


def _after(
    settings: TrainConfig, state: TrainState, trained: Any, metrics: dict[str, Array], tokens: int
) -> TrainState:
    """The state after a step: what it trained, and all that is counted."""
    params, mu, nu = trained
    decay = settings.ema_decay
    average = (
        jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state.average, params)
        if (decay)
        else {}
    )
    least = metrics["least"]
    first = state.cutoff == 0
    cutoff = jnp.where(first, least, CUTOFF_DECAY * state.cutoff + (1 - CUTOFF_DECAY) * least)
    new_line = state.step % settings.log_every == 0
    step = state.step + 1
    fine = jnp.isfinite(metrics["loss"]) | (state.bad > 0)
    return state._replace(
        params=params,
        mu=mu,
        nu=nu,
        average=average,
        idle=jnp.where(metrics["fired"], 0, jnp.minimum(state.idle + tokens, 2**30)),
        cutoff=jnp.where(jnp.isfinite(least), cutoff, state.cutoff),
        sums={
            name: jnp.where(new_line, 0, state.sums[name]) + metrics[name] for name in states.LOGGED
        },
        dead=metrics["dead"],
        bad=jnp.where(fine, state.bad, step),
        step=step,
    )


def optax_update(
    config: SaeConfig,
    settings: TrainConfig,
    trained: tuple[Params, Params, Params],
    step: Array,
    rate: Array,
    batch: losses.Batch,
) -> tuple[tuple[Params, Params, Params], dict[str, Array]]:
    """The reference: dense gradients, optax."""
    params, mu, nu = trained
    (total, metrics), gradients = jax.value_and_grad(
        functools.partial(losses.loss, config, settings), has_aux=True
    )(params, batch)
    gradients = jax.lax.pmean(gradients, "data")
    unit = OBJECTIVES[config.architecture].unit_rows
    if unit:
        # Decoder rows stay on the unit sphere: the gradient's radial part would only be undone.
        row = params["w_dec"]
        radial = jnp.sum(gradients["w_dec"] * row, axis=1, keepdims=True)
        gradients = gradients | {"w_dec": gradients["w_dec"] - radial * row}
    params, mu, nu = _adam(params, mu, nu, gradients, step, rate)
    if unit:
        norm = jnp.linalg.norm(params["w_dec"], axis=1, keepdims=True)
        params = params | {"w_dec": params["w_dec"] / norm}
    return (params, mu, nu), _over_data(metrics | {"loss": total})


def fused_update(
    config: SaeConfig,
    settings: TrainConfig,
    trained: tuple[Params, Params, Params],
    step: Array,
    rate: Array,
    batch: losses.Batch,
) -> tuple[tuple[Params, Params, Params], dict[str, Array]]:
    """The same step with the rows' update fused: for objectives with sparse codes."""
    params, mu, nu = trained
    objective = OBJECTIVES[config.architecture]
    assert objective.codes is not None
    x = coder.centred(config, params["b_dec"], batch.x)
    codes, least = objective.codes(config, params, x)
    forward = sparse_forward(params, codes, least)

    def of_parts(parts: list[Array], b_dec: Array):
        squared, error = losses.reconstruction([Term(part, b_dec) for part in parts], batch)
        return sum(squared), (squared, error)

    slopes, (squared, error) = jax.grad(of_parts, argnums=(0, 1), has_aux=True)(
        [term.part for term in forward.terms], params["b_dec"]
    )
    d_parts, d_b_dec = slopes
    work = [(x, slope, code) for slope, code in zip(d_parts, codes, strict=True)]
    n_dead = jax.lax.psum(jnp.sum(batch.dead), "latent")
    n_terms = len(work)
    rows = [{name: tree[name] for name in ROWS} for tree in trained]
    held = (*rows, jnp.zeros_like(params["b_dec"]), jnp.zeros(()))

    def plain(held: tuple) -> tuple:
        rows, mu, nu, _, auxiliary = held
        return *_update_rows(rows, mu, nu, step, rate, n_terms, work), auxiliary

    def reviving(held: tuple) -> tuple:
        rows, mu, nu, _, _ = held
        own = params | rows
        dead = losses.aux_codes(config, settings, own, batch)
        nowhere = jnp.zeros_like(params["b_dec"])
        part = sparse_decode(dead.values, dead.indices, own["w_dec"], nowhere)
        found, slope = jax.value_and_grad(losses.aux_loss)(part, error)
        extra = (x, settings.aux_coefficient * slope, dead)
        return *_update_rows(rows, mu, nu, step, rate, n_terms, [*work, extra]), found

    if settings.aux_coefficient:
        # Only one of the two, because most steps of a healthy run have no dead latent to pay for.
        held = _if(n_dead == 0, plain, held)
        held = _if(n_dead > 0, reviving, held)
    else:
        held = plain(held)
    *rows, d_centre, auxiliary = held
    d_b_dec = jax.lax.pmean(d_b_dec, "data")
    if config.target_site is None:  # the encoder reads x - b_dec
        d_b_dec = d_b_dec - d_centre
    bias = _adam(
        {"b_dec": params["b_dec"]},
        {"b_dec": mu["b_dec"]},
        {"b_dec": nu["b_dec"]},
        {"b_dec": d_b_dec},
        step,
        rate,
    )
    metrics = losses.measured(forward, squared, auxiliary, n_dead, batch)
    total = sum(squared) + settings.aux_coefficient * auxiliary
    new = (rows[0] | bias[0], rows[1] | bias[1], rows[2] | bias[2])
    return new, _over_data(metrics | {"loss": total})


def _if(condition: Array, change: Callable[[tuple], tuple], held: tuple) -> tuple:
    """What is held, changed where the condition holds.

    A loop of at most one turn: XLA changes what a loop carries in place, and copies what comes out
    of a branch, here all rows and all moments.
    """
    return jax.lax.fori_loop(0, condition.astype(jnp.int32), lambda _, own: change(own), held)


def _update_rows(
    params: Params,
    mu: Params,
    nu: Params,
    step: Array,
    rate: Array,
    n_terms: int,
    work: list[tuple[Array, Array, Codes]],
) -> tuple[Params, Params, Params, Array]:
    """The rows, moved by what all shards of tokens bring: inputs, slopes and codes.

    The last result, `[d_model]`, is the gradient of the encoder's input from the first `n_terms` of
    the work, summed over tokens: AuxK is not to move b_dec.
    """
    width = max(code.values.shape[1] for _, _, code in work)

    def wide(array: Array) -> Array:
        return jnp.pad(array, ((0, 0), (0, width - array.shape[1])))

    stacked = [
        jnp.concatenate(parts)
        for parts in zip(
            *((x, slope, wide(c.values), wide(c.indices)) for x, slope, c in work), strict=True
        )
    ]
    x, slope, values, indices = (
        jax.lax.all_gather(array, "data", axis=0, tiled=True) for array in stacked
    )
    rows = RowState(
        w_enc=params["w_enc"],
        w_dec=params["w_dec"],
        b_enc=params["b_enc"],
        m_enc=mu["w_enc"],
        v_enc=nu["w_enc"],
        m_dec=mu["w_dec"],
        v_dec=nu["w_dec"],
        m_bias=mu["b_enc"],
        v_bias=nu["b_enc"],
        shadow_enc=None,
        shadow_dec=None,
        step=step,
    )
    shards = jax.lax.axis_size("data")
    slope = slope / shards  # the loss is a mean over shards of tokens
    new, d_pre = fused_row_update(
        rows, x, slope, values, indices, learning_rate=rate, settings=ADAM
    )
    own, latents = (a.reshape(shards, len(work), -1)[:, :n_terms] for a in (d_pre, indices))
    d_bias = jnp.zeros_like(params["b_enc"]).at[latents].add(own)
    return (
        {"w_enc": new.w_enc, "w_dec": new.w_dec, "b_enc": new.b_enc},
        {"w_enc": new.m_enc, "w_dec": new.m_dec, "b_enc": new.m_bias},
        {"w_enc": new.v_enc, "w_dec": new.v_dec, "b_enc": new.v_bias},
        jax.lax.psum(d_bias @ params["w_enc"], "latent"),
    )


def _adam(
    params: Params, mu: Params, nu: Params, gradients: Params, step: Array, rate: Array
) -> tuple[Params, Params, Params]:
    """Adam by optax."""
    adam = optax.scale_by_adam(ADAM.b1, ADAM.b2, ADAM.eps)
    moments: Any = optax.ScaleByAdamState(count=step, mu=mu, nu=nu)
    changes, new = adam.update(gradients, moments)
    params = jax.tree.map(lambda p, change: p - rate * change, params, changes)
    return params, *_moments(new)


def _moments(state: Any) -> tuple[Params, Params]:
    return state.mu, state.nu


def _over_data(metrics: dict[str, Array]) -> dict[str, Array]:
    """Means over the shards of tokens; a latent fired if it did on any."""
    fired = metrics.pop("fired").astype(jnp.int32)
    return jax.lax.pmean(metrics, "data") | {"fired": jax.lax.pmax(fired, "data") > 0}
