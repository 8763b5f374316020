"""The decoder: pure functions over a pytree of parameters, and a Flax NNX module around them.

One block serves every layer: what differs between layers (window, rope) is data indexed by the
layer's number, so that a loop over layers compiles once whatever the depth.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from emojax.lm import attention, rope
from emojax.lm.config import DecoderConfig

# Where a pass can be read and changed, in its order. `z` is the heads' outputs side by side, which
# the output matrix reads, and `mlp_hidden` is what the MLP's last matrix reads. `attn_out` and
# `mlp_out` are what is added to the residual stream; `final_norm` is what the unembedding reads.
SITES = (
    "resid_pre",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_hidden",
    "mlp_out",
    "resid_post",
    "final_norm",
)

Params = dict[str, Any]
Activation = Float[Array, "batch time width"]
KeysOrValues = Float[Array, "batch kv_heads keys head_dim"]

# visit(site, layer, h) is called at every site and returns what the pass goes on with.
Visit = Callable[[str, Int[Array, ""], Activation], Activation]
# store(layer, k, v) keeps the new keys and values and returns all those to attend to.
Store = Callable[[Int[Array, ""], KeysOrValues, KeysOrValues], tuple[KeysOrValues, KeysOrValues]]


class Context(NamedTuple):
    """What a block needs to know about the tokens: positions, and which keys are real."""

    positions: Int[Array, "batch time"]
    key_positions: Int[Array, "batch keys"]
    key_mask: Bool[Array, "batch keys"]
    cos: Float[Array, "ropes batch time half"]
    sin: Float[Array, "ropes batch time half"]


def shapes(config: DecoderConfig) -> dict[str, Any]:
    """The parameters' shapes, as the nested dictionary that holds them; layers are axis 0."""
    d, f, h = config.d_model, config.d_ff, config.head_dim
    n, kv = config.n_heads * h, config.n_kv_heads * h
    matrices = {"q": (d, n), "k": (d, kv), "v": (d, kv), "o": (n, d), "up": (d, f), "down": (f, d)}
    if config.gated:
        matrices["gate"] = (d, f)
    norms = ["attn_norm", "mlp_norm"]
    if config.post_norms:
        norms += ["attn_post_norm", "mlp_post_norm"]
    layer = dict(matrices) | {name: (d,) for name in norms}
    layer |= {f"{name}_bias": (matrices[name][1],) for name in config.biases}
    if config.qk_norm:
        layer |= {"q_norm": (h,), "k_norm": (h,)}

    outer: dict[str, Any] = {"embed": (config.vocab_size, d), "final_norm": (d,)}
    if not config.ropes:
        outer["positions"] = (config.context, d)
    if not config.tied:
        outer["unembed"] = (d, config.vocab_size)
    if config.norm == "layer":
        layer |= {f"{name}_bias": (d,) for name in norms}
        outer["final_norm_bias"] = (d,)
    return outer | {"layers": {name: (config.n_layers, *shape) for name, shape in layer.items()}}


def site_width(config: DecoderConfig, site: str) -> int:
    """How many numbers a token has at one of `SITES`."""
    widths = {"z": config.n_heads * config.head_dim, "mlp_hidden": config.d_ff}
    return widths.get(site, config.d_model)


