"""Whole losses made of the operations: AuxK, Matryoshka prefixes, and what holds for every one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emojax_kernels import (
    RowAdam,
    decode_error,
    fused_row_update,
    init_rows,
    sparse_decode,
    topk_encode,
)
from emojax_kernels.shapes import Shape
from kernel_problems import assert_close, dictionary

SHAPE = Shape(12, 21, 203, 5)
PREFIXES = (31, 100, 203)
DEAD = jnp.arange(SHAPE.n) % 3 == 1


def auxk_and_matryoshka(implementation, x, w_enc, b_enc, w_dec, b_dec):
    """Reconstruction by nested prefixes of the dictionary, and of the error by dead latents.

    The error is not held constant, so that AuxK's cotangent reaches everything there is.
    """
    by = {"implementation": implementation}
    values, indices = topk_encode(x - b_dec, w_enc, b_enc, SHAPE.k, **by)
    total = 0.0
    for prefix in PREFIXES[:-1]:
        inside = jnp.where(indices < prefix, values, 0)
        x_hat = sparse_decode(inside, indices, w_dec, b_dec, **by)
        total += ((x_hat - x) ** 2).mean()
    squared, error = decode_error(values, indices, w_dec, b_dec, x, **by)
    aux = topk_encode(x - b_dec, w_enc, b_enc, 2 * SHAPE.k, mask=DEAD, **by)
    left = decode_error(*aux, w_dec, jnp.zeros(SHAPE.d), -error, **by)[0]
    return total + squared.mean() + left.mean() / squared.mean()


@pytest.mark.parametrize("implementation", ["xla", "triton"])
def test_auxk_and_matryoshka_gradients_equal_the_references(implementation):
    if implementation == "triton":
        pytest.importorskip("triton", reason="the Triton kernels need triton (extra test)")
    inputs = dictionary(SHAPE)
    got, want = (
        jax.jit(jax.value_and_grad(functools.partial(auxk_and_matryoshka, name), range(5)))(*inputs)
        for name in (implementation, "reference")
    )
    assert_close(got, want)
    # AuxK reaches encoder rows that the reconstruction leaves alone, prefixes those of its latents.
    assert jnp.abs(got[1][1]).sum(1)[DEAD].any() and jnp.abs(got[1][1]).sum(1)[~DEAD].any()


def test_several_losses_are_one_row_update_of_stacked_tokens():
    """A prefix loss stacked under the whole one moves rows as the gradient of their sum does."""
    settings = RowAdam(unit_norm_decoder=False)
    x, w_enc, b_enc, w_dec, b_dec = dictionary(SHAPE)
    rows = init_rows(w_enc, b_enc, w_dec, settings)
    values, indices = topk_encode(x, w_enc, b_enc, SHAPE.k)
    stacked = []
    for prefix in (PREFIXES[1], SHAPE.n):
        inside = jnp.where(indices < prefix, values, 0)
        _, error = decode_error(inside, indices, w_dec, b_dec, x)
        stacked.append((x, 2 * error, inside, indices))

    def loss(params):
        w_enc, b_enc, w_dec = params
        values, indices = topk_encode(x, w_enc, b_enc, SHAPE.k, implementation="reference")
        total = 0.0
        for prefix in (PREFIXES[1], SHAPE.n):
            inside = jnp.where(indices < prefix, values, 0)
            total += decode_error(inside, indices, w_dec, b_dec, x, implementation="reference")[
                0
            ].sum()
        return total

    want = jax.jit(jax.grad(loss))((w_enc, b_enc, w_dec))
    x, error, values, indices = (jnp.concatenate(parts) for parts in zip(*stacked, strict=True))
    new, _ = fused_row_update(
        rows, x, error, values, indices, learning_rate=1e-3, settings=settings
    )
    # After one step the first moment is (1 - b1) times the gradient.
    got = [m / (1 - settings.b1) for m in (new.m_enc, new.m_bias, new.m_dec)]
    assert_close(got, list(want))


def whole_step(x, rows, b_dec):
    """Loss, gradients and the fused update of one batch."""
    settings = RowAdam()

    def loss(x, w_enc, b_enc, w_dec, b_dec):
        values, indices = topk_encode(x, w_enc, b_enc, SHAPE.k)
        squared, error = decode_error(values, indices, w_dec, b_dec, x)
        return squared.mean(), (values, indices, error)

    arrays = (x, rows.w_enc, rows.b_enc, rows.w_dec, b_dec)
    (value, code), gradients = jax.value_and_grad(loss, range(5), has_aux=True)(*arrays)
    values, indices, error = code
    new, d_pre = fused_row_update(
        rows, x, error, values, indices, learning_rate=1e-3, settings=settings
    )
    return value, (gradients, d_pre), new


def test_a_vmapped_step_is_the_step_of_each_and_two_runs_are_bitwise_equal():
    x, w_enc, b_enc, w_dec, b_dec = dictionary(SHAPE)
    rows = init_rows(w_enc, b_enc, w_dec, RowAdam())
    pair = jnp.stack([x, x[::-1] * 1.5])
    each = jax.jit(whole_step)
    want = jax.tree.map(lambda *a: jnp.stack(a), *(each(one, rows, b_dec) for one in pair))
    got = jax.jit(jax.vmap(whole_step, in_axes=(0, None, None)))(pair, rows, b_dec)
    # Adam's first step is a sign wherever a gradient is not 0: compare the moments, not the rows.
    moments = [(new.m_enc, new.m_dec, new.m_bias, new.v_enc) for _, _, new in (got, want)]
    assert_close((*got[:2], moments[0]), (*want[:2], moments[1]))
    again = each(pair[0], rows, b_dec), each(pair[0], rows, b_dec)
    for a, b in zip(*map(jax.tree.leaves, again), strict=True):
        np.testing.assert_array_equal(a, b)
