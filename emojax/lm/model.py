"""A language model as a value: its config, its parameters, its tokenizer, where it came from."""

import dataclasses
from pathlib import Path
from typing import Any

from emojax.lm.config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A loaded language model.

    Attributes:
      name: what reports call it.
      config: the decoder's traits (static, hashable).
      params: the decoder's parameters (`weights.load`), a pytree of arrays.
      tokenizer: a `transformers` fast tokenizer.
      directory: the Hugging Face directory that it was read from.
      fingerprint: SHA-256 of the file, or of a directory's config and weights, which names caches
        made with this model.
    """

    name: str
    config: DecoderConfig
    params: Any
    tokenizer: Any
    directory: Path
    fingerprint: str
