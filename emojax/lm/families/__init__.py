"""The families of language models that can be loaded: one file for each, one row here."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from emojax.errors import UserError
from emojax.lm.config import DecoderConfig
from emojax.lm.families.family import Family
from emojax.lm.families.gemma import GEMMA2, GEMMA3, GEMMA3_WITH_VISION
from emojax.lm.families.gpt2 import GPT2
from emojax.lm.families.gpt_neox import GPT_NEOX
from emojax.lm.families.llama import LLAMA, MISTRAL
from emojax.lm.families.qwen import QWEN2, QWEN3
from emojax.lm.families.reader import Reader

# By the `model_type` in `config.json`.
FAMILIES: dict[str, Family] = {
    "gemma2": GEMMA2,
    "gemma3": GEMMA3_WITH_VISION,
    "gemma3_text": GEMMA3,
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
}


def read_config(attributes: Mapping[str, Any]) -> DecoderConfig:
    """`DecoderConfig.from_hf`."""
    kind = attributes.get("model_type")
    if kind not in FAMILIES:
        raise UserError(
            f"The model's config has model_type {kind!r}, which is not supported; "
            f"use one of {', '.join(FAMILIES)}."
        )
    reader = Reader(attributes)
    config = FAMILIES[kind].config(reader)
    reader.refuse_the_rest()
    pairs = (config.rotary_dim or config.head_dim) // 2
    for rope in config.ropes:
        found = {len(rope.short_factor), len(rope.long_factor)}
        if rope.kind == "longrope" and found != {pairs}:
            numbers = f"short_factor and long_factor without {pairs} numbers each"
            raise reader.refuse("rope_parameters", f"with {numbers}")
    # "dynamic" is for texts so much longer; with the other kinds `context` is the longer one.
    reach = max([1.0, *(rope.factor for rope in config.ropes if rope.kind == "dynamic")])
    return dataclasses.replace(config, context=int(reach * config.context))
