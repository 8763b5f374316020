"""GPT-2 (Radford et al. 2019): learned positions, layer norm, biases, one tensor for q, k and v."""

from collections.abc import Mapping

from emojax.lm.config import DecoderConfig
from emojax.lm.families.family import Family, Stored
from emojax.lm.families.reader import Reader


def _config(reader: Reader) -> DecoderConfig:
    sizes = reader.sizes(
        n_layers="n_layer", d_model="n_embd", n_heads="n_head", context="n_positions"
    )
    reader.expect("add_cross_attention", False)
    reader.expect("scale_attn_weights", True)
    reader.expect("scale_attn_by_inverse_layer_idx", False)
    reader.ignore("attn_pdrop", "embd_pdrop", "resid_pdrop", "reorder_and_upcast_attn")
    reader.ignore("_num_labels", "n_ctx", "output_past", "gradient_checkpointing")
    reader.expect("n_special", 0)  # rows beside the vocabulary's
    reader.ignore("predict_special_tokens")
    for name in ("activation", "first_dropout", "proj_to_labels", "type", "use_proj"):
        reader.ignore(f"summary_{name}")
    return DecoderConfig(
        **sizes,
        d_ff=reader.number("n_inner", 4 * sizes["d_model"]),
        activation=reader.activation("activation_function", "gelu_new"),
        norm="layer",
        norm_eps=reader.real("layer_norm_epsilon", 1e-5),
        windows=(0,) * sizes["n_layers"],
        query_scale=sizes["head_dim"] ** -0.5,
        gated=False,
        biases=("q", "k", "v", "o", "up", "down"),
        tied=reader.flag("tie_word_embeddings", True),
    )


def _tensors(config: DecoderConfig) -> Mapping[str, Stored]:
    """Matrices are stored [in, out] (Conv1D); q, k and v lie side by side."""
    d = config.d_model

    def qkv(part: int) -> Stored:
        return Stored("h.{}.attn.c_attn.weight", outputs=slice(part * d, (part + 1) * d))

    return {
        "embed": Stored("wte.weight"),
        "positions": Stored("wpe.weight"),
        "final_norm": Stored("ln_f.weight"),
        "attn_norm": Stored("h.{}.ln_1.weight"),
        "q": qkv(0),
        "k": qkv(1),
        "v": qkv(2),
        "o": Stored("h.{}.attn.c_proj.weight"),
        "mlp_norm": Stored("h.{}.ln_2.weight"),
        "up": Stored("h.{}.mlp.c_fc.weight"),
        "down": Stored("h.{}.mlp.c_proj.weight"),
    }


GPT2 = Family(
    _config,
    _tensors,
    prefixes=("transformer.", ""),
    ignored=r"\.attn\.(masked_)?bias$",  # the causal mask
)
