"""The language models that the models of cost are asked about: public configs, and where to tap.

Attributes are those of the models' own `config.json` (google/gemma-2-9b,
meta-llama/Llama-3.1-8B); no weights are needed to compile or to count. The taps are in mid-depth,
where Gemma Scope (arXiv:2408.05147) and Llama Scope (arXiv:2410.20526) have dictionaries too.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Model:
    """A language model and the layer that is read.

    Attributes:
      attributes: of its Hugging Face config (`DecoderConfig.from_hf`).
      layer: of the tap, from 0.
    """

    attributes: dict[str, Any]
    layer: int

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.attributes["hidden_size"]

    @property
    def layers(self) -> int:
        """Layers that capture runs."""
        return self.layer + 1

    @property
    def heads_width(self) -> int:
        """Width of all query heads together."""
        return self.attributes["num_attention_heads"] * self.attributes["head_dim"]

    @property
    def layer_params(self) -> int:
        """Parameters of the matrices of one layer."""
        d, wide = self.d_model, self.heads_width
        keys = self.attributes["num_key_value_heads"] * self.attributes["head_dim"]
        return 2 * d * wide + 2 * d * keys + 3 * d * self.attributes["intermediate_size"]


MODELS = {
    "gemma2_9b": Model(
        {
            "model_type": "gemma2",
            "hidden_size": 3584,
            "num_hidden_layers": 42,
            "intermediate_size": 14336,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 256,
            "vocab_size": 256000,
            "max_position_embeddings": 8192,
            "sliding_window": 4096,
            "query_pre_attn_scalar": 256,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "hidden_activation": "gelu_pytorch_tanh",
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": 2,
            "eos_token_id": 1,
        },
        layer=20,
    ),
    "llama31_8b": Model(
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 128256,
            "max_position_embeddings": 131072,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "bos_token_id": 128000,
            "eos_token_id": 128001,
        },
        layer=15,
    ),
}
