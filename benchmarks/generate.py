"""How long steered generation takes, beside `transformers.generate` with a forward hook.

    python -m benchmarks.generate [--models gemma-3-270m,smollm2-135m-instruct] [--turns 7]

Prints a table and writes `benchmarks/results/generate-<platform>.json`. 27 rows of 16 tokens, each
with a vector of its own added to the middle layer's output at every token, are continued greedily
by 64 tokens that nothing stops; same weights, prompts and precision, in turns. Tokens may part
where two logits are all but equal; how many agree is in the JSON. The bar was set before the
measurement.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from benchmarks import beside_torch
from benchmarks.beside_torch import Bar
from emojax import errors
from emojax.errors import UserError
from emojax.lm import intervene
from emojax.lm.generate import GenerateSettings, generate
from emojax.lm.model import LanguageModel

OURS, THEIRS = "emojax", "PyTorch, transformers.generate"
BARS = (Bar(THEIRS, cpu=1.2, gpu=10.0),)
ROWS, PROMPT, NEW = 27, 16, 64


def problem(lm: LanguageModel) -> tuple[list[list[int]], np.ndarray]:
    """Random prompts, and a vector per row as long as a twentieth of a typical residual's norm."""
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, lm.config.vocab_size, (ROWS, PROMPT)).tolist()
    return prompts, rng.standard_normal((ROWS, lm.config.d_model), np.float32)


def ours(model: str) -> Callable[[], list[list[int]]]:
    """All rows in one call of `generate`."""
    lm = beside_torch.load(model)
    prompts, vectors = problem(lm)
    settings = GenerateSettings(max_new_tokens=NEW, temperature=0.0, stop_tokens=())
    edit = intervene.direction("add", vectors, layer=lm.config.n_layers // 2)
    return lambda: generate(lm, prompts, settings, [edit]).tokens


def theirs(model: str) -> Callable[[], list[list[int]]]:
    """All rows in one call of `transformers.generate`, with its own key-value cache."""
    import torch

    lm = beside_torch.load(model)
    reference = beside_torch.reference(lm.directory)
    reference.generation_config.eos_token_id = None
    reference.generation_config.pad_token_id = 0
    prompts, vectors = problem(lm)
    tokens = torch.tensor(prompts, device=reference.device)
    added = torch.tensor(vectors, device=reference.device)[:, None]

    def hook(module, inputs, output):
        if isinstance(output, tuple):
            return (output[0] + added, *output[1:])
        return output + added

    def write() -> list[list[int]]:
        handle = reference.model.layers[lm.config.n_layers // 2].register_forward_hook(hook)
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


def makers(model: str) -> dict[str, Callable]:
    """Name to a function that loads the model and returns the call that writes everything."""
    return {OURS: partial(ours, model), THEIRS: partial(theirs, model)}


def main(argv: Sequence[str]) -> None:
    """Measures, prints, writes."""
    del argv
    results = {}
    for model in beside_torch.MODELS.value:
        figures, written = beside_torch.in_turns(makers(model))
        same = np.array(written[OURS]) == np.array(written[THEIRS])
        if same[:, 0].mean() < 0.9:
            raise UserError(f"First tokens differ on {model}; run the parity tests.")
        if beside_torch.MEMORY.value:
            for name in figures:
                figures[name]["peak_gib"] = beside_torch.peak_gib(makers, model, name)
        title = f"{model}, {ROWS} steered rows, {NEW} tokens each"
        verdicts = beside_torch.judge(title, figures, OURS, BARS, ROWS * NEW)
        results[model] = {
            "same_tokens": round(float(same.mean()), 3),
            "figures": figures,
            "bars": verdicts,
        }
    beside_torch.write("generate", results)


if __name__ == "__main__":
    errors.run(main)
