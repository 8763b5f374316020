"""Llama and its kin: SmolLM (which says that it is a Llama) and Mistral."""

from emojax.lm.config import DecoderConfig
from emojax.lm.families.family import Family, llama_tensors
from emojax.lm.families.reader import Reader

_ATTENTION, _MLP = ("q", "k", "v", "o"), ("gate", "up", "down")


def _llama(reader: Reader) -> DecoderConfig:
    """Llama 1 to 3.2 (Touvron et al. 2023, arXiv:2302.13971; Dubey et al. 2024, 2407.21783)."""
    sizes = reader.sizes()
    reader.expect("rope_interleaved", False)
    reader.ignore("max_sequence_length")  # said twice in some conversions of Llama 1
    biases = _ATTENTION if reader.flag("attention_bias", False) else ()
    biases += _MLP if reader.flag("mlp_bias", False) else ()
    return DecoderConfig(
        **sizes,
        **reader.one_rope(sizes["n_layers"]),
        d_ff=reader.number("intermediate_size"),
        activation=reader.activation("hidden_act", "silu"),
        norm_eps=reader.real("rms_norm_eps", 1e-6),
        windows=(0,) * sizes["n_layers"],
        query_scale=sizes["head_dim"] ** -0.5,
        biases=biases,
        tied=reader.flag("tie_word_embeddings", False),
    )


def _mistral(reader: Reader) -> DecoderConfig:
    """Mistral (Jiang et al. 2023, arXiv:2310.06825)."""
    sizes = reader.sizes()
    window = reader.take_or_null("sliding_window", 4096)
    kind = "full_attention" if window is None else "sliding_attention"
    return DecoderConfig(
        **sizes,
        **reader.one_rope(sizes["n_layers"]),
        d_ff=reader.number("intermediate_size"),
        activation=reader.activation("hidden_act", "silu"),
        norm_eps=reader.real("rms_norm_eps", 1e-6),
        windows=reader.windows([kind] * sizes["n_layers"], window),
        query_scale=sizes["head_dim"] ** -0.5,
        tied=reader.flag("tie_word_embeddings", False),
    )


LLAMA = Family(_llama, llama_tensors)
MISTRAL = Family(_mistral, llama_tensors)
