"""Qwen 2, 2.5 and 3, the dense ones."""

from emojax.lm.config import DecoderConfig
from emojax.lm.families.family import Family, llama_tensors
from emojax.lm.families.reader import Reader


def _qwen2(reader: Reader) -> DecoderConfig:
    """Qwen 2 and 2.5 (Yang et al. 2024, arXiv:2407.10671, 2412.15115): biases on q, k and v."""
    return _qwen(reader, ("q", "k", "v"), qk_norm=False)


def _qwen3(reader: Reader) -> DecoderConfig:
    """Qwen 3 (Yang et al. 2025, arXiv:2505.09388): normed queries and keys."""
    biases = ("q", "k", "v", "o") if reader.flag("attention_bias", False) else ()
    return _qwen(reader, biases, qk_norm=True)


def _qwen(reader: Reader, biases: tuple[str, ...], qk_norm: bool) -> DecoderConfig:
    sizes = reader.sizes()
    sizes["bos_token_id"] = None  # the configs name one, but no text was trained with it
    reader.expect("use_mrope", False)
    # Layers from `max_window_layers` on have a window, if any has.
    window = reader.take_or_null("sliding_window", 4096)
    first = reader.number("max_window_layers", 28, least=0)
    if not reader.flag("use_sliding_window", False):
        window = None
    kinds = reader.layer_types(sizes["n_layers"], lambda i: window is not None and i >= first)
    return DecoderConfig(
        **sizes,
        **reader.one_rope(sizes["n_layers"]),
        d_ff=reader.number("intermediate_size"),
        activation=reader.activation("hidden_act", "silu"),
        norm_eps=reader.real("rms_norm_eps", 1e-6),
        windows=reader.windows(kinds, window),
        query_scale=sizes["head_dim"] ** -0.5,
        biases=biases,
        qk_norm=qk_norm,
        tied=reader.flag("tie_word_embeddings", False),
    )


QWEN2 = Family(_qwen2, llama_tensors)
QWEN3 = Family(_qwen3, llama_tensors)
