import pytest
from tiny_models import CONFIGS

from emojax.errors import UserError
from emojax.lm.config import DecoderConfig, Rope

pytestmark = pytest.mark.smoke

GEMMA, LLAMA = CONFIGS["gemma3"], CONFIGS["llama_mha"]


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


def test_both_forms_of_gemma_rope_and_layers_agree():
    older = {k: v for k, v in GEMMA.items() if k not in ("layer_types", "rope_parameters")}
    older |= {"sliding_window_pattern": 2, "rope_theta": 5000.0, "rope_local_base_freq": 100.0}
    assert DecoderConfig.from_hf(older) == DecoderConfig.from_hf(GEMMA)
    older |= {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    assert DecoderConfig.from_hf(older).ropes[0] == Rope(5000.0, "linear", 8.0)


def test_both_forms_of_llama_rope_agree():
    newer = CONFIGS["llama_mqa_llama3_rope"]
    scaling = dict(newer["rope_parameters"])
    older = {k: v for k, v in newer.items() if k != "rope_parameters"}
    older["rope_theta"] = scaling.pop("rope_theta")
    assert DecoderConfig.from_hf(older | {"rope_scaling": scaling}) == DecoderConfig.from_hf(newer)
    scaling["type"] = scaling.pop("rope_type")
    assert DecoderConfig.from_hf(older | {"rope_scaling": scaling}) == DecoderConfig.from_hf(newer)


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
        (LLAMA | {"attention_bias": True}, "attention_bias = True"),
        (LLAMA | {"mlp_bias": True}, "mlp_bias = True"),
        (LLAMA | {"hidden_act": "relu"}, "hidden_act = 'relu'"),
        (LLAMA | {"num_key_value_heads": 3}, "num_key_value_heads = 3"),
        (LLAMA | {"hidden_size": "32"}, "hidden_size = '32'"),
        (LLAMA | {"head_dim": 7}, "head_dim = 7"),
        (LLAMA | {"rope_scaling": {"type": "yarn"}}, "rope_parameters.rope_type = 'yarn'"),
        (LLAMA | {"rope_scaling": {"type": "linear"}}, "rope_parameters.factor"),
        (LLAMA | {"rope_scaling": {"beta_fast": 2}}, "rope_parameters.beta_fast"),
        (LLAMA | {"layer_scale": 0.1}, "layer_scale = 0.1"),
        ({k: v for k, v in LLAMA.items() if k != "hidden_size"}, "hidden_size"),
    ],
)
def test_what_is_not_supported_is_named(attributes, named):
    with pytest.raises(UserError, match="config") as error:
        DecoderConfig.from_hf(attributes)
    assert named in str(error.value)
