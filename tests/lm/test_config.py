import dataclasses
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import CONFIGS

from emojax.errors import UserError
from emojax.lm import decoder, families, weights
from emojax.lm.config import DecoderConfig, Rope
from emojax.lm.families import family
from emojax.lm.rope import inverse_frequencies

pytestmark = pytest.mark.smoke

GEMMA, LLAMA = CONFIGS["gemma3"], CONFIGS["llama_mha"]
GEMMA2, QWEN2, GPT2, NEOX = (CONFIGS[name] for name in ("gemma2", "qwen2", "gpt2", "neox"))
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 32,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_hashable_and_equal_by_value(name):
    assert hash(DecoderConfig.from_hf(CONFIGS[name])) == hash(DecoderConfig.from_hf(CONFIGS[name]))


def test_gemma_traits():
    config = DecoderConfig.from_hf(GEMMA)
    assert config.windows == (8, 0, 8, 0)
    assert config.ropes[config.rope_of_layer[0]] == Rope(100.0)
    assert config.ropes[config.rope_of_layer[1]] == Rope(5000.0)
    assert config.query_scale == 24**-0.5
    assert config.embedding_scale == 32**0.5
    assert config.tied and config.qk_norm and config.post_norms and config.norm_plus_one


def test_llama_traits_of_smollm2():
    config = DecoderConfig.from_hf(
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "eos_token_id": [2, 3],
            "hidden_act": "silu",
            "hidden_size": 576,
            "initializer_range": 0.041666666666666664,
            "intermediate_size": 1536,
            "is_llama_config": True,
            "max_position_embeddings": 8192,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": 9,
            "num_hidden_layers": 30,
            "num_key_value_heads": 3,
            "pad_token_id": 2,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_interleaved": False,
            "rope_scaling": None,
            "rope_theta": 100000,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
            "transformers_version": "4.42.3",
            "use_cache": True,
            "vocab_size": 49152,
        }
    )
    assert config.head_dim == 64 and config.ropes == (Rope(100000.0),)
    assert config.eos_token_ids == (2, 3) and config.norm_eps == 1e-5
    assert not (config.qk_norm or config.post_norms or config.norm_plus_one)


# What the hub's config.json of these models say.
LLAMA_3_2_1B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
LLAMA_1_7B = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "max_sequence_length": 2048,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 32000,
}
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
GEMMA_2_2B = {
    "architectures": ["Gemma2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "initializer_range": 0.02,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
    "model_type": "gemma2",
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "torch_dtype": "float32",
    "transformers_version": "4.42.4",
    "use_cache": True,
    "vocab_size": 256000,
}
GEMMA_3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}
QWEN_2_5_0_5B = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN_3_0_6B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
GPT_2 = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}
GPT_2_MEDIUM = GPT_2 | {
    "n_embd": 1024,
    "n_head": 16,
    "n_layer": 24,
    "n_special": 0,
    "predict_special_tokens": True,
}
GPT_2_LARGE = GPT_2_MEDIUM | {"n_embd": 1280, "n_head": 20, "n_layer": 36}
GPT_2_XL = GPT_2_MEDIUM | {"n_embd": 1600, "n_head": 25, "n_layer": 48, "output_past": True}
PYTHIA_70M = {
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": 512,
    "initializer_range": 0.02,
    "intermediate_size": 2048,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.24.0",
    "use_cache": True,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}
GPT_NEOX_20B = {
    "architectures": ["GPTNeoXForCausalLM"],
    "attention_probs_dropout_prob": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu_fast",
    "hidden_dropout_prob": 0,
    "hidden_size": 6144,
    "initializer_range": 0.02,
    "intermediate_size": 24576,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 64,
    "num_hidden_layers": 44,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 50432,
}
# What `transformers` writes when it saves a GPT-NeoX.
NEOX_DROPOUTS = {"attention_dropout": 0.0, "classifier_dropout": 0.1, "hidden_dropout": 0.0}


