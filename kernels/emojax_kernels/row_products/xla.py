"""The products of a sparse code with a matrix of rows, of which all gradients are made.

A code is `values [tokens, k]` and `indices [tokens, k]`; its dense form Z `[tokens, n]` has
`Z[t, indices[t, s]] += values[t, s]`. With a matrix of latent rows `[n, d]` and one of token rows
`[tokens, d]`:

    gather_sum   Z @ rows                    decode, and the gradient of x
    gather_dot   (e @ rows.T)[t, indices]    the gradient of values
    scatter_sum  Z.T @ e                     the gradients of both dictionary matrices
    latent_sums  Z.T @ 1                     the gradient of the encoder's bias

Sums are float32 whatever comes in.
"""

import jax
import jax.numpy as jnp
from jax import lax

from emojax_kernels.blocks import map_blocks

# Elements of gathered rows held at once: about what the second-level caches hold.
_GATHERED = 1 << 19
# Elements of dense codes held at once.
_DENSE = 1 << 26


def gather_sum(values: jax.Array, indices: jax.Array, rows: jax.Array) -> jax.Array:
    """`out[t] = sum_s values[t, s] * rows[indices[t, s]]`: float32 `[tokens, d]`."""
    return lax.platform_dependent(
        values, indices, rows, cpu=_gather_sum_by_slot, default=_gather_sum_dense
    )


def gather_dot(e: jax.Array, indices: jax.Array, rows: jax.Array) -> jax.Array:
    """`out[t, s] = <e[t], rows[indices[t, s]]>`: float32 `[tokens, k]`."""
    return lax.platform_dependent(
        e, indices, rows, cpu=_gather_dot_by_block, default=_gather_dot_dense
    )


def scatter_sum(values: jax.Array, indices: jax.Array, e: jax.Array, n: int) -> jax.Array:
    """`out[j] = sum of values[t, s] * e[t] over indices[t, s] == j`: float32 `[n, d]`."""
    if not e.shape[0]:
        return jnp.zeros((n, e.shape[1]), jnp.float32)

    def cpu(values, indices, e):
        return _scatter_sum_by_token(values, indices, e, n)

    def default(values, indices, e):
        return _scatter_sum_dense(values, indices, e, n)

    return lax.platform_dependent(values, indices, e, cpu=cpu, default=default)


def latent_sums(values: jax.Array, indices: jax.Array, n: int) -> jax.Array:
    """`out[j] = sum of values[t, s] over indices[t, s] == j`: float32 `[n]`.

    On a GPU it is a product too: XLA's scatter-add would sum a latent's entries there in an order
    that differs from run to run.
    """
    if not values.shape[0]:
        return jnp.zeros(n, jnp.float32)

    def by_entry(values, indices):
        return _latent_sums_by_entry(values, indices, n)

    def dense(values, indices):
        return _latent_sums_dense(values, indices, n)

    return lax.platform_dependent(values, indices, cuda=dense, rocm=dense, default=by_entry)


# The loops below start from their first term, not from zeros: inside shard_map the carry is then
# as device-varying as what is added to it.


def _gather_sum_by_slot(values, indices, rows):
    def term(slot):
        return values[:, slot, None].astype(jnp.float32) * _take(rows, indices[:, slot])

    k = indices.shape[1]
    return lax.fori_loop(1, k, lambda slot, total: total + term(slot), term(0), unroll=min(k, 8))


def _gather_dot_by_block(e, indices, rows):
    def dots(e, indices):
        return jnp.einsum("td,tkd->tk", e.astype(jnp.float32), _take(rows, indices))

    block = max(1, _GATHERED // (indices.shape[1] * rows.shape[1]))
    return map_blocks(dots, block, e, indices)


def _scatter_sum_by_token(values, indices, e, n):
    # One token's k rows at a time: nothing of size [tokens, k, d] exists.
    def add(token, total):
        update = values[token, :, None].astype(jnp.float32) * e[token].astype(jnp.float32)
        return total.at[indices[token]].add(update, mode="promise_in_bounds")

    return lax.fori_loop(1, e.shape[0], add, add(0, jnp.zeros((n, e.shape[1]), jnp.float32)))


def _latent_sums_by_entry(values, indices, n):
    flat = values.reshape(-1).astype(jnp.float32)
    return jnp.zeros(n, jnp.float32).at[indices.reshape(-1)].add(flat)


def _gather_sum_dense(values, indices, rows):
    def product(values, indices):
        return _dot(_dense(values, indices, rows.shape[0], rows.dtype), rows, ((1,), (0,)))

    return map_blocks(product, max(1, _DENSE // rows.shape[0]), values, indices)


def _gather_dot_dense(e, indices, rows):
    def dots(e, indices):
        return jnp.take_along_axis(_dot(e, rows, ((1,), (1,))), indices, axis=1)

    return map_blocks(dots, max(1, _DENSE // rows.shape[0]), e, indices)


def _scatter_sum_dense(values, indices, e, n, precision=None):
    tokens = e.shape[0]
    block = max(1, min(tokens, _DENSE // n))
    blocks = -(-tokens // block)
    spare = ((0, blocks * block - tokens), (0, 0))
    parts = [jnp.pad(a, spare).reshape(blocks, block, -1) for a in (values, indices, e)]

    def term(part):
        values, indices, e = (a[part] for a in parts)
        return _dot(_dense(values, indices, n, e.dtype), e, ((0,), (0,)), precision)

    return lax.fori_loop(1, blocks, lambda part, total: total + term(part), term(0))


def _latent_sums_dense(values, indices, n):
    ones = jnp.ones((values.shape[0], 1), jnp.float32)
    # As exact as the sums of float32 that it stands for.
    return _scatter_sum_dense(values, indices, ones, n, lax.Precision.HIGHEST)[:, 0]


def _take(rows, indices):
    return rows.at[indices].get(mode="promise_in_bounds").astype(jnp.float32)


def _dense(values, indices, n, dtype):
    tokens = jnp.arange(values.shape[0])[:, None]
    zero = jnp.zeros((values.shape[0], n), jnp.float32)
    return zero.at[tokens, indices].add(values, mode="promise_in_bounds").astype(dtype)


def _dot(a, b, axes, precision=None):
    return lax.dot_general(
        a, b, (axes, ((), ())), precision=precision, preferred_element_type=jnp.float32
    )
