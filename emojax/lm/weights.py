"""A Hugging Face directory's safetensors as the decoder's parameters."""

import contextlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from emojax.errors import UserError
from emojax.lm import decoder
from emojax.lm.config import DecoderConfig

# Our matrices are [in, out], as `x @ w` reads them; PyTorch's linear layers store [out, in].
_TRANSPOSED = frozenset(("q", "k", "v", "o", "gate", "up", "down", "unembed"))
_OUTER = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "unembed": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
# With norms after attention and MLP too, `post_attention_layernorm` is what it says.
_LAYER_WITH_POST_NORMS = _LAYER | {
    "attn_post_norm": "post_attention_layernorm.weight",
    "mlp_norm": "pre_feedforward_layernorm.weight",
    "mlp_post_norm": "post_feedforward_layernorm.weight",
}


def load(directory: Path, config: DecoderConfig, dtype: Any = jnp.float32) -> decoder.Params:
    """Reads the weights under `directory` into the decoder's parameters.

    Args:
      directory: holds `model.safetensors.index.json` and the files that it lists, or else
        `*.safetensors`.
      config: the decoder that they are for.
      dtype: what the parameters are converted to.

    Raises:
      UserError: a file is missing or broken, or tensors are missing, unexpected or of the wrong
        shape; the message lists all of them.
    """
    with contextlib.ExitStack() as stack:
        where: dict[str, Any] = {}
        for path in _files(directory):
            try:
                file = stack.enter_context(safetensors.safe_open(path, framework="flax"))
            except (OSError, safetensors.SafetensorError) as error:
                raise UserError(
                    f"The weights file {path} cannot be read ({error}); fetch or make it again."
                ) from None
            where |= dict.fromkeys(file.keys(), file)
        wanted = decoder.shapes(config)
        _check(directory, config, wanted, where)

        def read(name: str, leaf: str) -> np.ndarray:
            tensor = np.asarray(where[name].get_tensor(name))
            return tensor.T if leaf in _TRANSPOSED else tensor

        def stacked(leaf: str, shape: tuple[int, ...]) -> jax.Array:
            # Filled layer by layer, so that no more than one leaf is in memory twice.
            out = np.empty(shape, dtype)
            for layer in range(config.n_layers):
                out[layer] = read(_layer_name(config, leaf, layer), leaf)
            return jnp.asarray(out)

        params: decoder.Params = {
            leaf: jnp.asarray(read(_OUTER[leaf], leaf), dtype) for leaf in wanted if leaf in _OUTER
        }
        params["layers"] = {leaf: stacked(leaf, s) for leaf, s in wanted["layers"].items()}
        return params


def _layer_name(config: DecoderConfig, leaf: str, layer: int) -> str:
    names = _LAYER_WITH_POST_NORMS if config.post_norms else _LAYER
    return f"model.layers.{layer}.{names[leaf]}"


def _files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if index.exists():
        try:
            files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(
                f"{index} is not an index of safetensors ({error}); fetch it again."
            ) from None
        paths = [directory / file for file in files]
    else:
        paths = sorted(directory.glob("*.safetensors"))
    missing = [path.name for path in paths if not path.is_file()]
    if missing or not paths:
        raise UserError(
            f"The folder {directory} lacks {', '.join(missing) or '*.safetensors'}; "
            "name a Hugging Face directory with the model's weights."
        )
    return paths


def _check(directory: Path, config: DecoderConfig, wanted: Any, where: dict[str, Any]) -> None:
    """Compares names and shapes before any tensor is read."""
    expected = {_OUTER[leaf]: (leaf, shape) for leaf, shape in wanted.items() if leaf in _OUTER}
    for leaf, shape in wanted["layers"].items():
        for layer in range(config.n_layers):
            expected[_layer_name(config, leaf, layer)] = (leaf, shape[1:])

    problems = []
    for name, (leaf, shape) in expected.items():
        if name not in where:
            problems.append(f"{name} is missing")
            continue
        view = where[name].get_slice(name)
        found, stored = tuple(view.get_shape()), shape[::-1] if leaf in _TRANSPOSED else shape
        if found != stored:
            problems.append(f"{name} has shape {found} instead of {stored}")
        elif view.get_dtype() not in ("F64", "F32", "F16", "BF16"):
            problems.append(f"{name} has type {view.get_dtype()} instead of a float type")
    for name in where.keys() - expected.keys():
        # A tied head is sometimes saved again, and old checkpoints kept rope's table.
        if not (config.tied and name == "lm_head.weight") and not name.endswith(".inv_freq"):
            problems.append(f"{name} is unexpected")
    if problems:
        raise UserError(
            f"The weights in {directory} do not fit their config.json: {'; '.join(problems)}; "
            "use the two from the same model."
        )
