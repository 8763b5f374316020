"""Tiny random models of every trait, in our form and in that of `transformers`."""

import functools

import jax
import numpy as np

from emojax.lm import decoder
from emojax.lm.config import DecoderConfig
from emojax.lm.model import LanguageModel

_SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
_GEMMA = _SIZES | {
    "model_type": "gemma3_text",
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
    },
}
_LLAMA = _SIZES | {"model_type": "llama", "num_hidden_layers": 3}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

_GEMMA2 = {k: v for k, v in _GEMMA.items() if k not in ("layer_types", "rope_parameters")}
_GEMMA2 |= {
    "model_type": "gemma2",
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
    "num_hidden_layers": 3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}
_SEEING = {
    "model_type": "gemma3",
    "text_config": _GEMMA,
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
    "mm_tokens_per_image": 4,
    "image_token_index": 96,
    "eos_token_id": [1, 5],
}
_GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 97,
    "n_embd": 32,
    "n_head": 4,
    "n_layer": 3,
    "n_positions": 64,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
_NEOX = {k: v for k, v in _LLAMA.items() if k != "num_key_value_heads"} | {
    "model_type": "gpt_neox",
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1000.0,
        "partial_rotary_factor": 0.5,
    },
}
_YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
# These two depend on whether a row is longer than the original context, here 32 tokens.
_DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.0, 1.0, 1.1, 1.1, 1.2, 1.3, 1.5],
    "long_factor": [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0],
    "original_max_position_embeddings": 32,
}

# Every prompt of the parity tests is longer than the windows here.
CONFIGS = {
    "gemma3": _GEMMA,
    "gemma3_mqa_linear_rope": _GEMMA
    | {
        "num_key_value_heads": 1,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 8.0},
        },
    },
    "gemma3_longrope": _GEMMA
    | {
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": _LONGROPE | {"attention_factor": 1.5},
        },
    },
    "gemma3_untied": _GEMMA | {"tie_word_embeddings": False, "num_key_value_heads": 4},
    "gemma3_with_vision": _SEEING,
    "llama_mha": _LLAMA | {"num_key_value_heads": 4, "tie_word_embeddings": False},
    "llama_gqa_tied": _LLAMA | {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "llama_mqa_llama3_rope": _LLAMA
    | {
        "num_key_value_heads": 1,
        "tie_word_embeddings": False,
        "rope_parameters": _LLAMA3_ROPE,
    },
    "llama_linear_rope": _LLAMA
    | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    "llama_yarn_mscale_rope": _LLAMA
    | {
        "num_key_value_heads": 2,
        "rope_parameters": _YARN_ROPE
        | {"mscale": 0.7, "mscale_all_dim": 1.2, "beta_fast": 4.0, "truncate": False},
    },
    "llama_dynamic_rope": _LLAMA
    | {
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "rope_parameters": _DYNAMIC_ROPE,
    },
    "llama_biases": _LLAMA
    | {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True, "head_dim": 16},
    "mistral": _LLAMA | {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 8},
    "mistral_no_window": _LLAMA
    | {"model_type": "mistral", "num_key_value_heads": 1, "sliding_window": None},
    "mistral_mha": _LLAMA
    | {"model_type": "mistral", "num_key_value_heads": 4, "sliding_window": 8},
    "gemma2": _GEMMA2,
    "gemma2_mqa_no_caps": _GEMMA2
    | {
        "num_key_value_heads": 1,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
    "gemma2_mha": _GEMMA2 | {"num_key_value_heads": 4},
    "qwen2": _LLAMA | {"model_type": "qwen2", "num_key_value_heads": 2},
    "qwen2_window_yarn_rope": _LLAMA
    | {
        "model_type": "qwen2",
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
        "rope_parameters": _YARN_ROPE,
    },
    "qwen2_mqa": _LLAMA | {"model_type": "qwen2", "num_key_value_heads": 1},
    "qwen3": _LLAMA
    | {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 16, "attention_bias": True},
    "qwen3_mqa": _LLAMA | {"model_type": "qwen3", "num_key_value_heads": 1, "head_dim": 16},
    "qwen3_mha_linear_rope": _LLAMA
    | {
        "model_type": "qwen3",
        "num_key_value_heads": 4,
        "head_dim": 8,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    },
    "qwen3_longrope": _LLAMA
    | {
        "model_type": "qwen3",
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rope_parameters": _LONGROPE,
    },
    "gpt2": _GPT2,
    "gpt2_untied": _GPT2 | {"n_inner": 40, "tie_word_embeddings": False},
    "neox": _NEOX,
    "neox_dynamic_rope": _NEOX
    | {
        "max_position_embeddings": 32,
        "rope_parameters": _DYNAMIC_ROPE | {"partial_rotary_factor": 0.5},
    },
    "neox_sequential": _NEOX
    | {
        "use_parallel_residual": False,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "linear",
            "rope_theta": 1e4,
            "factor": 2.0,
            "partial_rotary_factor": 1.0,
        },
    },
}


class NumberTokenizer:
    """Writes token ids as numbers."""

    def decode(self, row, skip_special_tokens):
        return " ".join(map(str, row))


@functools.cache
def tiny(name, n_layers=None):
    """A config of `CONFIGS` (with another depth) and random parameters for it."""
    attributes = dict(CONFIGS[name])
    if n_layers is not None:
        depth = "n_layer" if "n_layer" in attributes else "num_hidden_layers"
        attributes[depth] = n_layers
        if "layer_types" in attributes:
            attributes["layer_types"] = (attributes["layer_types"] * n_layers)[:n_layers]
    config = DecoderConfig.from_hf(attributes)
    return config, decoder.init(config, jax.random.key(0))


def tiny_lm(name, tmp_path):
    config, params = tiny(name)
    return LanguageModel(name, config, params, NumberTokenizer(), tmp_path, "none")


def ragged(config, batch, time, side, seed=0):
    """Random tokens `[batch, time]` and a mask whose padding is on one side; row 0 has none."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, config.vocab_size, (batch, time)).astype(np.int32)
    lengths = np.concatenate([[time], rng.integers(1, time, batch - 1)])
    mask = np.arange(time) < lengths[:, None]
    return tokens, mask if side == "right" else mask[:, ::-1]