def init(config: DecoderConfig, key: Key[Array, ""], dtype: Any = jnp.float32) -> Params:
    """Random parameters: matrices of variance 1 / fan-in, norms near the identity, small biases."""
    leaves, structure = jax.tree.flatten(shapes(config), is_leaf=lambda x: isinstance(x, tuple))
    paths = jax.tree.leaves_with_path(shapes(config), is_leaf=lambda x: isinstance(x, tuple))

    def draw(path: Any, shape: tuple[int, ...], key: Key[Array, ""]) -> Array:
        noise = jax.random.normal(key, shape, jnp.float32)
        name = path[-1].key
        if name.endswith("norm"):
            return (0.1 * noise + (0.0 if config.norm_plus_one else 1.0)).astype(dtype)
        if name.endswith("bias"):
            return (0.1 * noise).astype(dtype)
        fan_in = shape[-1] if name in ("embed", "positions") else shape[-2]
        return (noise * fan_in**-0.5).astype(dtype)

    keys = jax.random.split(key, len(leaves))
    drawn = [draw(path, shape, k) for (path, shape), k in zip(paths, keys, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def positions_of(mask: Bool[Array, "batch time"]) -> Int[Array, "batch time"]:
    """Each real token's number in its row, from 0, wherever the padding is."""
    return jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)


def context_of(
    config: DecoderConfig,
    positions: Int[Array, "batch time"],
    key_positions: Int[Array, "batch keys"],
    key_mask: Bool[Array, "batch keys"],
    length: Int[Array, ""] | None = None,
) -> Context:
    """The context of tokens at `positions` that attend to the given keys.

    `length` is how many tokens the longest row has, if these are only part of a batch.
    """
    length = jnp.max(positions) + 1 if length is None else length
    rotary_dim = config.rotary_dim or config.head_dim
    cos, sin = rope.tables(config.ropes, rotary_dim, positions, length)
    return Context(positions, key_positions, key_mask, cos, sin)


def rms_norm(
    config: DecoderConfig, x: Float[Array, "*shape width"], weight: Float[Array, " width"]
) -> Float[Array, "*shape width"]:
    """Root-mean-square norm in float32 (Zhang & Sennrich 2019, arXiv:1910.07467)."""
    wide = x.astype(jnp.float32)
    square = jnp.mean(wide * wide, axis=-1, keepdims=True)
    gain = weight.astype(jnp.float32) + (1.0 if config.norm_plus_one else 0.0)
    return (wide * lax.rsqrt(square + config.norm_eps) * gain).astype(x.dtype)


def norm(
    config: DecoderConfig, p: Params, name: str, x: Float[Array, "*shape d_model"]
) -> Float[Array, "*shape d_model"]:
    """The residual stream's norm of that name: RMS, or layer norm (Ba et al. 2016, 1607.06450)."""
    if config.norm == "rms":
        return rms_norm(config, x, p[name])
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    normed = centred * lax.rsqrt(variance + config.norm_eps) * p[name].astype(jnp.float32)
    return (normed + p[f"{name}_bias"].astype(jnp.float32)).astype(x.dtype)


def embed(
    config: DecoderConfig,
    params: Params,
    tokens: Int[Array, "batch time"],
    positions: Int[Array, "batch time"],
) -> Activation:
    """The residual stream before layer 0; positions count where they are learned vectors."""
    h = params["embed"][tokens]
    h = h * jnp.asarray(config.embedding_scale, h.dtype)
    return h if config.ropes else h + params["positions"][positions]


def block(
    config: DecoderConfig,
    p: Params,
    layer: Int[Array, ""],
    h: Activation,
    context: Context,
    visit: Visit,
    store: Store,
) -> Activation:
    """One layer: attention and MLP, each added to the residual stream.

    With `config.parallel` both read `resid_pre`, and `resid_mid` is only a step of the sum.
    """
    # What an intervention leaves alone must keep its very bits, although it changes what the
    # compiler fuses. A barrier at every site stops fusion across it. The CPU's compiler drops
    # barriers, but it will not make a quotient twice: divided by a 1 that it cannot foresee, a
    # residual that several steps read is rounded and written down before them.
    one = (layer >= 0).astype(h.dtype)

    def at(site: str, h: Activation) -> Activation:
        return lax.optimization_barrier(visit(site, layer, lax.optimization_barrier(h / one)))

    h = before = at("resid_pre", h)

    x = norm(config, p, "attn_norm", h)
    q = _heads(_linear(p, "q", x), config.head_dim)
    k = _heads(_linear(p, "k", x), config.head_dim)
    v = _heads(_linear(p, "v", x), config.head_dim)
    if config.qk_norm:
        q = rms_norm(config, q, p["q_norm"])
        k = rms_norm(config, k, p["k_norm"])
    if config.ropes:
        which = jnp.asarray(config.rope_of_layer)[layer]
        q, k = (rope.rotate(x, context.cos[which], context.sin[which]) for x in (q, k))
    # A head's keys side by side, as the products of attention read them.
    keys, values = store(layer, k.swapaxes(1, 2), v.swapaxes(1, 2))
    z = attention.attend(
        q,
        keys,
        values,
        context.positions,
        context.key_positions,
        context.key_mask,
        jnp.asarray(config.windows)[layer],
        config.query_scale,
        config.attention_softcap,
    )
    out = _linear(p, "o", at("z", z.reshape(*h.shape[:2], -1)))
    if config.post_norms:
        out = norm(config, p, "attn_post_norm", out)
    h = at("resid_mid", h + at("attn_out", out))

    x = norm(config, p, "mlp_norm", before if config.parallel else h)
    out = _linear(p, "down", at("mlp_hidden", _mlp_hidden(config, p, x)))
    if config.post_norms:
        out = norm(config, p, "mlp_post_norm", out)
    return at("resid_post", h + at("mlp_out", out))


def by_layer(params: Params) -> Params:
    """The parameters with a tuple of layers, each its number and its own parameters, on one CPU.

    XLA's CPU compiler copies a layer's weights out of their stack at every turn of a loop, before
    its products read them; for a step of one token that can cost as much as the products. These are
    arrays of their own inside the stack's memory, so that nothing is copied, and `scan_layers` goes
    through them without a loop. On accelerators, over several devices and under a trace the layers
    stay stacked.
    """
    if not all(map(_on_one_cpu, params["layers"].values())):
        return params
    stacks = {name: np.asarray(stack) for name, stack in params["layers"].items()}
    # The number is data, as it is in a loop: `block` relies on a layer that cannot be foreseen.
    layers = tuple(
        (
            jnp.asarray(layer, jnp.int32),
            {name: jax.device_put(a[layer]) for name, a in stacks.items()},
        )
        for layer in range(len(stacks["attn_norm"]))
    )
    return params | {"layers": layers}


def scan_layers(params: Params, carry: Any, step: Callable[[Array, Params, Any], Any]) -> Any:
    """`carry` after `step(layer, layer's parameters, carry)` over all layers; differentiable.

    The layers are stacked, or as `by_layer` left them.
    """
    if isinstance(params["layers"], tuple):
        for layer, p in params["layers"]:
            carry = step(layer, p, carry)
        return carry
    n_layers = params["layers"]["attn_norm"].shape[0]

    def body(carry: Any, xs: tuple[Array, Params]) -> tuple[Any, None]:
        return step(*xs, carry), None

    return lax.scan(body, carry, (jnp.arange(n_layers), params["layers"]))[0]


def loop_layers(
    params: Params, carry: Any, stop: Int[Array, ""], step: Callable[[Array, Params, Any], Any]
) -> Any:
    """As `scan_layers`, over layers 0 to `stop` - 1, a traced number; not differentiable."""

    def body(layer: Array, carry: Any) -> Any:
        at_layer = jax.tree.map(
            lambda a: lax.dynamic_index_in_dim(a, layer, keepdims=False), params["layers"]
        )
        return step(layer, at_layer, carry)

    return lax.fori_loop(0, stop, body, carry)


def final_norm(
    config: DecoderConfig, params: Params, h: Float[Array, "*shape d_model"]
) -> Float[Array, "*shape d_model"]:
    """The norm between the last layer and the unembedding."""
    return norm(config, params, "final_norm", h)


def unembed(
    config: DecoderConfig, params: Params, h: Float[Array, "*shape d_model"]
) -> Float[Array, "*shape vocab"]:
    """Logits, in float32, of what `final_norm` returned."""
    name, axes = ("embed", "vd") if config.tied else ("unembed", "dv")
    out = jnp.einsum(f"...d,{axes}->...v", h, params[name], preferred_element_type=jnp.float32)
    return attention.soft_cap(out, config.logit_softcap)


def keep_nothing(
    layer: Int[Array, ""], k: KeysOrValues, v: KeysOrValues
) -> tuple[KeysOrValues, KeysOrValues]:
    """The `Store` of a pass over whole rows: attend to the new keys and values only."""
    return k, v


def normed(
    config: DecoderConfig,
    params: Params,
    tokens: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    visit: Visit,
) -> Activation:
    """The `final_norm` site after all layers; differentiable."""
    positions = positions_of(mask)
    context = context_of(config, positions, positions, mask)

    def step(layer: Array, p: Params, h: Activation) -> Activation:
        return block(config, p, layer, h, context, visit, keep_nothing)

    h = scan_layers(params, embed(config, params, tokens, positions), step)
    return visit("final_norm", jnp.asarray(config.n_layers - 1), final_norm(config, params, h))


@partial(jax.jit, static_argnums=0)
def logits(
    config: DecoderConfig,
    params: Params,
    tokens: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"],
) -> Float[Array, "batch time vocab"]:
    """Next-token logits at every position, in float32; those at padding have no meaning.

    That is `batch * time * vocab` numbers; `loss.next_token_loss` needs far fewer.
    """
    h = normed(config, params, tokens, mask, lambda site, layer, h: h)
    return unembed(config, params, h)


class Decoder(nnx.Module):
    """The decoder as a Flax NNX module, whose parameters are those of the functions above.

    Layers are stacked on axis 0 and nothing is shared, so `nnx.split`, `nnx.merge` and the
    transforms of tree mode all hold. `Decoder(config, init(config, key))` draws a new one.
    """

    def __init__(self, config: DecoderConfig, params: Params):
        self.config = config
        self.params = nnx.data(jax.tree.map(nnx.Param, params))

    def __call__(
        self, tokens: Int[Array, "batch time"], mask: Bool[Array, "batch time"]
    ) -> Float[Array, "batch time vocab"]:
        """Next-token logits; see `logits`."""
        return logits(self.config, self.pure_params(), tokens, mask)

    def pure_params(self) -> Params:
        """The parameters as a plain nested dictionary of arrays."""
        is_param = lambda leaf: isinstance(leaf, nnx.Param)  # noqa: E731
        return jax.tree.map(lambda leaf: leaf[...], self.params, is_leaf=is_param)


def _on_one_cpu(array: Any) -> bool:
    if isinstance(array, jax.core.Tracer) or not isinstance(array, jax.Array):
        return False
    return [device.platform for device in array.devices()] == ["cpu"]


def _heads(
    x: Float[Array, "batch time width"], head_dim: int
) -> Float[Array, "batch time heads head_dim"]:
    return x.reshape(*x.shape[:2], -1, head_dim)


def _linear(
    p: Params, name: str, x: Float[Array, "batch time width"]
) -> Float[Array, "batch time out"]:
    out = x @ p[name]
    bias = p.get(f"{name}_bias")
    return out if bias is None else out + bias


def _mlp_hidden(config: DecoderConfig, p: Params, x: Activation) -> Float[Array, "batch time d_ff"]:
    act = ACTIVATIONS[config.activation]
    if config.gated:
        return act(_linear(p, "gate", x)) * _linear(p, "up", x)
    return act(_linear(p, "up", x))


ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}
