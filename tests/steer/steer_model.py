"""A language model with random weights, small enough to compile at once."""

from pathlib import Path
from types import SimpleNamespace

import jax

from emojax.lm import decoder
from emojax.lm.config import DecoderConfig, Rope
from emojax.lm.model import LanguageModel

CONFIG = DecoderConfig(
    vocab_size=40,
    n_layers=2,
    d_model=32,
    d_ff=32,
    n_heads=2,
    n_kv_heads=1,
    head_dim=16,
    context=64,
    activation="silu",
    norm_eps=1e-6,
    ropes=(Rope(10_000.0),),
    rope_of_layer=(0, 0),
    windows=(0, 0),
    query_scale=0.25,
)


class Tokenizer:
    """One token per character; shows token 7 as <7>."""

    bos_token_id = 0

    @property
    def backend_tokenizer(self) -> "Tokenizer":
        return self

    def no_truncation(self) -> None:
        """There is none."""

    def no_padding(self) -> None:
        """There is none."""

    def encode_batch(self, texts: list[str], **_: object) -> list[SimpleNamespace]:
        return [SimpleNamespace(ids=[1 + ord(c) % 39 for c in text]) for text in texts]

    def decode(self, tokens: list[int], **_: object) -> str:
        return "".join(f"<{token}>" for token in tokens)


def tiny_model() -> LanguageModel:
    params = decoder.init(CONFIG, jax.random.key(0))
    return LanguageModel("tiny", CONFIG, params, Tokenizer(), Path(), "0" * 64)
