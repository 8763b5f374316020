"""Reading a Hugging Face `config.json` by an allow-list."""

import math
from collections.abc import Mapping
from typing import Any

from emojax.errors import UserError
from emojax.lm.config import Rope

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
        "task_specific_params",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
    )
)
_REQUIRED = object()
# Hugging Face's names of the activations, and ours.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
}
_ROPE_FIELDS = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_context",
    },
    "yarn": {"factor": "factor", "original_max_position_embeddings": "original_context"},
    "dynamic": {"factor": "factor"},
    "longrope": {
        "short_factor": "short_factor",
        "long_factor": "long_factor",
        "original_max_position_embeddings": "original_context",
    },
}
_ROPE_OPTIONS = {
    "yarn": ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"),
    "longrope": ("factor", "attention_factor"),
}
# What most configs call the sizes.
_SIZES = {
    "vocab_size": "vocab_size",
    "n_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "context": "max_position_embeddings",
}


class Reader:
    """Takes attributes out of a config one by one, so that what is left over is known."""

    def __init__(self, attributes: Mapping[str, Any]):
        self._left = dict(attributes)
        self._context = 0
        self.kind = attributes["model_type"]

    def refuse(self, name: str, problem: str) -> UserError:
        """The error that names an attribute and says that its value is not supported."""
        return UserError(
            f"The model's config ({self.kind}) has {name} {problem}, which is not supported; "
            "use a model without it."
        )

    def take(self, name: str, default: Any = _REQUIRED) -> Any:
        """The attribute's value; without one, or with null, the default."""
        value = self._left.pop(name, None)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise UserError(
                f"The model's config ({self.kind}) lacks the attribute {name}; add it there."
            )
        return default

    def take_or_null(self, name: str, default: Any) -> Any:
        """The attribute's value, where null says something else than leaving it out."""
        return self._left.pop(name, default)

    def number(self, name: str, default: Any = _REQUIRED, least: int = 1) -> int:
        """A whole number, from `least`."""
        value = self.take(name, default)
        if type(value) is not int or value < least:
            raise self.refuse(name, f"= {value!r}")
        return value

    def real(self, name: str, default: Any = _REQUIRED) -> float:
        """A number above 0."""
        return self.as_real(name, self.take(name, default))

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        return self.as_flag(name, self.take(name, default))

    def mapping(self, name: str, default: Any = _REQUIRED) -> Mapping[str, Any]:
        """A dictionary of attributes."""
        return self._as_mapping(name, self.take(name, default))

    def token_ids(self, name: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """One token id or several."""
        value = self.take(name, default)
        ids = tuple(value) if isinstance(value, list | tuple) else (value,)
        if any(type(token) is not int for token in ids):
            raise self.refuse(name, f"= {value!r}")
        return ids

    def expect(self, name: str, *allowed: Any) -> None:
        """Refuses values other than these and null."""
        value = self._left.pop(name, None)
        if value is not None and value not in allowed:
            raise self.refuse(name, f"= {value!r}")

    def ignore(self, *names: str) -> None:
        """Attributes of this family that do not change what a forward pass computes."""
        for name in names:
            self._left.pop(name, None)

    def activation(self, name: str, default: str) -> str:
        """One of `decoder.ACTIVATIONS`."""
        value = self.take(name, default)
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            raise self.refuse(name, f"= {value!r}")
        return _ACTIVATIONS[value]

    def sizes(self, **names: str) -> dict[str, Any]:
        """What every family has, as `DecoderConfig`'s fields; `names` are those unlike most."""
        called = _SIZES | names
        d_model = self.number(called["d_model"])
        n_heads = self.number(called["n_heads"])
        n_kv_heads = self.number(called["n_kv_heads"], n_heads)
        self.expect("is_encoder_decoder", False)
        if n_heads % n_kv_heads:
            raise self.refuse(called["n_kv_heads"], f"= {n_kv_heads!r}")
        self._context = self.number(called["context"])
        head_dim = self.number(called["head_dim"], d_model // n_heads)
        if head_dim % 2:
            raise self.refuse(called["head_dim"], f"= {head_dim!r}")
        return {
            "family": self.kind,
            "vocab_size": self.number(called["vocab_size"]),
            "n_layers": self.number(called["n_layers"]),
            "d_model": d_model,
            "n_heads": n_heads,
            "n_kv_heads": n_kv_heads,
            "head_dim": head_dim,
            "context": self._context,
            "bos_token_id": next(iter(self.token_ids("bos_token_id")), None),
            "eos_token_ids": self.token_ids("eos_token_id"),
        }

    def one_rope(self, n_layers: int, theta: float = 10000.0) -> dict[str, Any]:
        """The fields of a model whose layers share one rope, in the newer form or the older."""
        theta = self.real("rope_theta", theta)
        rope = self.rope("rope_parameters", self.rope_parameters(), theta)
        return {"ropes": (rope,), "rope_of_layer": (0,) * n_layers}

    def rope_parameters(self, part: str | None = None) -> Mapping[str, Any]:
        """The attribute `rope_parameters`, or the older `rope_scaling` (of `part`, if given).

        `transformers` lets the older one win, so both together must say the same.
        """
        older = self.mapping("rope_scaling", {})
        newer = self.mapping("rope_parameters", {})
        beside = newer if part is None else newer.get(part)
        if older and newer and older != beside:
            raise UserError(
                f"The model's config ({self.kind}) has rope_scaling = {older!r} and other "
                f"rope_parameters = {newer!r}; keep those that the model was trained with."
            )
        if part is not None:
            return newer or ({part: older} if older else {})
        return self._with_original_context(newer or older)

    def _with_original_context(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        """With what some configs say beside the rope, and `transformers` then prefers."""
        name = "original_max_position_embeddings"
        beside = self.take(name, None)
        kind = parameters.get("rope_type") or parameters.get("type") or "default"
        if beside is None or name not in _ROPE_FIELDS.get(str(kind), ()):
            return parameters
        if parameters.get(name, beside) != beside:
            raise self.refuse(name, f"= {beside!r} and another one in its rope")
        return {**parameters, name: beside}

    def rope(self, name: str, parameters: Any, theta: float) -> Rope:
        """One rope from the parameters in either form: `rope_type` or the older `type`.

        `sizes` comes first: two kinds go by the model's context.
        """
        left = dict(self._as_mapping(name, parameters))
        old_kind = left.pop("type", None)
        kind = left.pop("rope_type", None) or old_kind or "default"
        if str(kind) not in _ROPE_FIELDS:
            raise self.refuse(f"{name}.rope_type", f"= {kind!r}")
        given = left.pop("rope_theta", None)
        values: dict[str, Any] = {"theta": self.as_real(f"{name}.rope_theta", given or theta)}
        for old, new in _ROPE_FIELDS[kind].items():
            if (value := left.pop(old, None)) is None:
                raise UserError(f"The model's config ({self.kind}) lacks {name}.{old}; add it.")
            several = new in ("short_factor", "long_factor")
            values[new] = (self._reals if several else self.as_real)(f"{name}.{old}", value)
        for option in _ROPE_OPTIONS.get(kind, ()):
            if (value := left.pop(option, None)) is not None:
                values[option] = self.as_real(f"{name}.{option}", value)
        if kind == "yarn":
            # Equation 22 of the paper: 0.1 ln(factor) + 1. DeepSeek's models divide two of them, as
            # `transformers` does where both are given; one alone says nothing there.
            scales = [values.pop(scale, None) for scale in ("mscale", "mscale_all_dim")]
            over, under = scales if all(scales) else (1.0, 0.0)
            stretch = 0.1 * math.log(max(values["factor"], 1.0))
            values.setdefault("attention_factor", (over * stretch + 1.0) / (under * stretch + 1.0))
            values["truncate"] = self.as_flag(f"{name}.truncate", left.pop("truncate", True))
        if kind == "dynamic":
            values["original_context"] = self._context
        if kind == "longrope":
            # Section 3.2 of the paper; the ratio of the two contexts unless the config has another.
            original = values["original_context"]
            ratio = max(values.pop("factor", self._context / original), 1.0)
            values.setdefault(
                "attention_factor", math.sqrt(1 + math.log(ratio) / math.log(original))
            )
        if left:
            raise self.refuse(f"{name}.{min(left)}", f"= {left[min(left)]!r}")
        if "original_context" in values:
            values["original_context"] = int(values["original_context"])
        return Rope(kind=kind, **values)

    def as_real(self, name: str, value: Any) -> float:
        """A value that must be a number above 0."""
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise self.refuse(name, f"= {value!r}")
        return float(value)

    def as_flag(self, name: str, value: Any) -> bool:
        """A value that must be true or false."""
        if not isinstance(value, bool):
            raise self.refuse(name, f"= {value!r}")
        return value

    def _reals(self, name: str, value: Any) -> tuple[float, ...]:
        if not isinstance(value, list | tuple):
            raise self.refuse(name, f"= {value!r}")
        return tuple(self.as_real(name, number) for number in value)

    def _as_mapping(self, name: str, value: Any) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise self.refuse(name, f"= {value!r}")
        return value

    def windows(self, kinds: list[str], window: int | None) -> tuple[int, ...]:
        """Each layer's window, from `layer_types`."""
        if window is not None and (type(window) is not int or window < 1):
            raise self.refuse("sliding_window", f"= {window!r}")
        unknown = set(kinds) - {"sliding_attention", "full_attention"}
        if unknown:
            raise self.refuse("layer_types", f"= {sorted(unknown)}")
        if window is None and "sliding_attention" in kinds:
            raise self.refuse("sliding_window", "= None beside layer_types with a window")
        return tuple((window or 0) if kind == "sliding_attention" else 0 for kind in kinds)

    def layer_types(self, n_layers: int, is_local: Any) -> list[str]:
        """The attribute `layer_types`; without it, layer i has a window if `is_local(i)`."""
        kinds = self.take(
            "layer_types",
            ["sliding_attention" if is_local(i) else "full_attention" for i in range(n_layers)],
        )
        named = isinstance(kinds, list | tuple) and all(isinstance(kind, str) for kind in kinds)
        if not named or len(kinds) != n_layers:
            raise self.refuse("layer_types", f"= {kinds!r}")
        return list(kinds)

    def refuse_the_rest(self) -> None:
        """Refuses what nothing took and is not known to be harmless."""
        left = sorted(self._left.keys() - _HARMLESS)
        if left:
            raise self.refuse(left[0], f"= {self._left[left[0]]!r}")
