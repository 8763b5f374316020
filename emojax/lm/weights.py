"""A Hugging Face directory's safetensors as the decoder's parameters."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from emojax.lm.config import DecoderConfig


def load(directory: Path, config: DecoderConfig, dtype: Any = jnp.float32) -> Any:
    """Reads `*.safetensors` under `directory` (with or without an index file) into parameters."""
    raise NotImplementedError
