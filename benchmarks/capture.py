"""How long reading a middle layer's residual stream takes, beside PyTorch with a forward hook.

    python -m benchmarks.capture [--models gemma-3-270m,smollm2-135m-instruct] [--turns 7]

Prints a table and writes `benchmarks/results/capture-<platform>.json`. Same weights, tokens and
precision, in turns. The hook of most programs lets every layer run ("usual hook", without the
unembedding); one that raises stops after its layer ("stopping hook"). Two loads: "full", 16 rows of
128 tokens, where nobody pads, and "ragged", 64 rows of 8 to 256 tokens, which the hooks read 16 at
a time, padded to the longest, and we as `capture.stream` does. All three hand over the real tokens'
activations as one numpy array. The bars were set before the measurement.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from benchmarks import beside_torch
from benchmarks.beside_torch import Bar
from emojax import errors
from emojax.errors import UserError
from emojax.lm.batching import pad
from emojax.lm.capture import Tap, stream

OURS, USUAL, STOPPING = "emojax", "PyTorch, usual hook", "PyTorch, stopping hook"
BARS = (Bar(USUAL, cpu=1.7, gpu=2.2), Bar(STOPPING, cpu=1.0, gpu=1.2))
BATCH = 16


class Stop(Exception):
    """What the stopping hook raises."""


def rows_of(load: str, vocab_size: int) -> list[list[int]]:
    """Random token ids of one load."""
    rng = np.random.default_rng(0)
    lengths = np.full(BATCH, 128) if load == "full" else rng.integers(8, 257, 4 * BATCH)
    return [rng.integers(3, vocab_size, n).tolist() for n in lengths]


def ours(model: str, load: str) -> Callable[[], np.ndarray]:
    """Reads all rows as `capture.stream` batches them."""
    lm = beside_torch.load(model)
    rows = rows_of(load, lm.config.vocab_size)
    tap = Tap(lm.config.n_layers // 2)

    def read() -> np.ndarray:
        parts = [part[tap] for part in stream(lm, rows, [tap])]
        order = np.argsort(np.concatenate([part.rows for part in parts]), kind="stable")
        return np.concatenate([part.values for part in parts])[order]

    return read


def hooked(model: str, load: str, stops: bool) -> Callable[[], np.ndarray]:
    """Reads all rows, a batch at a time, with a forward hook."""
    import torch

    lm = beside_torch.load(model)
    theirs = beside_torch.reference(lm.directory)
    rows = rows_of(load, lm.config.vocab_size)
    layer = theirs.model.layers[lm.config.n_layers // 2]
    found = []

    def hook(module, inputs, output):
        found.append(output[0] if isinstance(output, tuple) else output)
        if stops:
            raise Stop

    def read() -> np.ndarray:
        handle = layer.register_forward_hook(hook)
        parts = []
        for start in range(0, len(rows), BATCH):
            some = rows[start : start + BATCH]
            tokens, mask = pad(some, len(some), max(map(len, some)))
            inputs = {
                "input_ids": torch.tensor(tokens, dtype=torch.long, device=theirs.device),
                "attention_mask": torch.tensor(mask, dtype=torch.long, device=theirs.device),
            }
            try:
                with torch.inference_mode():
                    theirs.model(**inputs, use_cache=False)
            except Stop:
                pass
            parts.append(found.pop().cpu().numpy()[mask])
        handle.remove()
        return np.concatenate(parts)

    return read


def makers(model: str, load: str = "full") -> dict[str, Callable]:
    """Name to a function that loads the model and returns the call that reads everything."""
    return {
        OURS: partial(ours, model, load),
        USUAL: partial(hooked, model, load, stops=False),
        STOPPING: partial(hooked, model, load, stops=True),
    }


def main(argv: Sequence[str]) -> None:
    """Measures, prints, writes."""
    del argv
    results = {}
    for model in beside_torch.MODELS.value:
        for load in ("full", "ragged"):
            figures, read = beside_torch.in_turns(makers(model, load))
            worst = max(
                float(
                    (np.linalg.norm(a - read[STOPPING], axis=1) / np.linalg.norm(a, axis=1)).max()
                )
                for a in (read[OURS], read[USUAL])
            )
            if worst > 1e-3:
                raise UserError(
                    f"The sides differ by {worst:.1e} on {model}; run the parity tests."
                )
            if beside_torch.MEMORY.value and load == "full":
                for name in figures:
                    figures[name]["peak_gib"] = beside_torch.peak_gib(makers, model, name)
            title = f"{model}, {load}, {len(read[OURS]):,} tokens"
            verdicts = beside_torch.judge(title, figures, OURS, BARS, len(read[OURS]))
            results[f"{model}, {load}"] = {
                "tokens": len(read[OURS]),
                "largest_relative_difference": worst,
                "figures": figures,
                "bars": verdicts,
            }
    beside_torch.write("capture", results)


if __name__ == "__main__":
    errors.run(main)
