"""Fits interventions to a model and a batch: all checks, before anything is compiled."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from emojax.errors import UserError
from emojax.lm import decoder
from emojax.lm.config import DecoderConfig
from emojax.lm.intervene import MODES, Direction, Intervention, Latents, Patch, Prepared


def prepare(
    config: DecoderConfig, interventions: Sequence[Intervention], batch: int, length: int
) -> tuple[Prepared, ...]:
    """Checks interventions and gives each array its full shape, before anything is compiled.

    Arrays traced by JAX pass unchecked but for their shapes, so that gradients flow through.

    Args:
      config: the decoder's traits.
      interventions: in the order in which they act.
      batch: how many rows the pass has.
      length: how many positions a row can have in it, generated tokens included.

    Raises:
      UserError: a site or layer does not exist, a shape does not fit the model or the batch, a
        number is NaN or infinite, or a range of positions is none.
    """
    return tuple(
        _prepare(config, given, batch, length, f"Intervention {i + 1} of {len(interventions)}")
        for i, given in enumerate(interventions)
    )


def check_place(config: DecoderConfig, site: str, layer: Any, what: str) -> None:
    """Refuses a site or layer that the model does not have; a traced layer passes.

    Raises:
      UserError: one is not there, or `final_norm` is asked for at any layer but the last.
    """
    if site not in decoder.SITES:
        raise UserError(
            f"{what} is at the site {site!r}, which does not exist; "
            f"use one of {', '.join(decoder.SITES)}."
        )
    first = config.n_layers - 1 if site == "final_norm" else 0
    if not _traced(layer) and not first <= int(layer) < config.n_layers:
        raise UserError(
            f"{what} is at layer {layer}, where there is no {site}; "
            f"choose a layer from {first} to {config.n_layers - 1}."
        )


def _prepare(
    config: DecoderConfig, given: Intervention, batch: int, length: int, what: str
) -> Prepared:
    check_place(config, given.site, given.layer, what)
    what = f"{what} (at {given.site}, layer {given.layer})"
    return Prepared(
        site=given.site,
        layer=jnp.asarray(given.layer, jnp.int32),
        edit=_edit(given.edit, batch, length, decoder.site_width(config, given.site), what),
        weights=_weights(given, batch, length, what),
        phases=jnp.asarray(given.phases, bool),
    )


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
        m = (np.shape(edit.w_enc) or (1,))[0]
        return Latents(
            mode=jnp.asarray(edit.mode, jnp.int32),
            value=full("value", (batch, m)),
            w_enc=full("w_enc", (m, width), least=2),
            b_enc=full("b_enc", (m,)),
            w_dec=full("w_dec", (m, width), least=2),
            threshold=full("threshold", (m,)),
            unit_norm=jnp.asarray(edit.unit_norm, bool),
        )
    values = full("values", (batch, _patched(edit), width), least=2)
    return Patch(_to_length(values, length))


def _check_orientation(edit: Latents, width: int, what: str) -> None:
    """Refuses encoder columns by their name; a square matrix does not show which it holds."""
    shape = np.shape(edit.w_enc)
    if len(shape) == 2 and shape[1] != width == shape[0]:
        raise UserError(
            f"{what}: w_enc has shape {shape}, that is [d_in, m] as in SAELens; give its "
            f"transpose, the latents' rows [m, {width}]."
        )


def _patched(edit: Patch) -> int:
    """How many positions a patch has values for."""
    shape = np.shape(edit.values)
    return shape[-2] if len(shape) > 1 else 0


def _weights(
    given: Intervention, batch: int, length: int, what: str
) -> Float[Array, "batch length"]:
    rows = _full(given.rows, (batch,), f"{what}: rows")
    if isinstance(given.positions, tuple):
        if len(given.positions) != 2:
            raise UserError(
                f"{what}: positions is a tuple of {len(given.positions)}; give (start, end)."
            )
        start, end = (
            _full(value, (batch,), f"{what}: {name}", dtype=jnp.int32)[:, None]
            for name, value in zip(("start", "end"), given.positions, strict=True)
        )
        if not any(map(_traced, given.positions)) and bool(jnp.any((start < 0) | (end < start))):
            raise UserError(
                f"{what}: positions starts below 0 or ends before its start; count from the row's "
                "first real token, which is 0."
            )
        where = (jnp.arange(length) >= start) & (jnp.arange(length) < end)
    else:
        mask = given.positions if _traced(given.positions) else np.asarray(given.positions)
        if mask.ndim not in (1, 2) or mask.dtype != bool:
            raise UserError(
                f"{what}: positions is neither (start, end) nor a mask; give a pair of numbers or "
                "booleans of shape [n] or [batch, n]."
            )
        full = _full(mask, (batch, mask.shape[-1]), f"{what}: positions", least=1, dtype=bool)
        where = _to_length(full, length)
    if isinstance(given.edit, Patch):
        where &= jnp.arange(length) < _patched(given.edit)
    return jnp.where(where, rows[:, None], 0.0)


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
    given = np.shape(value)
    if len(given) < least or given != shape[len(shape) - len(given) :]:
        raise UserError(
            f"{what} has shape {given}, which does not fit {shape}; "
            "give it the site's width and either one row or as many as the batch."
        )
    if not _traced(value):
        numbers = np.asarray(value, np.float32)
        if np.any(np.isnan(numbers) if infinite else ~np.isfinite(numbers)):
            raise UserError(f"{what} holds NaN or infinity; look at where it was made.")
    return jnp.broadcast_to(jnp.asarray(value, dtype), shape)


def _traced(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)
