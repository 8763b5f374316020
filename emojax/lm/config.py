"""What a decoder is made of: its traits, whichever family of models it is of."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Rope:
    """One rotary position embedding (Su et al. 2021, arXiv:2104.09864).

    `kind` says how the frequencies differ from the plain ones:
      "default": not at all.
      "linear": all divided by `factor`.
      "llama3": low ones divided by `factor`, high ones kept, a ramp between the numbers of turns
        `low_freq_factor` and `high_freq_factor` in `original_context` tokens.
      "yarn": the same with a ramp over the dimensions between `beta_slow` and `beta_fast` turns,
        its ends whole dimensions if `truncate`, and queries and keys multiplied by
        `attention_factor` (Peng et al. 2023, arXiv:2309.00071).
      "dynamic": theta grows with the longest row once that exceeds `original_context` ("NTK-aware"
        scaling, appendix B of the same paper).
      "longrope": each divided by its own number, in `short_factor`, or in `long_factor` once the
        longest row exceeds `original_context`; multiplied by `attention_factor` too (Ding et al.
        2024, arXiv:2402.13753).

    By the last two a row's numbers depend on the longest row beside it (`rope`).
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A pre-norm decoder-only transformer, described by its traits.

    Attributes:
      vocab_size: rows of the embedding.
      n_layers: how many blocks there are.
      d_model: the residual stream's width.
      d_ff: the MLP's width.
      n_heads: query heads.
      n_kv_heads: key and value heads, each for `n_heads / n_kv_heads` query heads.
      head_dim: a head's width.
      context: the longest row, in tokens.
      activation: the MLP's, one of `decoder.ACTIVATIONS`.
      norm_eps: what every norm adds to the variance.
      windows: how many tokens each layer sees, its own included (0: all before it).
      query_scale: what scores are multiplied by.
      ropes: the rotary embeddings that layers choose from; without any, positions are learned
        vectors that are added to the tokens'.
      rope_of_layer: which of `ropes` each layer has.
      rotary_dim: how many of a head's dimensions, the first ones, are rotated (0: all of them).
      embedding_scale: what the tokens' vectors are multiplied by.
      norm: "rms", or "layer", which has a bias.
      norm_plus_one: whether the norms' weights are stored as their difference from 1.
      qk_norm: whether each head's queries and keys are normed (RMS).
      post_norms: whether what attention and MLP give is normed before it is added.
      gated: whether the MLP is down(act(gate(x)) * up(x)), or else down(act(up(x))).
      parallel: whether the MLP reads what attention reads, not what attention left.
      biases: the matrices that have one.
      attention_softcap: c in c * tanh(score / c); 0 is none.
      logit_softcap: the same for logits.
      tied: whether the unembedding is the embedding.
      family: the row of `families.FAMILIES` that knows its checkpoints' names.
      bos_token_id: the token that begins a text (None: it was trained without).
      eos_token_ids: the tokens that end one.
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
    windows: tuple[int, ...]
    query_scale: float
    ropes: tuple[Rope, ...] = ()
    rope_of_layer: tuple[int, ...] = ()
    rotary_dim: int = 0
    embedding_scale: float = 1.0
    norm: str = "rms"
    norm_plus_one: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    gated: bool = True
    parallel: bool = False
    biases: tuple[str, ...] = ()
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    tied: bool = True
    family: str = "llama"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_hf(cls, attributes: Mapping[str, Any]) -> "DecoderConfig":
        """Reads the dictionary of a Hugging Face `config.json`.

        Raises:
          UserError: the family is not supported, or an attribute is missing, unknown or has a value
            that is not supported; the message names it.
        """
        from emojax.lm import families  # which describe themselves with this class

        return families.read_config(attributes)
