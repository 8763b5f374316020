"""How long steered generation takes, beside `transformers.generate` with a forward hook.

    python -m benchmarks.generate
    python -m benchmarks.generate --lms DIRECTORY --dtype bfloat16

The second is what the bar for a GPU is about. Prints a table and writes
`benchmarks/results/generate-<platform>.json`; `python -m benchmarks.lm_tables` puts it in the
README. 27 rows of 16 tokens, each with a vector of its own added to the middle layer's output at
every token, are continued greedily by 64 tokens that nothing stops; same weights, prompts and
precision, in turns. Tokens may part where two logits are all but equal; how many agree is in the
JSON. The bar was set before the measurement.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from benchmarks import beside_torch
from benchmarks.beside_torch import Bar, Subject
from emojax import errors
from emojax.errors import UserError
from emojax.lm import intervene
from emojax.lm.config import DecoderConfig
from emojax.lm.generate import GenerateSettings, generate

OURS, THEIRS = "emojax", "PyTorch, transformers.generate"
BARS = (Bar(THEIRS, cpu=1.2, gpu=10.0),)
ROWS, PROMPT, NEW = 27, 16, 64
# How many rows' first tokens must agree; in bfloat16 near ties are common among random prompts.
AGREE = {"float32": 0.9, "bfloat16": 0.5}

Write = Callable[[], list[list[int]]]


def problem(config: DecoderConfig) -> tuple[list[list[int]], np.ndarray]:
    """Random prompts, and a random vector per row."""
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, config.vocab_size, (ROWS, PROMPT)).tolist()
    return prompts, rng.standard_normal((ROWS, config.d_model), np.float32)


def ours(subject: Subject) -> Write:
    """All rows in one call of `generate`."""
    lm = subject.ours()
    prompts, vectors = problem(lm.config)
    settings = GenerateSettings(max_new_tokens=NEW, temperature=0.0, stop_tokens=())
    edit = intervene.direction("add", vectors, layer=lm.config.n_layers // 2)
    return lambda: generate(lm, prompts, settings, [edit]).tokens


def theirs(subject: Subject) -> Write:
    """All rows in one call of `transformers.generate`, with its own key-value cache."""
    import torch

    reference = subject.theirs()
    reference.generation_config.eos_token_id = None
    reference.generation_config.pad_token_id = 0
    prompts, vectors = problem(subject.config)
    tokens = torch.tensor(prompts, device=reference.device)
    added = torch.tensor(vectors, device=reference.device, dtype=reference.dtype)[:, None]
    body = reference.base_model
    layers = body.h if hasattr(body, "h") else body.layers

    def hook(module, inputs, output):
        if isinstance(output, tuple):
            return (output[0] + added, *output[1:])
        return output + added

    def write() -> list[list[int]]:
        handle = layers[subject.config.n_layers // 2].register_forward_hook(hook)
        with torch.inference_mode():
            written = reference.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=NEW,
                do_sample=False,
            )
        handle.remove()
        return written[:, PROMPT:].tolist()

    return write


def main(argv: Sequence[str]) -> None:
    """Measures, prints, writes."""
    del argv
    results = {}
    for model in beside_torch.MODELS.value:
        subject = beside_torch.subject(model)
        makers = {OURS: partial(ours, subject), THEIRS: partial(theirs, subject)}
        figures, written = beside_torch.in_turns(makers)
        same = np.array(written[OURS]) == np.array(written[THEIRS])
        if same[:, 0].mean() < AGREE[subject.dtype]:
            raise UserError(f"First tokens differ on {model}; run the parity tests.")
        beside_torch.peaks(makers, figures)
        title = f"{model}, {ROWS} steered rows, {NEW} tokens each"
        verdicts = beside_torch.judge(title, figures, OURS, BARS, ROWS * NEW)
        results[model] = {
            "tokens": ROWS * NEW,
            "same_tokens": round(float(same.mean()), 3),
            "figures": figures,
            "bars": verdicts,
        }
    beside_torch.write("generate", results)


if __name__ == "__main__":
    errors.run(main)
