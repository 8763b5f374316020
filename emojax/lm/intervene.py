"""Interventions on the residual stream, as data that a jitted pass takes as an argument.

What is compiled depends on how many interventions there are and at which sites, and on nothing
else: layers, rows, positions, modes, vectors and strengths are arrays. Where an intervention is not
at work, or changes nothing, the numbers that go on are the very bits that came in.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from emojax.errors import UserError
from emojax.lm import decoder
from emojax.lm.config import DecoderConfig

_MODES = ("add", "scale", "set", "project_out")
_LATENT_MODES = ("add", "clamp", "scale")
_UNITS = ("raw", "fraction")
_PHASES = {"prompt": (True, False), "generated": (False, True), "both": (True, True)}
_FOREVER = np.iinfo(np.int32).max


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Direction:
    """An edit along a vector; `vector` is one for all rows or one per row, `strength` likewise."""

    mode: Any  # index into add, scale, set, project_out
    vector: Any  # [d_model] or [batch, d_model]
    strength: Any  # [] or [batch]
    fraction: Any  # whether strength is a fraction of each token's own norm


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Latents:
    """An edit of some latents of a sparse autoencoder, with the rows of it that they need."""

    mode: Any  # index into add, clamp, scale
    value: Any  # [m] or [batch, m]
    w_enc: Any  # [m, d_model]
    b_enc: Any  # [m]
    w_dec: Any  # [m, d_model]
    threshold: Any  # [m], what a pre-activation must exceed for the latent to be active
    unit_norm: Any  # whether the autoencoder reads h / ‖h‖ and writes times ‖h‖


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Intervention:
    """What to change (`edit`), and where: site, layer, rows, positions, phase.

    Make one with `direction`, `ablate` or `latents`.
    """

    site: str = dataclasses.field(metadata={"static": True})
    layer: Any  # []
    edit: Direction | Latents
    rows: Any  # [] or [batch], weights: 0 leaves a row alone, 1 edits it
    start: Any  # [] or [batch], position of the first token edited
    end: Any  # [] or [batch], position after the last
    phases: Any  # [2], whether prompt and whether generated tokens are edited


def direction(
    mode: str,
    vector: Any,
    *,
    layer: Any,
    site: str = "resid_post",
    strength: Any = 1.0,
    unit: str = "raw",
    rows: Any = 1.0,
    positions: tuple[Any, Any] = (0, _FOREVER),
    phase: str = "both",
) -> Intervention:
    """An edit of the residual h of a token along a vector v, with strength s.

    * add: h + s v
    * scale: s h (v only gives the width)
    * set: s v
    * project_out: h − s (h · v̂) v̂ with v̂ = v / ‖v‖

    Args:
      mode: one of the four above.
      vector: `[d_model]`, or `[batch, d_model]` for a vector per row.
      layer: which layer, from 0; a traced number is fine.
      site: one of `decoder.SITES`.
      strength: s, one number or one per row.
      unit: "raw", or "fraction": in add and set, s v becomes s ‖h‖ v̂, so that s is a fraction of
        the token's own norm.
      rows: weights of the edit, one number or one per row; 0 leaves a row untouched.
      positions: edited are tokens from the first to before the second, counted from the row's first
        real token; each a number or one per row.
      phase: whether prompt tokens, generated tokens or both are edited.

    Raises:
      UserError: `mode`, `unit` or `phase` is none of those above.
    """
    edit = Direction(
        mode=np.int32(_index("mode", mode, _MODES)),
        vector=vector,
        strength=strength,
        fraction=np.bool_(_index("unit", unit, _UNITS)),
    )
    return _intervention(edit, layer, site, rows, positions, phase)


def ablate(
    mean: Any,
    *,
    layer: Any,
    site: str = "resid_post",
    rows: Any = 1.0,
    positions: tuple[Any, Any] = (0, _FOREVER),
    phase: str = "both",
) -> Intervention:
    """Replaces the residual by `mean`, `[d_model]` or `[batch, d_model]` (zeros: zero ablation).

    Raises:
      UserError: `phase` is unknown.
    """
    return direction(
        "set", mean, layer=layer, site=site, rows=rows, positions=positions, phase=phase
    )


def latents(
    mode: str,
    value: Any,
    *,
    w_enc: Any,
    b_enc: Any,
    w_dec: Any,
    layer: Any,
    site: str = "resid_post",
    threshold: Any = 0.0,
    unit_norm: bool = False,
    rows: Any = 1.0,
    positions: tuple[Any, Any] = (0, _FOREVER),
    phase: str = "both",
) -> Intervention:
    """An edit of m latents of a sparse autoencoder: h + decode(z') − decode(z).

    z is `w_enc @ h + b_enc` where that exceeds the threshold, else 0; z' is z + value (add), value
    (clamp) or value z (scale). What the autoencoder does not explain of h is untouched.

    Args:
      mode: one of the three above.
      value: one number, `[m]` or `[batch, m]`.
      w_enc: the latents' encoder rows, `[m, d_model]`.
      b_enc: their encoder biases, `[m]`.
      w_dec: their decoder rows, `[m, d_model]`.
      layer: which layer, from 0.
      site: one of `decoder.SITES`.
      threshold: one number or `[m]`; 0 is ReLU. For a TopK autoencoder, the least value at which
        the latent is among the k largest stands in for the competition of the others.
      unit_norm: whether the autoencoder reads h / ‖h‖ and its output is multiplied by ‖h‖.
      rows: as in `direction`.
      positions: as in `direction`.
      phase: as in `direction`.

    Raises:
      UserError: `mode` or `phase` is unknown.
    """
    edit = Latents(
        mode=np.int32(_index("mode", mode, _LATENT_MODES)),
        value=value,
        w_enc=w_enc,
        b_enc=b_enc,
        w_dec=w_dec,
        threshold=threshold,
        unit_norm=np.bool_(unit_norm),
    )
    return _intervention(edit, layer, site, rows, positions, phase)


def prepare(
    config: DecoderConfig, interventions: Sequence[Intervention], batch: int
) -> tuple[Intervention, ...]:
    """Checks interventions and gives each array its full shape, before anything is compiled.

    Arrays traced by JAX pass unchecked but for their shapes, so that gradients flow through.

    Raises:
      UserError: a site or layer does not exist, a shape does not fit the model or the batch, or a
        number is NaN or infinite.
    """
    return tuple(
        _prepare(config, intervention, batch, f"Intervention {i + 1} of {len(interventions)}")
        for i, intervention in enumerate(interventions)
    )


def apply(
    interventions: Sequence[Intervention],
    site: str,
    layer: Int[Array, ""],
    h: Float[Array, "batch time d_model"],
    positions: Int[Array, "batch time"],
    generated: Bool[Array, "batch time"],
) -> Float[Array, "batch time d_model"]:
    """`h` after the interventions at this site and layer, in their order."""
    for intervention in interventions:
        if intervention.site == site:
            h = lax.cond(
                intervention.layer == layer,
                lambda h, intervention=intervention: _edited(intervention, h, positions, generated),
                lambda h: h,
                h,
            )
    return h


def _edited(
    intervention: Intervention,
    h: Float[Array, "batch time d_model"],
    positions: Int[Array, "batch time"],
    generated: Bool[Array, "batch time"],
) -> Float[Array, "batch time d_model"]:
    wide = h.astype(jnp.float32)
    if isinstance(intervention.edit, Direction):
        target, changed = _along(intervention.edit, wide)
    else:
        target, changed = _with_latents(intervention.edit, wide)
    weight = intervention.rows[:, None]
    active = (
        changed
        & (weight != 0)
        & (positions >= intervention.start[:, None])
        & (positions < intervention.end[:, None])
        & jnp.where(generated, intervention.phases[1], intervention.phases[0])
    )
    # A full weight gives the target itself, not a sum that rounds.
    weight = weight[..., None]
    target = jnp.where(weight == 1, target, wide + weight * (target - wide))
    return jnp.where(active[..., None], target.astype(h.dtype), h)


def _along(
    edit: Direction, h: Float[Array, "batch time d_model"]
) -> tuple[Float[Array, "batch time d_model"], Bool[Array, "batch time"]]:
    """The edited residual, and where it differs: a·v + b·h + c·v, with a and b by the mode."""
    vector = edit.vector.astype(jnp.float32)[:, None]
    strength = edit.strength.astype(jnp.float32)[:, None, None]
    square = jnp.sum(vector * vector, axis=-1, keepdims=True)
    # A zero vector has no direction: a fraction of it, or what it projects out, is nothing.
    squared = jnp.where(square > 0, square, 1.0)
    size = jnp.sqrt(jnp.sum(h * h, axis=-1, keepdims=True))
    along = jnp.sum(h * vector, axis=-1, keepdims=True) / squared

    add, scale, replace, project = (edit.mode == i for i in range(len(_MODES)))
    amount = jnp.where(edit.fraction, strength * size * lax.rsqrt(squared), strength)
    amount = jnp.where(add | replace, amount, jnp.where(project, -strength * along, 0.0))
    kept = jnp.where(scale, strength, jnp.where(replace, 0.0, 1.0))
    changed = jnp.where(scale, strength != 1, replace | (strength != 0))
    return amount * vector + kept * h, jnp.broadcast_to(changed[..., 0], h.shape[:2])


def _with_latents(
    edit: Latents, h: Float[Array, "batch time d_model"]
) -> tuple[Float[Array, "batch time d_model"], Bool[Array, "batch time"]]:
    """The residual with the latents edited, and where a latent changed."""
    norm = jnp.sqrt(jnp.sum(h * h, axis=-1, keepdims=True))
    size = jnp.where(edit.unit_norm & (norm > 0), norm, 1.0)
    pre = jnp.einsum("btd,md->btm", h / size, edit.w_enc) + edit.b_enc
    z = jnp.where(pre > edit.threshold, pre, 0.0)
    value = edit.value[:, None]
    add, clamp = edit.mode == 0, edit.mode == 1
    edited = jnp.where(add, z + value, jnp.where(clamp, value, z * value))
    delta = edited - z
    return h + size * jnp.einsum("btm,md->btd", delta, edit.w_dec), jnp.any(delta != 0, axis=-1)


def _intervention(
    edit: Direction | Latents,
    layer: Any,
    site: str,
    rows: Any,
    positions: tuple[Any, Any],
    phase: str,
) -> Intervention:
    _index("phase", phase, tuple(_PHASES))
    return Intervention(
        site=site,
        layer=layer,
        edit=edit,
        rows=rows,
        start=positions[0],
        end=positions[1],
        phases=np.array(_PHASES[phase]),
    )


def _index(what: str, value: str, allowed: tuple[str, ...]) -> int:
    if value not in allowed:
        raise UserError(
            f"An intervention has {what} {value!r}, which does not exist; "
            f"use one of {', '.join(allowed)}."
        )
    return allowed.index(value)


def _prepare(config: DecoderConfig, given: Intervention, batch: int, what: str) -> Intervention:
    if given.site not in decoder.SITES:
        raise UserError(
            f"{what} is at the site {given.site!r}, which does not exist; "
            f"use one of {', '.join(decoder.SITES)}."
        )
    layer = given.layer
    if not isinstance(layer, jax.core.Tracer):
        check_layer(config, given.site, int(layer), what)

    def full(name: str, value: Any, shape: tuple[int, ...], dtype: Any, least: int = 0) -> Array:
        where = f"{what} (at {given.site}, layer {layer}): {name}"
        return _full(value, shape, dtype, least, where)

    edit = given.edit
    if isinstance(edit, Direction):
        edit = Direction(
            mode=jnp.asarray(edit.mode, jnp.int32),
            vector=full("vector", edit.vector, (batch, config.d_model), jnp.float32, 1),
            strength=full("strength", edit.strength, (batch,), jnp.float32),
            fraction=jnp.asarray(edit.fraction, bool),
        )
    else:
        m = (np.shape(edit.w_enc) or (1,))[0]
        edit = Latents(
            mode=jnp.asarray(edit.mode, jnp.int32),
            value=full("value", edit.value, (batch, m), jnp.float32),
            w_enc=full("w_enc", edit.w_enc, (m, config.d_model), jnp.float32, 2),
            b_enc=full("b_enc", edit.b_enc, (m,), jnp.float32),
            w_dec=full("w_dec", edit.w_dec, (m, config.d_model), jnp.float32, 2),
            threshold=full("threshold", edit.threshold, (m,), jnp.float32),
            unit_norm=jnp.asarray(edit.unit_norm, bool),
        )
    return Intervention(
        site=given.site,
        layer=jnp.asarray(layer, jnp.int32),
        edit=edit,
        rows=full("rows", given.rows, (batch,), jnp.float32),
        start=full("start", given.start, (batch,), jnp.int32),
        end=full("end", given.end, (batch,), jnp.int32),
        phases=jnp.asarray(given.phases, bool),
    )


def check_layer(config: DecoderConfig, site: str, layer: int, what: str) -> None:
    """Refuses a layer that the model does not have, at a site that exists.

    Raises:
      UserError: the layer is not there, or `final_norm` is asked for at any layer but the last.
    """
    first = config.n_layers - 1 if site == "final_norm" else 0
    if not first <= layer < config.n_layers:
        raise UserError(
            f"{what} is at layer {layer}, where there is no {site}; "
            f"choose a layer from {first} to {config.n_layers - 1}."
        )


def _full(value: Any, shape: tuple[int, ...], dtype: Any, least: int, what: str) -> Array:
    """`value` broadcast to `shape`; it has the last dimensions of it, `least` of them or more."""
    given = np.shape(value)
    if len(given) < least or given != shape[len(shape) - len(given) :]:
        raise UserError(
            f"{what} has shape {given}, which does not fit {shape}; "
            "give it the model's width and either one row or as many as the batch."
        )
    if not isinstance(value, jax.core.Tracer) and not np.all(np.isfinite(np.asarray(value))):
        raise UserError(f"{what} holds NaN or infinity; look at where it was made.")
    return jnp.broadcast_to(jnp.asarray(value, dtype), shape)
