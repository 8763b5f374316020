"""A GGUF file's metadata as Hugging Face's `config.json`, one function per architecture."""

from collections.abc import Callable
from typing import Any

import numpy as np

from emojax.errors import UserError
from emojax.lm.gguf_file import Gguf

ROPE_FREQS = "rope_freqs.weight"


class _Metadata:
    """Takes an architecture's attributes one by one, so that what is left over is known."""

    def __init__(self, source: Gguf):
        self.architecture = source.metadata.get("general.architecture")
        self._path = source.path
        prefix = f"{self.architecture}."
        self._left = {k: v for k, v in source.metadata.items() if k.startswith(prefix)}

    def take(self, name: str, default: Any = None) -> Any:
        key = f"{self.architecture}.{name}"
        value = self._left.pop(key, default)
        if value is None:
            raise UserError(f"{self._path} lacks the attribute {key}; use a complete GGUF file.")
        if isinstance(value, list):
            raise UserError(
                f"{self._path} has a different {key} for each layer, which is not supported; "
                "use a model without it."
            )
        # Through float32's shortest decimal: 1e-06, not 9.999999974752427e-07.
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def refuse_the_rest(self) -> None:
        if self._left:
            key = min(self._left)
            raise UserError(
                f"{self._path} has the attribute {key} = {self._left[key]!r}, which is not "
                "supported; use a model without it."
            )


def _common(take: Callable[..., Any], source: Gguf) -> dict[str, Any]:
    """What Llama, Gemma and Qwen have in common."""
    heads = take("attention.head_count")
    return _vocabulary(source) | {
        "hidden_size": take("embedding_length"),
        "intermediate_size": take("feed_forward_length"),
        "num_hidden_layers": take("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": take("attention.head_count_kv", heads),
        "max_position_embeddings": take("context_length"),
        "rms_norm_eps": take("attention.layer_norm_rms_epsilon"),
    }


def _vocabulary(source: Gguf) -> dict[str, Any]:
    """What every architecture has."""
    tokenizer = {
        k.removeprefix("tokenizer.ggml."): v
        for k, v in source.metadata.items()
        if k.startswith("tokenizer.ggml.")
    }
    ends = [tokenizer[k] for k in ("eos_token_id", "eot_token_id") if k in tokenizer]
    return {
        "vocab_size": source.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in source.tensors,
        "bos_token_id": tokenizer.get("bos_token_id"),
        "eos_token_id": ends[0] if len(ends) == 1 else sorted(set(ends)) or None,
        "pad_token_id": tokenizer.get("padding_token_id"),
        "dtype": "float32",
    }


def _rope(take: Callable[..., Any], source: Gguf, theta: float = 10000.0) -> dict[str, Any]:
    """The attribute `rope_parameters`; scaled linearly or by YaRN where the metadata say so."""
    plain = {"rope_type": "default", "rope_theta": take("rope.freq_base", theta)}
    kind = take("rope.scaling.type", "none")
    if kind == "none":
        return plain
    if kind not in ("linear", "yarn"):
        _expect(source, "rope.scaling.type", kind, "none, linear or yarn")
    take("rope.scaling.finetuned", False)  # whether it was trained so changes nothing
    scaled = plain | {"rope_type": kind, "factor": take("rope.scaling.factor")}
    if kind == "yarn":
        original = take("rope.scaling.original_context_length")
        scaled["original_max_position_embeddings"] = original
    return scaled


def _llama(take: Callable[..., Any], source: Gguf) -> dict[str, Any]:
    common = _common(take, source)
    head_dim = take("attention.key_length", common["hidden_size"] // common["num_attention_heads"])
    _expect(source, "rope.dimension_count", take("rope.dimension_count", head_dim), head_dim)
    _expect(source, "attention.value_length", take("attention.value_length", head_dim), head_dim)
    _expect(source, "vocab_size", take("vocab_size", common["vocab_size"]), common["vocab_size"])
    rope = _rope(take, source)
    if ROPE_FREQS in source.tensors:
        # From Llama 3.1 on: what each frequency is divided by, whatever the length.
        factors = np.concatenate(list(source.chunks(ROPE_FREQS))).tolist()
        _expect(source, "rope.scaling.type", rope["rope_type"], "default")
        rope |= {
            "rope_type": "longrope",
            "short_factor": factors,
            "long_factor": factors,
            "original_max_position_embeddings": common["max_position_embeddings"],
            "attention_factor": 1.0,
        }
    return common | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_parameters": rope,
    }


def _qwen2(take: Callable[..., Any], source: Gguf) -> dict[str, Any]:
    return _common(take, source) | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "use_sliding_window": False,
        "rope_parameters": _rope(take, source),
    }


