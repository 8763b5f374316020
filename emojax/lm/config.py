"""What a decoder is made of: traits, read from a Hugging Face `config.json` by an allow-list."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from emojax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Rope:
    """One rotary position embedding (Su et al. 2021, arXiv:2104.09864).

    `kind` is "default", "linear" (positions divided by `factor`) or "llama3" (low frequencies
    divided by `factor`, high ones kept, a ramp between; `original_context` in tokens).
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A pre-norm decoder-only transformer, described by its traits.

    `windows[i]` is how many tokens layer i sees, its own included (0: all before it), and
    `ropes[rope_of_layer[i]]` how it encodes positions. `context` is in tokens.
    """

    vocab_size: int
    n_layers: int
    d_model: int
    d_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    context: int
    activation: str
    norm_eps: float
    ropes: tuple[Rope, ...]
    rope_of_layer: tuple[int, ...]
    windows: tuple[int, ...]
    query_scale: float
    embedding_scale: float = 1.0
    norm_plus_one: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    tied: bool = True
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_hf(cls, attributes: Mapping[str, Any]) -> "DecoderConfig":
        """Reads the dictionary of a Hugging Face `config.json`.

        Raises:
          UserError: the architecture is not supported, or an attribute is missing, unknown or has a
            value that is not supported; the message names it.
        """
        kind = attributes.get("model_type")
        if kind not in _ARCHITECTURES:
            raise UserError(
                f"The model's config has model_type {kind!r}, which is not supported; "
                f"use one of {', '.join(sorted(_ARCHITECTURES))}."
            )
        reader = _Reader(attributes)
        config = _ARCHITECTURES[kind](reader)
        reader.refuse_the_rest()
        return config


# Attributes that do not change what a forward pass computes.
_HARMLESS = frozenset(
    (
        "_attn_implementation_autoset",
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "cache_implementation",
        "chunk_size_feed_forward",
        "dtype",
        "id2label",
        "initializer_range",
        "is_llama_config",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",  # 1 in every checkpoint; other values split matmuls, not their results
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "use_cache",
    )
)
_REQUIRED = object()
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "silu": "silu"}


class _Reader:
    """Takes attributes out of a config one by one, so that what is left over is known."""

    def __init__(self, attributes: Mapping[str, Any]):
        self._left = dict(attributes)
        self.kind = attributes["model_type"]

    def refuse(self, name: str, problem: str) -> UserError:
        return UserError(
            f"The model's config ({self.kind}) has {name} {problem}, which is not supported; "
            "use a model without it."
        )

    def take(self, name: str, default: Any = _REQUIRED) -> Any:
        value = self._left.pop(name, None)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise UserError(
                f"The model's config ({self.kind}) lacks the attribute {name}; add it there."
            )
        return default

    def number(self, name: str, default: Any = _REQUIRED) -> int:
        value = self.take(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.refuse(name, f"= {value!r}")
        return value

    def expect(self, name: str, *allowed: Any) -> None:
        value = self._left.pop(name, None)
        if value is not None and value not in allowed:
            raise self.refuse(name, f"= {value!r}")

    def activation(self, name: str, default: str) -> str:
        value = self.take(name, default)
        if value not in _ACTIVATIONS:
            raise self.refuse(name, f"= {value!r}")
        return _ACTIVATIONS[value]

    def rope(self, name: str, parameters: Mapping[str, Any], theta: float) -> Rope:
        """One rope from the parameters in either form: `rope_type` or the older `type`."""
        left = dict(parameters)
        old_kind = left.pop("type", None)
        kind = left.pop("rope_type", None) or old_kind or "default"
        if kind not in ("default", "linear", "llama3"):
            raise self.refuse(f"{name}.rope_type", f"= {kind!r}")
        names = {"rope_theta": "theta"}
        if kind in ("linear", "llama3"):
            names["factor"] = "factor"
        if kind == "llama3":
            names |= {n: n for n in ("low_freq_factor", "high_freq_factor")}
            names["original_max_position_embeddings"] = "original_context"
        values: dict[str, Any] = {"theta": theta}
        for old, new in names.items():
            if (value := left.pop(old, None)) is not None:
                values[new] = value
            elif new != "theta":
                raise UserError(f"The model's config ({self.kind}) lacks {name}.{old}; add it.")
        if left:
            raise self.refuse(f"{name}.{min(left)}", f"= {left[min(left)]!r}")
        return Rope(kind=kind, **values)

    def common(self) -> dict[str, Any]:
        """What every architecture's config names in the same way."""
        n_heads = self.number("num_attention_heads")
        d_model = self.number("hidden_size")
        eos = self.take("eos_token_id", ())
        self.expect("attention_bias", False)
        self.expect("is_encoder_decoder", False)
        values = {
            "vocab_size": self.number("vocab_size"),
            "n_layers": self.number("num_hidden_layers"),
            "d_model": d_model,
            "d_ff": self.number("intermediate_size"),
            "n_heads": n_heads,
            "n_kv_heads": self.number("num_key_value_heads", n_heads),
            "head_dim": self.number("head_dim", d_model // n_heads),
            "context": self.number("max_position_embeddings"),
            "norm_eps": float(self.take("rms_norm_eps", 1e-6)),
            "bos_token_id": self.take("bos_token_id", None),
            "eos_token_ids": (eos,) if isinstance(eos, int) else tuple(eos),
        }
        if values["n_heads"] % values["n_kv_heads"]:
            raise self.refuse("num_key_value_heads", f"= {values['n_kv_heads']!r}")
        if values["head_dim"] % 2:
            raise self.refuse("head_dim", f"= {values['head_dim']!r}")
        return values

    def refuse_the_rest(self) -> None:
        left = sorted(self._left.keys() - _HARMLESS)
        if left:
            raise self.refuse(left[0], f"= {self._left[left[0]]!r}")


def _llama(reader: _Reader) -> DecoderConfig:
    """Llama (Touvron et al. 2023, arXiv:2302.13971) and what shares its traits, as SmolLM2."""
    common = reader.common()
    reader.expect("mlp_bias", False)
    reader.expect("rope_interleaved", False)
    theta = float(reader.take("rope_theta", 10000.0))
    scaling = reader.take("rope_scaling", {})
    parameters = reader.take("rope_parameters", scaling)
    return DecoderConfig(
        **common,
        activation=reader.activation("hidden_act", "silu"),
        ropes=(reader.rope("rope_parameters", parameters, theta),),
        rope_of_layer=(0,) * common["n_layers"],
        windows=(0,) * common["n_layers"],
        query_scale=common["head_dim"] ** -0.5,
        tied=reader.take("tie_word_embeddings", False),
    )


def _gemma3(reader: _Reader) -> DecoderConfig:
    """Gemma 3's text decoder (Gemma Team 2025, arXiv:2503.19786)."""
    common = reader.common()
    n_layers = common["n_layers"]
    for name in ("final_logit_softcapping", "attn_logit_softcapping"):
        reader.expect(name)
    reader.expect("use_bidirectional_attention", False)

    local, whole = "sliding_attention", "full_attention"
    newer = reader.take("_sliding_window_pattern", 6)
    pattern = reader.take("sliding_window_pattern", newer)
    kinds = reader.take(
        "layer_types", [whole if (i + 1) % pattern == 0 else local for i in range(n_layers)]
    )
    unknown = set(kinds) - {local, whole}
    if unknown or len(kinds) != n_layers:
        raise reader.refuse("layer_types", f"= {sorted(unknown) or kinds!r}")

    theta = float(reader.take("rope_theta", 1e6))
    local_theta = float(reader.take("rope_local_base_freq", 1e4))
    scaling = reader.take("rope_scaling", {})
    ropes = reader.take("rope_parameters", {whole: scaling})
    if "rope_type" in ropes or "rope_theta" in ropes or ropes.keys() - {local, whole}:
        raise reader.refuse("rope_parameters", "without sliding_attention and full_attention")
    window = reader.number("sliding_window", 4096)
    return DecoderConfig(
        **common,
        activation=reader.activation("hidden_activation", "gelu_pytorch_tanh"),
        ropes=(
            reader.rope(f"rope_parameters.{whole}", ropes.get(whole) or {}, theta),
            reader.rope(f"rope_parameters.{local}", ropes.get(local) or {}, local_theta),
        ),
        rope_of_layer=tuple(int(kind == local) for kind in kinds),
        windows=tuple(window if kind == local else 0 for kind in kinds),
        query_scale=reader.take("query_pre_attn_scalar", 256) ** -0.5,
        embedding_scale=math.sqrt(common["d_model"]),
        norm_plus_one=True,
        qk_norm=True,
        post_norms=True,
        tied=reader.take("tie_word_embeddings", True),
    )


_ARCHITECTURES: dict[str, Callable[[_Reader], DecoderConfig]] = {
    "gemma3_text": _gemma3,
    "llama": _llama,
}
