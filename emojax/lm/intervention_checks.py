"""Fits interventions to a model and a batch: all checks, before anything is compiled."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from emojax.errors import UserError
from emojax.lm import decoder
from emojax.lm.config import DecoderConfig
from emojax.lm.intervene import (
    EVERYWHERE,
    MODES,
    Direction,
    Intervention,
    Latents,
    Patch,
    Prepared,
)


def prepare(
    config: DecoderConfig,
    interventions: Sequence[Intervention],
    tokens: Int[Any, " batch"] | Sequence[int],
    length: int,
) -> tuple[Prepared, ...]:
    """Checks interventions and gives each array its full shape, before anything is compiled.

    Arrays traced by JAX pass unchecked but for their shapes, so that gradients flow through.

    Args:
      config: the decoder's traits.
      interventions: in the order in which they act.
      tokens: how many real tokens each row of the pass has; 0 in rows that only fill a batch up.
      length: how many positions a row can have in it, generated tokens included.

    Raises:
      UserError: a site or layer does not exist, a shape does not fit the model or the batch, a
        number is NaN or infinite, a range of positions is none, or a position of a prompt is to be
        patched that only one of the two runs has.
    """
    check_kind(interventions)
    return tuple(
        _prepare(config, given, tokens, length, f"Intervention {i + 1} of {len(interventions)}")
        for i, given in enumerate(interventions)
    )


def check(
    config: DecoderConfig, interventions: Sequence[Intervention], tokens: Sequence[int]
) -> None:
    """The checks of `prepare` for any number of rows, without their arrays.

    Raises:
      UserError: as `prepare`.
    """
    length = max(tokens, default=0)
    jax.eval_shape(lambda: prepare(config, interventions, tokens, length))


def check_kind(interventions: Any) -> None:
    """Refuses what is no list of interventions.

    Raises:
      UserError: it is a single one, or something else is among them.
    """
    if isinstance(interventions, Intervention):
        raise UserError("One intervention was given where a list of them is needed; put it in [ ].")
    for i, given in enumerate(interventions):
        if not isinstance(given, Intervention):
            raise UserError(
                f"Intervention {i + 1} of {len(interventions)} is a {type(given).__name__}; "
                "make it by intervene.direction or its neighbours."
            )


def check_named(site: str, layer: Any, what: str) -> None:
    """Refuses a site that no model has, and a layer that is no number; a traced layer passes.

    Raises:
      UserError: it is one of them.
    """
    if site not in decoder.SITES:
        raise UserError(
            f"{what} is at the site {site!r}, which does not exist; "
            f"use one of {', '.join(decoder.SITES)}."
        )
    if not _traced(layer) and not (np.ndim(layer) == 0 and _whole(layer)):
        raise UserError(f"{what} is at layer {layer!r}, which is no whole number; give its number.")


def check_place(config: DecoderConfig, site: str, layer: Any, what: str) -> None:
    """Refuses a site or layer that the model does not have; a traced layer passes.

    Raises:
      UserError: one is not there, or `final_norm` is asked for at any layer but the last.
    """
    check_named(site, layer, what)
    first = config.n_layers - 1 if site == "final_norm" else 0
    if not _traced(layer) and not first <= int(layer) < config.n_layers:
        raise UserError(
            f"{what} is at layer {layer}, where there is no {site}; "
            f"choose a layer from {first} to {config.n_layers - 1}."
        )


def _prepare(
    config: DecoderConfig, given: Intervention, tokens: Any, length: int, what: str
) -> Prepared:
    check_place(config, given.site, given.layer, what)
    what = f"{what} (at {given.site}, layer {given.layer})"
    batch, width = len(tokens), decoder.site_width(config, given.site)
    prepared = Prepared(
        site=given.site,
        layer=jnp.asarray(given.layer, jnp.int32),
        edit=_edit(given.edit, batch, length, width, what),
        weights=_weights(given, batch, length, what),
        phases=jnp.asarray(given.phases, bool),
    )
    if isinstance(given.edit, Patch):
        _check_fit(given, given.edit, tokens, what)
    return prepared


def _edit(
    edit: Direction | Latents | Patch, batch: int, length: int, width: int, what: str
) -> Direction | Latents | Patch:
    def full(name: str, shape: tuple[int, ...], least: int = 0, infinite: bool = False) -> Array:
        return _full(getattr(edit, name), shape, f"{what}: {name}", least, infinite)

    if isinstance(edit, Direction):
        # Any vector will do for a scale, and one number for a constant to set.
        fixed = _traced(edit.mode) or MODES[int(edit.mode)] not in ("scale", "set")
        if not any(map(_traced, (edit.low, edit.high))) and np.any(
            np.asarray(edit.low) > np.asarray(edit.high)
        ):
            raise UserError(f"{what}: low is above high; give the smaller bound first.")
        return Direction(
            mode=jnp.asarray(edit.mode, jnp.int32),
            vector=full("vector", (batch, width), least=int(fixed)),
            strength=full("strength", (batch,)),
            fraction=jnp.asarray(edit.fraction, bool),
            low=full("low", (batch,), infinite=True),
            high=full("high", (batch,), infinite=True),
        )
    if isinstance(edit, Latents):
        _check_orientation(edit, width, what)
        m = (np.shape(edit.b_enc) or np.shape(edit.w_enc) or (1,))[0]
        return Latents(
            mode=jnp.asarray(edit.mode, jnp.int32),
            value=full("value", (batch, m)),
            w_enc=full("w_enc", (m, width), least=2),
            b_enc=full("b_enc", (m,)),
            w_dec=full("w_dec", (m, width), least=2),
            threshold=full("threshold", (m,)),
            unit_norm=jnp.asarray(edit.unit_norm, bool),
        )
    axes = np.ndim(edit.values)
    n = np.shape(edit.values)[-2] if axes > 1 else 1
    values = full("values", (batch, n, width), least=2)
    given = edit.mask if _traced(edit.mask) else np.asarray(edit.mask)
    if given.dtype != bool:
        raise UserError(
            f"{what}: mask holds {given.dtype}, not booleans; say which values are of real tokens."
        )
    if given.ndim >= axes:
        raise UserError(
            f"{what}: mask has shape {given.shape} for values of shape {np.shape(edit.values)}; "
            "give the mask of the rows that the values are of."
        )
    mask = _full(edit.mask, (batch, n), f"{what}: mask", dtype=bool)
    # Real tokens first, so that where a value lies is its token's position.
    order = jnp.argsort(~mask, axis=1, stable=True)
    values = jnp.take_along_axis(values, order[..., None], axis=1)
    mask = jnp.take_along_axis(mask, order, axis=1)
    return Patch(_to_length(values, length), _to_length(mask, length))


def _check_fit(given: Intervention, patch: Patch, tokens: Any, what: str) -> None:
    """Refuses a patch of prompts at a position that only one of the two runs has."""
    place = (patch.mask, given.rows, given.positions, given.phases)
    if any(map(_traced, jax.tree.leaves((tokens, place)))) or not given.phases[0]:
        return
    ours, n = np.asarray(tokens), np.shape(patch.values)[-2]
    theirs = np.broadcast_to(patch.mask, (len(ours), n)).sum(axis=1)
    edited = np.broadcast_to(np.asarray(given.rows) != 0, ours.shape)
    for row in np.flatnonzero(edited & (ours > 0) & (ours != theirs)):
        few, many = sorted((int(ours[row]), int(theirs[row])))
        if isinstance(given.positions, tuple):
            start, end = (int(np.broadcast_to(end, ours.shape)[row]) for end in given.positions)
            named = range(max(start, few), min(end, many))
        else:
            mask = np.asarray(given.positions)
            named = few + np.flatnonzero((mask if mask.ndim == 1 else mask[row])[few:many])
        if len(named):
            raise UserError(
                f"{what}: row {row} has {ours[row]} tokens and the run whose activations it gets "
                f"{theirs[row]}, so that only one has position {named[0]}; patch rows of equally "
                f"many tokens, or positions that both have, such as positions=(0, {few})."
            )


def _check_orientation(edit: Latents, width: int, what: str) -> None:
    """Refuses encoder columns by their name; a square matrix does not show which it holds."""
    shape = np.shape(edit.w_enc)
    if len(shape) == 2 and shape[1] != width == shape[0]:
        raise UserError(
            f"{what}: w_enc has shape {shape}, that is [d_in, m] as in SAELens; give its "
            f"transpose, the latents' rows [m, {width}]."
        )


def _weights(
    given: Intervention, batch: int, length: int, what: str
) -> Float[Array, "batch length"]:
    _check_row_weights(given.rows, what)
    rows = _full(given.rows, (batch,), f"{what}: rows")
    if isinstance(given.positions, tuple):
        check_pair(given.positions, what)
        start, end = (
            _full(value, (batch,), f"{what}: {name}", dtype=jnp.int32)[:, None]
            for name, value in zip(("start", "end"), given.positions, strict=True)
        )
        if not any(map(_traced, given.positions)) and np.any(
            (np.asarray(given.positions[0]) < 0)
            | (np.asarray(given.positions[1]) < np.asarray(given.positions[0]))
        ):
            raise UserError(
                f"{what}: positions starts below 0 or ends before its start; count from the row's "
                "first real token, which is 0."
            )
        where = (jnp.arange(length) >= start) & (jnp.arange(length) < end)
    else:
        mask = given.positions if _traced(given.positions) else np.asarray(given.positions)
        if mask.ndim not in (1, 2) or mask.dtype != bool:
            raise UserError(
                f"{what}: positions is neither a tuple (start, end) nor a mask; give two whole "
                "numbers in ( ), or booleans of shape [n] or [batch, n]."
            )
        full = _full(mask, (batch, mask.shape[-1]), f"{what}: positions", least=1, dtype=bool)
        where = _to_length(full, length)
    return jnp.where(where, rows[:, None], 0.0)


def _check_row_weights(rows: Any, what: str) -> None:
    """Refuses weights outside 0 to 1, which look like the numbers of rows."""
    weights = None if _traced(rows) else np.asarray(rows)
    if weights is None or weights.dtype.kind not in "iuf":
        return
    outside = weights[(weights < 0) | (weights > 1)]
    if outside.size:
        raise UserError(
            f"{what}: rows holds {outside[0]:g}; give each row's weight, from 0 (left alone) to 1 "
            "(edited), not the numbers of rows; the strength makes an edit stronger."
        )


def _to_length(values: Array, length: int) -> Array:
    """Axis 1 cut or filled up with zeros."""
    values = values[:, :length]
    padding = [(0, 0)] * values.ndim
    padding[1] = (0, length - values.shape[1])
    return jnp.pad(values, padding)


def _full(
    value: Any,
    shape: tuple[int, ...],
    what: str,
    least: int = 0,
    infinite: bool = False,
    dtype: Any = jnp.float32,
) -> Array:
    """`value` broadcast to `shape`; it has the last dimensions of it, `least` of them or more."""
    if not _traced(value):
        check_numbers(value, what, infinite)
    given = np.shape(value)
    if len(given) < least or given != shape[len(shape) - len(given) :]:
        fitting = [shape[i:] for i in range(len(shape) - least, -1, -1)]
        raise UserError(
            f"{what} has shape {given}, which does not fit this site and these rows; give "
            f"{' or '.join(str(s) if s else 'one number' for s in fitting)}."
        )
    if dtype is jnp.int32 and not _traced(value) and not _whole(value):
        raise UserError(f"{what} is {value}, not whole numbers; round it as it is meant.")
    return jnp.broadcast_to(jnp.asarray(value, dtype), shape)


def check_pair(positions: tuple[Any, ...], what: str) -> None:
    """Refuses positions that are a tuple, but no pair of numbers.

    Raises:
      UserError: it is one of another length, or None is in it.
    """
    if len(positions) != 2:
        raise UserError(f"{what}: positions is a tuple of {len(positions)}; give (start, end).")
    if any(end is None for end in positions):
        raise UserError(
            f"{what}: positions is {positions}, and None is no position; give (start, end) as "
            f"whole numbers, with end = {EVERYWHERE[1]} for all that follow."
        )


def check_numbers(value: Any, what: str, infinite: bool = False) -> None:
    """Refuses what is no array of numbers, and NaN; infinity too, unless it may be.

    Raises:
      UserError: it is one of them.
    """
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        array = np.asarray(None)
    if array.dtype.kind in "OSU":
        raise UserError(f"{what} is not an array of numbers; give one.")
    numbers = array.astype(np.float32)
    if np.any(np.isnan(numbers) if infinite else ~np.isfinite(numbers)):
        raise UserError(f"{what} holds NaN or infinity; look at where it was made.")


def _whole(value: Any) -> bool:
    return np.issubdtype(np.asarray(value).dtype, np.integer)


def _traced(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)
