"""What a family of models is to the loader: how its config is read, what its tensors are called."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from emojax.lm.config import DecoderConfig
from emojax.lm.families.reader import Reader


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where one of the decoder's parameters lies in a Hugging Face checkpoint.

    Our matrices are [in, out], as `x @ w` reads them.

    Attributes:
      name: the tensor's, after the family's prefix; `{}` stands for the layer's number.
      transposed: whether it is stored [out, in], as PyTorch's linear layers do.
      outputs: which of its outputs (the last axis of ours) the parameter is, where several share a
        tensor.
    """

    name: str
    transposed: bool = False
    outputs: Any = dataclasses.field(default_factory=lambda: slice(None))

    def ours(self, tensor: np.ndarray) -> np.ndarray:
        """The parameter out of the tensor, a view where the outputs lie side by side."""
        return (tensor.T if self.transposed else tensor)[..., self.outputs]

    def put(self, tensor: np.ndarray, parameter: np.ndarray) -> None:
        """Writes the parameter to where `ours` reads it."""
        (tensor.T if self.transposed else tensor)[..., self.outputs] = parameter


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of checkpoint.

    Attributes:
      config: its `config.json` as a `DecoderConfig`.
      tensors: where each parameter lies, by its name in `decoder.shapes`; layers' parameters have
        `{}` in their tensor's name. A bias lies beside its weight and is not listed.
      prefixes: what may stand before every name; the first that fits is meant.
      head: the unembedding's name, which has no prefix.
      ignored: a pattern of further tensors that may be there and that nothing reads.
      part: whether the decoder is only part of the model, so that it cannot be saved as one.
    """

    config: Callable[[Reader], DecoderConfig]
    tensors: Callable[[DecoderConfig], Mapping[str, Stored]]
    prefixes: tuple[str, ...] = ("model.",)
    head: str = "lm_head.weight"
    ignored: str = r"\.inv_freq$"
    part: bool = False


_LLAMA = {
    "embed": Stored("embed_tokens.weight"),
    "final_norm": Stored("norm.weight"),
    "attn_norm": Stored("layers.{}.input_layernorm.weight"),
    "q": Stored("layers.{}.self_attn.q_proj.weight", transposed=True),
    "k": Stored("layers.{}.self_attn.k_proj.weight", transposed=True),
    "v": Stored("layers.{}.self_attn.v_proj.weight", transposed=True),
    "o": Stored("layers.{}.self_attn.o_proj.weight", transposed=True),
    "q_norm": Stored("layers.{}.self_attn.q_norm.weight"),
    "k_norm": Stored("layers.{}.self_attn.k_norm.weight"),
    "mlp_norm": Stored("layers.{}.post_attention_layernorm.weight"),
    "gate": Stored("layers.{}.mlp.gate_proj.weight", transposed=True),
    "up": Stored("layers.{}.mlp.up_proj.weight", transposed=True),
    "down": Stored("layers.{}.mlp.down_proj.weight", transposed=True),
}
# With norms after attention and MLP too, `post_attention_layernorm` is what it says.
_POST_NORMS = {
    "attn_post_norm": Stored("layers.{}.post_attention_layernorm.weight"),
    "mlp_norm": Stored("layers.{}.pre_feedforward_layernorm.weight"),
    "mlp_post_norm": Stored("layers.{}.post_feedforward_layernorm.weight"),
}


def llama_tensors(config: DecoderConfig) -> Mapping[str, Stored]:
    """Llama's names, which most families took over; what the config has no use for is unused."""
    return _LLAMA | _POST_NORMS if config.post_norms else _LLAMA
