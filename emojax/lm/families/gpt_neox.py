"""GPT-NeoX and Pythia (Black et al. 2022, arXiv:2204.06745; Biderman et al. 2023, 2304.01373).

Attention and MLP side by side, a rope on part of each head, one tensor for q, k and v.
"""

from collections.abc import Mapping

import numpy as np

from emojax.lm.config import DecoderConfig
from emojax.lm.families.family import Family, Stored
from emojax.lm.families.reader import Reader


def _config(reader: Reader) -> DecoderConfig:
    sizes = reader.sizes()
    reader.ignore("classifier_dropout", "hidden_dropout", "is_decoder")
    reader.ignore("attention_probs_dropout_prob", "hidden_dropout_prob")
    theta = reader.real("rotary_emb_base", 10000.0)
    fraction = reader.real("rotary_pct", 0.25)
    parameters = dict(reader.rope_parameters())
    name = "partial_rotary_factor"
    fraction = reader.as_real(name, parameters.pop(name, fraction))
    rotary_dim = int(sizes["head_dim"] * fraction)
    if rotary_dim % 2 or not 0 < rotary_dim <= sizes["head_dim"]:
        raise reader.refuse(name, f"= {fraction!r}")
    biases = ("q", "k", "v", "o") if reader.flag("attention_bias", True) else ()
    return DecoderConfig(
        **sizes,
        d_ff=reader.number("intermediate_size"),
        activation=reader.activation("hidden_act", "gelu"),
        norm="layer",
        norm_eps=reader.real("layer_norm_eps", 1e-5),
        windows=(0,) * sizes["n_layers"],
        query_scale=sizes["head_dim"] ** -0.5,
        ropes=(reader.rope("rope_parameters", parameters, theta),),
        rope_of_layer=(0,) * sizes["n_layers"],
        rotary_dim=rotary_dim,
        gated=False,
        parallel=reader.flag("use_parallel_residual", True),
        biases=(*biases, "up", "down"),
        tied=reader.flag("tie_word_embeddings", False),
    )


def _tensors(config: DecoderConfig) -> Mapping[str, Stored]:
    """In `query_key_value` each head has its q, k and v side by side."""
    rows = np.arange(3 * config.d_model).reshape(config.n_heads, 3, config.head_dim)

    def qkv(part: int) -> Stored:
        name = "layers.{}.attention.query_key_value.weight"
        return Stored(name, transposed=True, outputs=rows[:, part].reshape(-1))

    return {
        "embed": Stored("embed_in.weight"),
        "final_norm": Stored("final_layer_norm.weight"),
        "attn_norm": Stored("layers.{}.input_layernorm.weight"),
        "q": qkv(0),
        "k": qkv(1),
        "v": qkv(2),
        "o": Stored("layers.{}.attention.dense.weight", transposed=True),
        "mlp_norm": Stored("layers.{}.post_attention_layernorm.weight"),
        "up": Stored("layers.{}.mlp.dense_h_to_4h.weight", transposed=True),
        "down": Stored("layers.{}.mlp.dense_4h_to_h.weight", transposed=True),
    }


GPT_NEOX = Family(
    _config,
    _tensors,
    prefixes=("gpt_neox.",),
    head="embed_out.weight",
    ignored=r"\.inv_freq$|\.attention\.(masked_)?bias$",  # rope's table, the causal mask
)
