"""The dictionary with its optimiser state, and the settings of its update."""

import dataclasses

import jax
import jax.numpy as jnp

from emojax_kernels import checks
from emojax_kernels.fused_row_update import moments
from emojax_kernels.fused_row_update.moments import Moment

MOMENTS = ("float32", "bfloat16", "int8")


@dataclasses.dataclass(frozen=True)
class RowAdam:
    """Settings of the fused update; hashable, static under `jax.jit`.

    Attributes:
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        unit_norm_decoder: take from each decoder gradient what lies along its row, and bring every
            decoder row back to unit norm after the step (Bricken et al. 2023).
        moments: "float32"; "bfloat16" (stochastically rounded); or "int8" (block-wise, see
            `moments.py`).
        shadow: None, or "bfloat16" to write copies of both matrices for the next step's products.
        seed: of the stochastic rounding.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    unit_norm_decoder: bool = True
    moments: str = "float32"
    shadow: str | None = None
    seed: int = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowState:
    """All that one latent owns, stacked over latents.

    Attributes:
        w_enc: `[n, d]`, float32 or bfloat16 (then stochastically rounded).
        w_dec: `[n, d]`, of w_enc's dtype.
        b_enc: `[n]`, float32.
        m_enc, v_enc, m_dec, v_dec: Adam's moments of the matrices.
        m_bias, v_bias: `[n]`, float32, Adam's moments of b_enc.
        shadow_enc, shadow_dec: `[n, d]`, bfloat16, or None.
        step: int32, updates done.
    """

    w_enc: jax.Array
    w_dec: jax.Array
    b_enc: jax.Array
    m_enc: Moment
    v_enc: Moment
    m_dec: Moment
    v_dec: Moment
    m_bias: jax.Array
    v_bias: jax.Array
    shadow_enc: jax.Array | None
    shadow_dec: jax.Array | None
    step: jax.Array


def init_rows(w_enc: jax.Array, b_enc: jax.Array, w_dec: jax.Array, settings: RowAdam) -> RowState:
    """State before the first update: zero moments.

    The arrays are copied: each leaf owns its buffer, so all of the state can be donated, the
    caller's arrays live on, and w_enc and w_dec may be one array.

    Args:
        w_enc: `[n, d]`, float32 or bfloat16.
        b_enc: `[n]`, float32.
        w_dec: `[n, d]`, of w_enc's dtype.
        settings: of the updates to come.

    Raises:
        TypeError: for a dtype that is not supported.
        ValueError: for shapes that do not agree, or unknown moments or shadow.
    """
    check_weights("init_rows", w_enc, b_enc, w_dec, settings)

    def shadow(w: jax.Array) -> jax.Array | None:
        return None if settings.shadow is None else jnp.array(w, settings.shadow, copy=True)

    first = [moments.zeros(w_enc.shape, settings.moments, signed=True) for _ in range(2)]
    second = [moments.zeros(w_enc.shape, settings.moments, signed=False) for _ in range(2)]
    return RowState(
        w_enc=jnp.array(w_enc, copy=True),
        w_dec=jnp.array(w_dec, copy=True),
        b_enc=jnp.array(b_enc, copy=True),
        m_enc=first[0],
        v_enc=second[0],
        m_dec=first[1],
        v_dec=second[1],
        m_bias=jnp.zeros(b_enc.shape, jnp.float32),
        v_bias=jnp.zeros(b_enc.shape, jnp.float32),
        shadow_enc=shadow(w_enc),
        shadow_dec=shadow(w_dec),
        step=jnp.zeros((), jnp.int32),
    )


def check_weights(
    op: str, w_enc: jax.Array, b_enc: jax.Array, w_dec: jax.Array, settings: RowAdam
) -> None:
    """Raise unless the weights and the settings are of a supported kind."""
    if settings.moments not in MOMENTS:
        raise ValueError(
            f"{op}: moments={settings.moments!r}; supported: {', '.join(map(repr, MOMENTS))}."
        )
    if settings.shadow not in (None, "bfloat16"):
        raise ValueError(f"{op}: shadow={settings.shadow!r}; supported: None, 'bfloat16'.")
    checks.shapes(op, {"w_enc": (w_enc, "n d"), "w_dec": (w_dec, "n d"), "b_enc": (b_enc, "n")})
    checks.dtypes(op, {"w_enc": w_enc, "w_dec": w_dec}, {})
    if b_enc.dtype != jnp.float32:
        raise TypeError(f"{op}: b_enc is {b_enc.dtype}; supported: float32.")


def check_rows(op: str, rows: RowState, settings: RowAdam) -> None:
    """Raise unless `rows` have the arrays, shapes and dtypes that `init_rows` makes for them."""
    weights = (rows.w_enc, rows.b_enc, rows.w_dec)
    check_weights(op, rows.w_enc, rows.b_enc, rows.w_dec, settings)
    plain = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in weights)
    made = jax.eval_shape(lambda e, b, d: _by_name(init_rows(e, b, d, settings)), *plain)
    wanted, given = (
        {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves.items()}
        for leaves in (made, _by_name(rows))
    )
    for name in wanted | given:
        if given.get(name) != wanted.get(name):
            raise ValueError(
                f"{op}: rows{name} is {given.get(name, 'missing')}; supported with moments="
                f"{settings.moments!r} and shadow={settings.shadow!r}: "
                f"{wanted.get(name, 'none')}. Make the rows by `init_rows` with these settings."
            )


def _by_name(rows: RowState) -> dict[str, jax.Array]:
    return {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(rows)
    }