@pytest.mark.parametrize(
    ("attributes", "traits"),
    [
        (LLAMA_3_2_1B, {"ropes": (Rope(5e5, "llama3", 32.0, 1.0, 4.0, 8192),), "tied": True}),
        (LLAMA_1_7B, {"ropes": (Rope(1e4),), "context": 2048, "n_kv_heads": 32}),
        (MISTRAL_7B, {"windows": (4096,) * 32, "head_dim": 128, "tied": False}),
        (MISTRAL_7B | {"sliding_window": None}, {"windows": (0,) * 32}),
        (
            GEMMA_2_2B,
            {
                "windows": (4096, 0) * 13,
                "attention_softcap": 50.0,
                "logit_softcap": 30.0,
                "post_norms": True,
                "qk_norm": False,
                "embedding_scale": 48.0,
                "query_scale": 1 / 16,
            },
        ),
        (GEMMA_2_2B | {"final_logit_softcapping": None}, {"logit_softcap": 0.0}),
        (
            GEMMA_2_2B | {"layer_types": ["full_attention"] * 26, "sliding_window": None},
            {"windows": (0,) * 26},
        ),
        (
            GEMMA_3_4B,
            {
                "vocab_size": 262208,
                "head_dim": 256,
                "n_kv_heads": 4,
                "windows": ((1024,) * 5 + (0,)) * 5 + (1024,) * 4,
                "ropes": (Rope(1e6, "linear", 8.0), Rope(1e4)),
                "eos_token_ids": (1, 106),
            },
        ),
        (QWEN_2_5_0_5B, {"windows": (0,) * 24, "biases": ("q", "k", "v"), "bos_token_id": None}),
        (
            QWEN_2_5_0_5B | {"use_sliding_window": True, "max_window_layers": 20},
            {"windows": (0,) * 20 + (32768,) * 4},
        ),
        (
            {k: v for k, v in QWEN_2_5_0_5B.items() if k != "sliding_window"}
            | {"use_sliding_window": True, "max_window_layers": 20},
            {"windows": (0,) * 20 + (4096,) * 4},
        ),
        (
            QWEN_3_0_6B | {"use_sliding_window": True, "max_window_layers": 20},
            {"windows": (0,) * 28},
        ),
        (QWEN_3_0_6B, {"qk_norm": True, "biases": (), "head_dim": 128}),
        (
            GPT_2,
            {"ropes": (), "d_ff": 3072, "norm": "layer", "gated": False, "activation": "gelu_tanh"},
        ),
        (GPT_2_MEDIUM, {"d_model": 1024, "d_ff": 4096, "head_dim": 64}),
        (GPT_2_LARGE, {"d_model": 1280, "d_ff": 5120, "head_dim": 64}),
        (GPT_2_XL, {"d_model": 1600, "d_ff": 6400, "head_dim": 64}),
        (
            PYTHIA_70M,
            {"rotary_dim": 16, "head_dim": 64, "parallel": True, "activation": "gelu"},
        ),
        (PYTHIA_70M | {"use_parallel_residual": False}, {"parallel": False}),
        (PYTHIA_70M | NEOX_DROPOUTS, {"rotary_dim": 16}),
        (GPT_NEOX_20B, {"rotary_dim": 24, "head_dim": 96, "activation": "gelu_tanh"}),
    ],
)
def test_traits_of_known_models(attributes, traits):
    config = DecoderConfig.from_hf(attributes)
    assert {name: getattr(config, name) for name in traits} == traits
    with pytest.raises(UserError, match="surprise = 1"):
        DecoderConfig.from_hf(attributes | {"surprise": 1})


def test_yarn_multiplies_by_what_its_paper_says():
    (rope,) = DecoderConfig.from_hf(LLAMA | {"rope_scaling": YARN}).ropes
    assert rope.attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    (rope,) = DecoderConfig.from_hf(LLAMA | {"rope_scaling": YARN | {"attention_factor": 1}}).ropes
    assert rope.attention_factor == 1


