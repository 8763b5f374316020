"""Train a TopK sparse autoencoder with optax, and find the dictionary that made the data."""

import jax
import jax.numpy as jnp
import optax
from emojax_kernels import sparse_decode, topk_encode

D, N, K, TOKENS, STEPS = 64, 512, 4, 1024, 1000


def unit(rows):
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)


def loss(params, x):
    values, indices = topk_encode(x - params["b_dec"], params["w_enc"], params["b_enc"], K)
    x_hat = sparse_decode(values, indices, params["w_dec"], params["b_dec"])
    return ((x_hat - x) ** 2).sum(-1).mean()


@jax.jit
def step(params, state, key):
    which, size = jax.random.split(key)  # each token is a sum of K true directions
    atoms = truth[jax.random.randint(which, (TOKENS, K), 0, len(truth))]
    x = (jax.random.uniform(size, (TOKENS, K, 1), minval=0.5) * atoms).sum(1)
    value, gradient = jax.value_and_grad(loss)(params, x)
    updates, state = optimiser.update(gradient, state)
    params = optax.apply_updates(params, updates)
    return {**params, "w_dec": unit(params["w_dec"])}, state, value


truth, rows = (unit(jax.random.normal(jax.random.key(i), (n, D))) for i, n in enumerate((256, N)))
params = {"w_enc": rows, "b_enc": jnp.zeros(N), "w_dec": rows, "b_dec": jnp.zeros(D)}
optimiser = optax.adam(optax.cosine_decay_schedule(3e-3, STEPS))
state = optimiser.init(params)
for i in range(STEPS):
    params, state, value = step(params, state, jax.random.key(i))
    if i % 100 == 0 or i == STEPS - 1:
        found = (jnp.abs(truth @ params["w_dec"].T).max(1) > 0.9).mean()
        print(f"step {i:4d}   loss {value:.4f}   true directions found {found:.0%}", flush=True)
