"""Captures, patches and steers with the same ten lines, whatever the family of the model.

    python -m experiments.look_inside [--sources gemma-3-270m,smollm2-135m-instruct,random:gpt2]

Copy `look_inside` into a notebook to go on from there. `random:<model_type>` is a tiny model with
random weights, which says nothing sensible but runs everywhere: a stand-in for a checkpoint of
that family, which you name by its file or directory.
"""

from pathlib import Path
from typing import Any

import jax
from absl import flags

from emojax import errors
from emojax.errors import UserError
from emojax.lm import capture, decoder, intervene, sources
from emojax.lm.capture import Tap
from emojax.lm.config import DecoderConfig
from emojax.lm.generate import GenerateSettings, generate
from emojax.lm.model import LanguageModel
from emojax.lm.run_with_cache import run_with_cache
from emojax.lm.text import tokenize

SOURCES = flags.DEFINE_list(
    "sources",
    ["gemma-3-270m", "smollm2-135m-instruct", "random:gpt2"],
    "As emojax.lm.sources.load takes them, or random:<model_type>.",
)
# What the `config.json` of a tiny model of each family says.
SIZES = {
    "vocab_size": 257,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
RANDOM = {
    "llama": SIZES,
    "gemma3_text": SIZES | {"head_dim": 16, "sliding_window": 16},
    "qwen3": SIZES | {"head_dim": 16},
    "gpt2": {"vocab_size": 257, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 256},
}

QUESTIONS = ["The capital of France is the city of", "The capital of Russia is the city of"]
MOODS = ["I am so happy", "I am so sad"]
SETTINGS = GenerateSettings(max_new_tokens=24, temperature=0.0)
# The first text is left alone.
PUSH: dict[str, Any] = {"strength": [0, 0.5], "unit": "fraction", "phase": "generated"}


def look_inside(lm: LanguageModel) -> dict[str, list[str]]:
    """The likeliest next words, plain and patched; a text, plain and steered."""
    layer = lm.config.n_layers // 2
    logits, cache = run_with_cache(lm, QUESTIONS)
    country = cache.tokens[0] != cache.tokens[1]
    swap = cache.patch((layer, "resid_post"), row=1, rows=[1, 0], positions=country)
    patched, _ = run_with_cache(lm, QUESTIONS, [], [swap])
    happy, sad = capture.last_token(lm, tokenize(lm, MOODS), Tap(layer))
    push = intervene.direction("add", happy - sad, layer=layer, **PUSH)
    texts = generate(lm, ["Today I feel"] * 2, SETTINGS, [push]).texts
    answers = [scores[0, cache.last[0]].argmax() for scores in (logits, patched)]
    return {"answers": [lm.tokenizer.decode([int(a)]) for a in answers], "texts": texts}


def random_model(model_type: str) -> LanguageModel:
    """A tiny model with random weights, whose tokens are bytes.

    Raises:
      UserError: there is none of that type here.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if model_type not in RANDOM:
        raise UserError(f"There is no random {model_type!r}; use one of {', '.join(RANDOM)}.")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", *alphabet])}
    bytewise = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    config = DecoderConfig.from_hf({"model_type": model_type} | RANDOM[model_type])
    return LanguageModel(
        name=f"random {model_type}",
        config=config,
        params=decoder.init(config, jax.random.key(1)),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=bytewise, bos_token="<s>"),
        directory=Path(),
        fingerprint="random",
    )


def main(_):
    """Looks inside each model."""
    for name in SOURCES.value:
        kind = name.removeprefix("random:")
        lm = random_model(kind) if kind != name else sources.load(name)
        found = look_inside(lm)
        print(f"{lm.name}: {lm.config.n_layers} layers of {lm.config.d_model}")
        print(f"  {QUESTIONS[0]} …{found['answers'][0]}")
        print(f"  with the other country's layer {lm.config.n_layers // 2}: …{found['answers'][1]}")
        print(f"  plain: Today I feel{found['texts'][0]!r}")
        print(f"  steered: Today I feel{found['texts'][1]!r}")


if __name__ == "__main__":
    errors.run(main)