@pytest.mark.torch
@pytest.mark.parametrize(
    "more",
    [
        {"mscale": 0.7, "mscale_all_dim": 1.2},
        {"mscale": 0.7},
        {"mscale_all_dim": 1.2},
        {"mscale": 0.7, "mscale_all_dim": 1.2, "attention_factor": 1.5},
        {"mscale": 0.7, "mscale_all_dim": 1.2, "factor": 0.5},
        {"truncate": False, "beta_fast": 4.0},
        {"truncate": True, "beta_fast": 4.0},
    ],
)
def test_yarn_is_that_of_transformers(more):
    pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    attributes = {k: v for k, v in LLAMA.items() if k not in ("rope_parameters", "rope_theta")}
    attributes |= {"rope_parameters": YARN | {"rope_type": "yarn", "rope_theta": 1e4} | more}
    (rope,) = DecoderConfig.from_hf(attributes).ropes
    frequencies, factor = ROPE_INIT_FUNCTIONS["yarn"](LlamaConfig(**attributes), None)
    assert rope.attention_factor == pytest.approx(factor)
    ours = inverse_frequencies(rope, 2 * len(frequencies), jnp.asarray(1))
    np.testing.assert_allclose(ours, frequencies.numpy(), rtol=1e-6)


def test_both_forms_of_gemma_rope_and_layers_agree():
    older = {k: v for k, v in GEMMA.items() if k not in ("layer_types", "rope_parameters")}
    older |= {"sliding_window_pattern": 2, "rope_theta": 5000.0, "rope_local_base_freq": 100.0}
    assert DecoderConfig.from_hf(older) == DecoderConfig.from_hf(GEMMA)
    older |= {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    assert DecoderConfig.from_hf(older).ropes[0] == Rope(5000.0, "linear", 8.0)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("llama_linear_rope", None),
        ("gemma3_mqa_linear_rope", "full_attention"),
        ("neox_sequential", None),
    ],
)
def test_two_ropes_must_say_the_same(name, part):
    attributes = CONFIGS[name]
    rope = attributes["rope_parameters"][part] if part else attributes["rope_parameters"]
    assert rope["rope_type"] == "linear"
    expected = DecoderConfig.from_hf(attributes)
    assert DecoderConfig.from_hf(attributes | {"rope_scaling": rope}) == expected
    assert DecoderConfig.from_hf(attributes | {"rope_scaling": {}}) == expected
    other = attributes | {"rope_scaling": rope | {"factor": 3.0}}
    with pytest.raises(UserError, match=r"rope_scaling = .*3\.0.* rope_parameters = "):
        DecoderConfig.from_hf(other)
    assert 3.0 in {r.factor for r in DecoderConfig.from_hf(other | {"rope_parameters": {}}).ropes}


def older(attributes):
    """The same config in the spelling before `rope_parameters`."""
    left = {k: v for k, v in attributes.items() if k not in ("rope_parameters", "text_config")}
    if "text_config" in attributes:
        return left | {"text_config": older(attributes["text_config"])}
    rope = dict(attributes["rope_parameters"])
    theta, fraction = "rope_theta", rope.pop("partial_rotary_factor", None)
    if fraction is not None:
        theta, left["rotary_pct"] = "rotary_emb_base", fraction
    if "full_attention" in rope:
        left["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = dict(rope["full_attention"])
    left[theta], kind = rope.pop("rope_theta"), rope.pop("rope_type")
    return left | ({} if kind == "default" else {"rope_scaling": {"type": kind, **rope}})


@pytest.mark.parametrize("name", [name for name in CONFIGS if not name.startswith("gpt2")])
def test_both_spellings_of_every_rope_agree(name):
    attributes = CONFIGS[name]
    if "rope_parameters" not in attributes.get("text_config", attributes):
        attributes = attributes | {
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}
        }
    before = older(attributes)
    assert DecoderConfig.from_hf(before) == DecoderConfig.from_hf(attributes)
    if "rope_scaling" in before:  # the name of its kind was spelt both ways
        scaling = dict(before["rope_scaling"])
        scaling["rope_type"] = scaling.pop("type")
        again = DecoderConfig.from_hf(before | {"rope_scaling": scaling})
        assert again == DecoderConfig.from_hf(attributes)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_names_what_it_does_not_know(name):
    with pytest.raises(UserError, match="surprise = 1"):
        DecoderConfig.from_hf(CONFIGS[name] | {"surprise": 1})
    if inner := CONFIGS[name].get("text_config"):
        with pytest.raises(UserError, match="surprise = 1"):
            DecoderConfig.from_hf(CONFIGS[name] | {"text_config": inner | {"surprise": 1}})
    if rope := CONFIGS[name].get("rope_parameters"):
        kinds = rope if "full_attention" in rope else {"": rope}
        for part, parameters in kinds.items():
            other = parameters | {"surprise": 1}
            with pytest.raises(UserError, match=r"rope_parameters\S*\.surprise = 1"):
                DecoderConfig.from_hf(
                    CONFIGS[name] | {"rope_parameters": rope | {part: other} if part else other}
                )


