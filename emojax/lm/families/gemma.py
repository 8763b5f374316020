"""Gemma 2 and 3, the text decoders."""

import dataclasses
import math
from typing import Any

from emojax.lm.config import DecoderConfig
from emojax.lm.families.family import Family, llama_tensors
from emojax.lm.families.reader import Reader

_LOCAL, _WHOLE = "sliding_attention", "full_attention"


def _gemma2(reader: Reader) -> DecoderConfig:
    """Gemma 2 (Gemma Team 2024, arXiv:2408.00118): soft-caps, a window in every other layer."""
    fields = _shared(reader, local=lambda i: i % 2 == 0)
    window = max(fields["windows"])
    reader.expect("sliding_window_size", window)  # said twice in some checkpoints
    return DecoderConfig(
        **fields,
        **reader.one_rope(fields["n_layers"]),
        attention_softcap=_cap(reader, "attn_logit_softcapping", 50.0),
        logit_softcap=_cap(reader, "final_logit_softcapping", 30.0),
    )


def _cap(reader: Reader, name: str, default: float) -> float:
    """A soft-cap; null is none."""
    cap = reader.take_or_null(name, default)
    return reader.as_real(name, cap) if cap else 0.0


def _gemma3(reader: Reader) -> DecoderConfig:
    """Gemma 3 (Gemma Team 2025, arXiv:2503.19786): normed queries and keys, a rope per window."""
    for name in ("final_logit_softcapping", "attn_logit_softcapping"):
        reader.expect(name)
    newer = reader.number("_sliding_window_pattern", 6)
    pattern = reader.number("sliding_window_pattern", newer)
    fields = _shared(reader, local=lambda i: (i + 1) % pattern != 0)

    theta = reader.real("rope_theta", 1e6)
    local_theta = reader.real("rope_local_base_freq", 1e4)
    ropes = reader.rope_parameters(_WHOLE)
    if "rope_type" in ropes or "rope_theta" in ropes or ropes.keys() - {_LOCAL, _WHOLE}:
        raise reader.refuse("rope_parameters", f"without {_LOCAL} and {_WHOLE}")
    return DecoderConfig(
        **fields,
        ropes=(
            reader.rope(f"rope_parameters.{_WHOLE}", ropes.get(_WHOLE) or {}, theta),
            reader.rope(f"rope_parameters.{_LOCAL}", ropes.get(_LOCAL) or {}, local_theta),
        ),
        rope_of_layer=tuple(int(window > 0) for window in fields["windows"]),
        qk_norm=True,
    )


# What the hub's multimodal configs leave to `transformers`.
_TEXT_DEFAULTS = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "bos_token_id": 2,
    "eos_token_id": 1,
}


def _gemma3_with_vision(reader: Reader) -> DecoderConfig:
    """The text decoder of a Gemma 3 that also sees; it is given text only."""
    reader.ignore("vision_config", "mm_tokens_per_image")
    reader.ignore("boi_token_index", "eoi_token_index", "image_token_index")
    reader.expect("tie_word_embeddings", True)
    text = reader.mapping("text_config")
    inner = Reader({**_TEXT_DEFAULTS, **text, "model_type": reader.kind})
    config = _gemma3(inner)
    inner.refuse_the_rest()
    ends = reader.token_ids("eos_token_id", config.eos_token_ids)
    return dataclasses.replace(config, eos_token_ids=ends)


def _shared(reader: Reader, local: Any) -> dict[str, Any]:
    sizes = reader.sizes()
    reader.expect("attention_bias", False)
    reader.expect("use_bidirectional_attention", False)
    reader.expect("hidden_act", "gelu_pytorch_tanh")  # an older name, which nothing reads
    kinds = reader.layer_types(sizes["n_layers"], local)
    return sizes | {
        "d_ff": reader.number("intermediate_size"),
        "activation": reader.activation("hidden_activation", "gelu_pytorch_tanh"),
        "norm_eps": reader.real("rms_norm_eps", 1e-6),
        "windows": reader.windows(kinds, reader.take_or_null("sliding_window", 4096)),
        "query_scale": reader.real("query_pre_attn_scalar", 256) ** -0.5,
        "embedding_scale": math.sqrt(sizes["d_model"]),
        "norm_plus_one": True,
        "post_norms": True,
        "tied": reader.flag("tie_word_embeddings", True),
    }


GEMMA2 = Family(_gemma2, llama_tensors)
GEMMA3 = Family(_gemma3, llama_tensors)
GEMMA3_WITH_VISION = Family(
    _gemma3_with_vision,
    llama_tensors,
    prefixes=("language_model.model.", "model.language_model."),
    ignored=r"^(model\.)?(vision_tower|multi_modal_projector)\.|lm_head\.weight$",
    part=True,
)