def _qwen3(take: Callable[..., Any], source: Gguf) -> dict[str, Any]:
    head_dim = take("attention.key_length", 128)
    _expect(source, "attention.value_length", take("attention.value_length", head_dim), head_dim)
    return _qwen2(take, source) | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": head_dim,
        "attention_bias": False,
    }


def _gemma2(take: Callable[..., Any], source: Gguf) -> dict[str, Any]:
    # GGUF has no attribute for the query's scale; the 27B model (46 layers) alone differs.
    return _gemma(take, source, odd_one=46) | {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "attn_logit_softcapping": take("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": take("final_logit_softcapping", 30.0),
        "rope_parameters": _rope(take, source),
    }


def _gemma3(take: Callable[..., Any], source: Gguf) -> dict[str, Any]:
    # As above; here it is the 27B model's 62 layers.
    shared = _gemma(take, source, odd_one=62)
    return shared | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "layer_types": [
            "sliding_attention" if (i + 1) % 6 else "full_attention"
            for i in range(shared["num_hidden_layers"])
        ],
        "rope_parameters": {
            "full_attention": _rope(take, source, 1000000.0),
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": take("rope.freq_base_swa", 10000.0),
            },
        },
    }


def _gemma(take: Callable[..., Any], source: Gguf, odd_one: int) -> dict[str, Any]:
    common = _common(take, source)
    head_dim = take("attention.key_length", 256)
    _expect(source, "attention.value_length", take("attention.value_length", head_dim), head_dim)
    scalar = common["hidden_size"] // common["num_attention_heads"]
    return common | {
        "head_dim": head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "query_pre_attn_scalar": scalar if common["num_hidden_layers"] == odd_one else head_dim,
        "sliding_window": take("attention.sliding_window"),
    }


def _gpt2(take: Callable[..., Any], source: Gguf) -> dict[str, Any]:
    return _vocabulary(source) | {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": take("embedding_length"),
        "n_inner": take("feed_forward_length"),
        "n_layer": take("block_count"),
        "n_head": take("attention.head_count"),
        "n_positions": take("context_length"),
        "layer_norm_epsilon": take("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
    }


def _gpt_neox(take: Callable[..., Any], source: Gguf) -> dict[str, Any]:
    width, heads = take("embedding_length"), take("attention.head_count")
    layers = take("block_count")
    rotary_dim = take("rope.dimension_count", width // heads)
    return _vocabulary(source) | {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "hidden_size": width,
        "intermediate_size": take("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": take("context_length"),
        "layer_norm_eps": take("attention.layer_norm_epsilon"),
        "use_parallel_residual": take("use_parallel_residual", True),
        # GGUF does not name the activation: Pythia's, or that of the 20B model (44 layers).
        "hidden_act": "gelu_fast" if layers == 44 else "gelu",
        "rope_parameters": _rope(take, source)
        | {"partial_rotary_factor": rotary_dim / (width // heads)},
    }


_CONFIGS: dict[str, Callable[..., dict[str, Any]]] = {
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "gptneox": _gpt_neox,
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
}


def _expect(source: Gguf, name: str, value: Any, expected: Any) -> None:
    if value != expected:
        raise UserError(
            f"{source.path} has {source.metadata['general.architecture']}.{name} = {value}, and "
            f"only {expected} is supported; use another model."
        )


def hf_config(source: Gguf) -> dict[str, Any]:
    """The dictionary of the `config.json` that says the same as the file's metadata.

    Raises:
      UserError: the architecture or an attribute of it is not supported or missing; it is named.
    """
    if (parts := source.metadata.get("split.count", 1)) > 1:
        raise UserError(
            f"{source.path} is one of {parts} parts of a model; join them first (llama-gguf-split "
            "--merge) and give the whole."
        )
    metadata = _Metadata(source)
    if metadata.architecture not in _CONFIGS:
        raise UserError(
            f"{source.path} has general.architecture {metadata.architecture!r}, which is not "
            f"supported; use one of {', '.join(_CONFIGS)}."
        )
    if "token_embd.weight" not in source.tensors:
        raise UserError(f"{source.path} lacks the tensor token_embd.weight; fetch it again.")
    config = _CONFIGS[metadata.architecture](metadata.take, source)
    metadata.refuse_the_rest()
    return {name: value for name, value in config.items() if value is not None}