def test_longrope_takes_what_it_needs_from_the_config():
    plain = CONFIGS["qwen3_longrope"]
    (rope,) = DecoderConfig.from_hf(plain).ropes
    # The paper's, from the ratio of the two contexts: 128 tokens over 32.
    assert rope.attention_factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(32)))
    assert (rope.original_context, len(rope.short_factor)) == (32, 8)
    parameters = dict(plain["rope_parameters"])
    name = "original_max_position_embeddings"
    beside = {name: parameters.pop(name)}
    assert DecoderConfig.from_hf(plain | {"rope_parameters": parameters} | beside).ropes == (rope,)
    with pytest.raises(UserError, match=f"{name} = 64"):
        DecoderConfig.from_hf(plain | {name: 64})
    (other,) = DecoderConfig.from_hf(
        plain | {"rope_parameters": plain["rope_parameters"] | {"factor": 1.0}}
    ).ropes
    assert other.attention_factor == 1


def test_a_dynamic_rope_reaches_further_than_the_context_of_its_training():
    config = DecoderConfig.from_hf(CONFIGS["llama_dynamic_rope"])
    assert config.ropes[0].original_context == 32 and config.context == 64
    assert DecoderConfig.from_hf(CONFIGS["llama_linear_rope"]).context == 128


@pytest.mark.parametrize(
    ("attributes", "named"),
    [
        ({}, "model_type None"),
        (GEMMA | {"model_type": "mamba"}, "model_type 'mamba'"),
        (GEMMA | {"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
        (GEMMA | {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        (GEMMA | {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        (GEMMA | {"layer_types": ["chunked_attention"] * 4}, "layer_types"),
        (GEMMA | {"layer_types": ["full_attention"] * 3}, "layer_types"),
        (GEMMA | {"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters"),
        (GEMMA | {"quantization_config": {"bits": 4}}, "quantization_config"),
        (GEMMA | {"attention_bias": True}, "attention_bias = True"),
        (GEMMA2 | {"layer_types": ["sliding_attention"] * 2}, "layer_types"),
        (GEMMA2 | {"sliding_window": None}, "sliding_window = None"),
        (GEMMA | {"sliding_window": None}, "sliding_window = None"),
        (GEMMA | {"sliding_window": 0}, "sliding_window = 0"),
        (MISTRAL_7B | {"sliding_window": -1}, "sliding_window = -1"),
        (QWEN2 | {"use_mrope": True}, "use_mrope = True"),
        (QWEN2 | {"layer_types": ["sliding_attention"] * 3}, "sliding_window = None"),
        (GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        (GPT2 | {"add_cross_attention": True}, "add_cross_attention"),
        (GPT2 | {"n_special": 2}, "n_special = 2"),
        (NEOX | {"hidden_act": "relu"}, "hidden_act = 'relu'"),
        (NEOX | {"rope_parameters": {"partial_rotary_factor": 0.4}}, "partial_rotary_factor = 0.4"),
        (LLAMA | {"hidden_act": "relu"}, "hidden_act = 'relu'"),
        (LLAMA | {"num_key_value_heads": 3}, "num_key_value_heads = 3"),
        (LLAMA | {"hidden_size": "32"}, "hidden_size = '32'"),
        (LLAMA | {"head_dim": 7}, "head_dim = 7"),
        (LLAMA | {"rope_scaling": {"type": "dynamic"}}, "lacks rope_parameters.factor"),
        (LLAMA | {"rope_scaling": {"type": "longrope"}}, "lacks rope_parameters.short_factor"),
        (LLAMA | {"rope_scaling": LONGROPE}, "without 4 numbers each"),
        (LLAMA | {"rope_scaling": LONGROPE | {"long_factor": 2}}, "rope_parameters.long_factor"),
        (LLAMA | {"rope_scaling": {"type": "axial"}}, "rope_parameters.rope_type = 'axial'"),
        (LLAMA | {"rope_scaling": YARN | {"mscale": "a"}}, "rope_parameters.mscale = 'a'"),
        (LLAMA | {"rope_scaling": YARN | {"truncate": 0}}, "rope_parameters.truncate = 0"),
        (LLAMA | {"rope_scaling": {"type": "linear"}}, "rope_parameters.factor"),
        (LLAMA | {"rope_scaling": {"beta_fast": 2}}, "rope_parameters.beta_fast"),
        (LLAMA | {"layer_scale": 0.1}, "layer_scale = 0.1"),
        (LLAMA | {"eos_token_id": "</s>"}, "eos_token_id = '</s>'"),
        (LLAMA | {"bos_token_id": 1.5}, "bos_token_id = 1.5"),
        (LLAMA | {"rope_scaling": "linear"}, "rope_scaling = 'linear'"),
        (LLAMA | {"rope_scaling": {"type": ["linear"]}}, "rope_type = ['linear']"),
        (LLAMA | {"rope_theta": "1e4"}, "rope_theta = '1e4'"),
        (LLAMA | {"rms_norm_eps": "x"}, "rms_norm_eps = 'x'"),
        (LLAMA | {"tie_word_embeddings": "false"}, "tie_word_embeddings = 'false'"),
        (GEMMA | {"sliding_window_pattern": 0}, "sliding_window_pattern = 0"),
        (GEMMA | {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar = -1"),
        (GEMMA | {"layer_types": 4}, "layer_types = 4"),
        (GEMMA | {"rope_parameters": {"full_attention": 1e4}}, "rope_parameters.full_attention"),
        (GEMMA2 | {"final_logit_softcapping": "30"}, "final_logit_softcapping = '30'"),
        (QWEN2 | {"max_window_layers": "28"}, "max_window_layers = '28'"),
        (NEOX | {"rotary_pct": "0.25"}, "rotary_pct = '0.25'"),
        ({k: v for k, v in LLAMA.items() if k != "hidden_size"}, "hidden_size"),
    ],
)
def test_what_is_not_supported_is_named(attributes, named):
    with pytest.raises(UserError, match="config") as error:
        DecoderConfig.from_hf(attributes)
    assert named in str(error.value)


def test_the_way_to_add_a_family_works(monkeypatch, tmp_path):
    """The code that CONTRIBUTING shows, and one row of the table."""
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    (code,) = re.findall(r"```python\n(def _config.*?)```", text, re.DOTALL)
    names = {n: getattr(family, n) for n in ("Reader", "Family", "DecoderConfig", "llama_tensors")}
    exec(code, names)
    monkeypatch.setitem(families.FAMILIES, "its_model_type", names["YOURS"])
    attributes = {k: v for k, v in LLAMA.items() if k != "mlp_bias"}
    attributes |= {"model_type": "its_model_type"}
    found, llama = map(DecoderConfig.from_hf, (attributes, LLAMA))
    assert found == dataclasses.replace(llama, family="its_model_type")
    with pytest.raises(UserError, match="surprise = 1"):
        DecoderConfig.from_hf(attributes | {"surprise": 1})

    params = decoder.init(llama, jax.random.key(0))
    weights.save(tmp_path, found, params, attributes)
    tokens = jnp.asarray([[2, 3, 4]])
    rows = tokens, jnp.ones_like(tokens, bool)
    read = decoder.logits(found, weights.load(tmp_path, found), *rows)
    np.testing.assert_array_equal(read, decoder.logits(llama, params, *rows))
