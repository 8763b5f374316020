"""Interventions on activations, as data that a jitted pass takes as an argument.

What is compiled depends on how many interventions of a kind there are and at which sites, and on
nothing else: layers, rows, positions, modes, vectors and strengths are arrays. Where one is not at
work, or changes nothing, the numbers that go on are the very bits that came in.

`direction`, `clamp`, `ablate`, `patch` and `latents` make them, `intervention_checks.prepare` fits
them to a model and a batch, `apply` does them, and `intervention_files` keeps them.
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

MODES = ("add", "scale", "set", "project_out", "clamp")
LATENT_MODES = ("add", "clamp", "scale")
UNITS = ("raw", "fraction")
PHASES = {"prompt": (True, False), "generated": (False, True), "both": (True, True)}
# Positions without end.
EVERYWHERE = (0, np.iinfo(np.int32).max)


# In the comments: what a caller may give, then what `prepare` makes of it where that differs.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Direction:
    """An edit along a vector, one for all rows or one per row."""

    mode: Any  # index into MODES
    vector: Any  # [], [width] or [batch, width] -> [batch, width]
    strength: Any  # [] or [batch] -> [batch]
    fraction: Any  # whether strength is a fraction of each token's own norm
    low: Any  # [] or [batch] -> [batch], the bounds of a clamp
    high: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Latents:
    """An edit of some latents of a sparse autoencoder, with the rows of it that they need."""

    mode: Any  # index into LATENT_MODES
    value: Any  # [], [m] or [batch, m] -> [batch, m]
    w_enc: Any  # [m, width]
    b_enc: Any  # [m]
    w_dec: Any  # [m, width]
    threshold: Any  # [] or [m] -> [m], what a pre-activation of an active latent exceeds
    unit_norm: Any  # whether the autoencoder reads h / ‖h‖ and writes times ‖h‖


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Patch:
    """Values of another run, and which are of real tokens; `prepare` puts them by position."""

    values: Any  # [n, width] or [batch, n, width] -> [batch, length, width]
    mask: Any  # [], [n] or [batch, n] -> [batch, length]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Intervention:
    """What to change (`edit`), and where; the functions below make it."""

    site: str = dataclasses.field(metadata={"static": True})
    layer: Any  # []
    edit: Direction | Latents | Patch
    rows: Any  # [] or [batch], weights: 0 leaves a row alone, 1 edits it
    positions: Any  # (start, end), each [] or [batch]; or a mask, [n] or [batch, n]
    phases: Any  # [2], whether prompt and whether generated tokens are edited


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prepared:
    """An intervention whose arrays have the shapes of one model and one batch.

    `weights` holds rows and positions: how much of the edit the token at each position gets.
    """

    site: str = dataclasses.field(metadata={"static": True})
    layer: Any  # []
    edit: Direction | Latents | Patch
    weights: Any  # [batch, length]
    phases: Any  # [2]


def direction(
    mode: str,
    vector: Any,
    *,
    layer: Any,
    site: str = "resid_post",
    strength: Any = 1.0,
    unit: str = "raw",
    rows: Any = 1.0,
    positions: Any = EVERYWHERE,
    phase: str = "both",
) -> Intervention:
    """An edit of a token's activation h along a vector v, with strength s.

    * add: h + s v
    * scale: s h, whatever v is
    * set: s v
    * project_out: h − s (h · v̂) v̂ with v̂ = v / ‖v‖

    Args:
      mode: one of the four above.
      vector: `[width]` of the site, or `[batch, width]` for a vector per row; in scale and set also
        one number, for a vector that holds only that.
      layer: which layer, from 0; a traced number is fine.
      site: one of `decoder.SITES`.
      strength: s, one number or one per row.
      unit: "raw", or "fraction": in add and set, s v becomes s ‖h‖ v̂, so that s is a fraction of
        the token's own norm.
      rows: weights of the edit from 0 to 1, one number or one per row; 0 leaves a row untouched.
      positions: which tokens are edited, counted from the row's first real token: a pair `(start,
        end)`, each a number or one per row, `end` not included; or a mask, boolean `[n]` or
        `[batch, n]`, that leaves tokens from n on alone. A position that a row does not reach edits
        nothing.
      phase: whether prompt tokens, generated tokens or both are edited; to `capture` and
        `run_with_cache` all tokens are prompt, so that "generated" edits nothing there.

    Raises:
      UserError: `mode`, `unit` or `phase` is none of those above, or the unit has no meaning there.
    """
    number = _index("mode", mode, MODES[:-1])
    if unit == "fraction" and mode not in ("add", "set"):
        raise UserError(
            f"An intervention of mode {mode} has the unit fraction, which only add and set know; "
            "leave the unit out."
        )
    edit = Direction(
        mode=np.int32(number),
        vector=vector,
        strength=strength,
        fraction=np.bool_(_index("unit", unit, UNITS)),
        low=-np.inf,
        high=np.inf,
    )
    return _intervention(edit, layer, site, rows, positions, phase)


def clamp(
    vector: Any,
    low: Any = -np.inf,
    high: Any = np.inf,
    *,
    layer: Any,
    site: str = "resid_post",
    rows: Any = 1.0,
    positions: Any = EVERYWHERE,
    phase: str = "both",
) -> Intervention:
    """Moves a token's activation along a vector v until its projection on v̂ is within bounds.

    h + (min(max(h · v̂, low), high) − h · v̂) v̂ with v̂ = v / ‖v‖; what is orthogonal to v stays.

    Args:
      vector: `[width]`, or `[batch, width]` for a vector per row.
      low: the least projection, in the activation's units, one number or one per row.
      high: the largest; where it equals `low`, that is the projection's value.
      layer: as in `direction`.
      site: as in `direction`.
      rows: as in `direction`.
      positions: as in `direction`.
      phase: as in `direction`.

    Raises:
      UserError: `phase` is unknown.
    """
    mode, raw = np.int32(MODES.index("clamp")), np.bool_(False)
    edit = Direction(mode, vector, strength=1.0, fraction=raw, low=low, high=high)
    return _intervention(edit, layer, site, rows, positions, phase)


def ablate(
    mean: Any = 0.0,
    *,
    layer: Any,
    site: str = "resid_post",
    rows: Any = 1.0,
    positions: Any = EVERYWHERE,
    phase: str = "both",
) -> Intervention:
    """Replaces activations by a mean, `[width]` or `[batch, width]`, or by zeros.

    Raises:
      UserError: `phase` is unknown.
    """
    return direction(
        "set", mean, layer=layer, site=site, rows=rows, positions=positions, phase=phase
    )


def patch(
    values: Any,
    mask: Any,
    *,
    layer: Any,
    site: str = "resid_post",
    rows: Any = 1.0,
    positions: Any = EVERYWHERE,
    phase: str = "both",
) -> Intervention:
    """Replaces activations by those of another run, position by position.

    Positions count from the first real token in both runs, wherever their padding is. Of the
    prompt's tokens, a position is patched only where the other run has it too, and it is an error
    if one that `positions` names is in only one of them: rows of different lengths need `positions`
    that both have. Generated tokens that the other run does not reach are left alone.

    Args:
      values: `[n, width]` for all rows or `[batch, n, width]`, as `capture` reads them
        (`ActivationCache.patch` hands them and their mask on).
      mask: which of them are of real tokens, boolean, `[n]` or `[batch, n]`; True if all are.
      layer: as in `direction`.
      site: as in `direction`.
      rows: as in `direction`.
      positions: as in `direction`.
      phase: as in `direction`.

    Raises:
      UserError: `phase` is unknown.
    """
    return _intervention(Patch(values, mask), layer, site, rows, positions, phase)


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
    positions: Any = EVERYWHERE,
    phase: str = "both",
) -> Intervention:
    """An edit of m latents of a sparse autoencoder: h + decode(z') − decode(z).

    z is `w_enc @ h + b_enc` where that exceeds the threshold, else 0; z' is z + value (add), value
    (clamp) or value z (scale). What the autoencoder does not explain of h is untouched.

    Many autoencoders, ours among them, subtract their decoder's bias first: fold that into `b_enc`,
    as `emojax.sae.edit.edit` does for ours.

    Args:
      mode: one of the three above.
      value: one number, `[m]` or `[batch, m]`.
      w_enc: the latents' encoder rows, `[m, width]` (the transpose of SAELens' `[d_in, m]`).
      b_enc: their encoder biases, `[m]`; where the autoencoder reads h − b_dec, less `w_enc @
        b_dec`.
      w_dec: their decoder rows, `[m, width]`.
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
        mode=np.int32(_index("mode", mode, LATENT_MODES)),
        value=value,
        w_enc=w_enc,
        b_enc=b_enc,
        w_dec=w_dec,
        threshold=threshold,
        unit_norm=np.bool_(unit_norm),
    )
    return _intervention(edit, layer, site, rows, positions, phase)


# The fields of an edit that may have one entry per row, and how many axes they have then.
_BY_ROW: dict[type, dict[str, int]] = {
    Direction: {"vector": 2, "strength": 1, "low": 1, "high": 1},
    Latents: {"value": 2},
    Patch: {"values": 3, "mask": 2},
}


def of_rows(
    interventions: Sequence[Intervention], rows: Int[np.ndarray, " rows"]
) -> tuple[Intervention, ...]:
    """The interventions on a list of rows, for those of them that have these numbers."""

    def positions(given: Any) -> Any:
        if isinstance(given, tuple):
            return tuple(_of_rows(end, 1, rows) for end in given)
        return _of_rows(given, 2, rows)

    return tuple(
        dataclasses.replace(
            given,
            edit=_edit_of_rows(given.edit, rows),
            rows=_of_rows(given.rows, 1, rows),
            positions=positions(given.positions),
        )
        for given in interventions
    )


def of_part(
    interventions: Sequence[Prepared], rows: slice | Int[np.ndarray, " rows"]
) -> tuple[Prepared, ...]:
    """The interventions on a batch, for a part of its rows."""
    return tuple(
        dataclasses.replace(
            given, edit=_edit_of_rows(given.edit, rows), weights=given.weights[rows]
        )
        for given in interventions
    )


def _edit_of_rows(edit: Direction | Latents | Patch, rows: Any) -> Direction | Latents | Patch:
    fields = _BY_ROW[type(edit)].items()
    return dataclasses.replace(
        edit, **{name: _of_rows(getattr(edit, name), axes, rows) for name, axes in fields}
    )


def _of_rows(value: Any, axes: int, rows: Any) -> Any:
    """What `value` holds for some rows: with so many axes it has one entry per row."""
    if np.ndim(value) != axes:
        return value
    return (value if isinstance(value, jax.Array) else np.asarray(value))[rows]


def apply(
    interventions: Sequence[Prepared],
    site: str,
    layer: Int[Array, ""],
    h: Float[Array, "batch time width"],
    positions: Int[Array, "batch time"],
    generated: Bool[Array, "batch time"],
) -> Float[Array, "batch time width"]:
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
    intervention: Prepared,
    h: Float[Array, "batch time width"],
    positions: Int[Array, "batch time"],
    generated: Bool[Array, "batch time"],
) -> Float[Array, "batch time width"]:
    wide = h.astype(jnp.float32)
    edit = intervention.edit
    if isinstance(edit, Direction):
        target, changed = _along(edit, wide)
    elif isinstance(edit, Latents):
        target, changed = _with_latents(edit, wide)
    else:
        target = jnp.take_along_axis(edit.values, positions[..., None], axis=1, mode="clip")
        changed = jnp.take_along_axis(edit.mask, positions, axis=1, mode="clip")
    weight = jnp.take_along_axis(intervention.weights, positions, axis=1, mode="clip")
    in_phase = jnp.where(generated, intervention.phases[1], intervention.phases[0])
    active = changed & (weight != 0) & in_phase
    # A full weight gives the target itself, not a sum that rounds.
    weight = weight[..., None]
    target = jnp.where(weight == 1, target, wide + weight * (target - wide))
    return jnp.where(active[..., None], target.astype(h.dtype), h)


def _along(
    edit: Direction, h: Float[Array, "batch time width"]
) -> tuple[Float[Array, "batch time width"], Bool[Array, "batch time"]]:
    """The edited activation, a·v + b·h with a and b by the mode, and where it differs."""
    vector = edit.vector[:, None]
    strength, low, high = (x[:, None, None] for x in (edit.strength, edit.low, edit.high))
    square = jnp.sum(vector * vector, axis=-1, keepdims=True)
    # A zero vector has no direction: a fraction of it, or what it projects out, is nothing.
    squared = jnp.where(square > 0, square, 1.0)
    size = _norm(h)
    along = jnp.sum(h * vector, axis=-1, keepdims=True) / squared
    projection = along * jnp.sqrt(squared)
    missing = jnp.clip(projection, low, high) - projection

    add, scale, replace, project, clamp = (edit.mode == i for i in range(len(MODES)))
    amount = jnp.where(edit.fraction, strength * size * lax.rsqrt(squared), strength)
    amount = jnp.where(add | replace, amount, jnp.where(project, -strength * along, 0.0))
    amount = jnp.where(clamp, missing * lax.rsqrt(squared), amount)
    kept = jnp.where(scale, strength, jnp.where(replace, 0.0, 1.0))
    changed = jnp.where(scale, strength != 1, replace | (strength != 0))
    changed = jnp.where(clamp, missing != 0, changed)
    return amount * vector + kept * h, jnp.broadcast_to(changed[..., 0], h.shape[:2])


def _with_latents(
    edit: Latents, h: Float[Array, "batch time width"]
) -> tuple[Float[Array, "batch time width"], Bool[Array, "batch time"]]:
    """The activation with the latents edited, and where a latent changed."""
    norm = _norm(h)
    size = jnp.where(edit.unit_norm & (norm > 0), norm, 1.0)
    pre = jnp.einsum("btd,md->btm", h / size, edit.w_enc) + edit.b_enc
    z = jnp.where(pre > edit.threshold, pre, 0.0)
    value = edit.value[:, None]
    add, clamp = edit.mode == 0, edit.mode == 1
    edited = jnp.where(add, z + value, jnp.where(clamp, value, z * value))
    delta = edited - z
    return h + size * jnp.einsum("btm,md->btd", delta, edit.w_dec), jnp.any(delta != 0, axis=-1)


def _norm(h: Float[Array, "batch time width"]) -> Float[Array, "batch time 1"]:
    """‖h‖, whose gradient at zero is zero rather than NaN."""
    square = jnp.sum(h * h, axis=-1, keepdims=True)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def _intervention(
    edit: Direction | Latents | Patch,
    layer: Any,
    site: str,
    rows: Any,
    positions: Any,
    phase: str,
) -> Intervention:
    _index("phase", phase, tuple(PHASES))
    return Intervention(
        site=site,
        layer=layer,
        edit=edit,
        rows=rows,
        positions=positions,
        phases=np.array(PHASES[phase]),
    )


def _index(what: str, value: str, allowed: tuple[str, ...]) -> int:
    if value not in allowed:
        raise UserError(
            f"An intervention has {what} {value!r}, which does not exist; "
            f"use one of {', '.join(allowed)}."
        )
    return allowed.index(value)
