"""How long reading a middle layer's residual stream takes, beside PyTorch with a forward hook.

    python -m benchmarks.capture
    python -m benchmarks.capture --lms DIRECTORY --dtype bfloat16 --rows 32 --tokens 512

The second is what the bars for a GPU are about. Prints a table and writes
`benchmarks/results/capture-<platform>.json`, which `python -m benchmarks.lm_tables` puts in the
README. Same weights, tokens and precision, in turns. The hook of most programs lets every layer run
("usual hook", without the unembedding); one that raises stops after its layer ("stopping hook").
Two loads: "full", where no row is padded, and "ragged", twice as many rows of up to twice as many
tokens, which the hooks read in two batches, padded to the longest, and we as `capture.stream` does.
All three hand over the real tokens' activations as one numpy array. The bars were set before the
measurement.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from absl import flags

from benchmarks import beside_torch, share
from benchmarks.beside_torch import Bar, Subject
from emojax import errors
from emojax.errors import UserError
from emojax.lm import decoder
from emojax.lm.batching import pad
from emojax.lm.capture import Tap, stream
from emojax.lm.config import DecoderConfig

ROWS = flags.DEFINE_integer("rows", 16, "Rows of the full load.", lower_bound=1)
TOKENS = flags.DEFINE_integer("tokens", 128, "Tokens of each of them.", lower_bound=8)

OURS, USUAL, STOPPING = "emojax", "PyTorch, usual hook", "PyTorch, stopping hook"
BARS = (Bar(USUAL, cpu=1.7, gpu=2.2), Bar(STOPPING, cpu=1.0, gpu=1.2))
# The largest relative difference of a token's activation between two sides that are both right: a
# few of bfloat16's steps of 2**-8 add up over the layers.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1}

Read = Callable[[], np.ndarray]


class Stop(Exception):
    """What the stopping hook raises."""


def loads(vocab_size: int) -> dict[str, list[list[int]]]:
    """Rows of random token ids."""
    rng = np.random.default_rng(0)
    lengths = {
        "full": np.full(ROWS.value, TOKENS.value),
        "ragged": rng.integers(8, 2 * TOKENS.value + 1, 2 * ROWS.value),
    }
    return {
        load: [rng.integers(3, vocab_size, n).tolist() for n in some]
        for load, some in lengths.items()
    }


def ours(subject: Subject, rows: list[list[int]], batch: int) -> Read:
    """Reads all rows as `capture.stream` batches them, as many tokens at a time as the hooks."""
    lm = subject.ours()
    tap = Tap(lm.config.n_layers // 2)
    batch_tokens = batch * max(map(len, rows))

    def read() -> np.ndarray:
        parts = [part[tap] for part in stream(lm, rows, [tap], batch_tokens)]
        order = np.argsort(np.concatenate([part.rows for part in parts]), kind="stable")
        return np.concatenate([part.values for part in parts])[order]

    return read


def hooked(subject: Subject, rows: list[list[int]], batch: int, stops: bool) -> Read:
    """Reads all rows, `batch` of them at a time, with a forward hook."""
    import torch

    theirs = subject.theirs()
    body = theirs.base_model
    layers = body.h if hasattr(body, "h") else body.layers
    layer = layers[subject.config.n_layers // 2]
    found = []

    def hook(module, inputs, output):
        found.append(output[0] if isinstance(output, tuple) else output)
        if stops:
            raise Stop

    def read() -> np.ndarray:
        handle = layer.register_forward_hook(hook)
        parts = []
        for start in range(0, len(rows), batch):
            some = rows[start : start + batch]
            tokens, mask = pad(some, len(some), max(map(len, some)))
            inputs = {
                "input_ids": torch.tensor(tokens, dtype=torch.long, device=theirs.device),
                "attention_mask": torch.tensor(mask, dtype=torch.long, device=theirs.device),
            }
            try:
                with torch.inference_mode():
                    body(**inputs, use_cache=False)
            except Stop:
                pass
            parts.append(found.pop().float().cpu().numpy()[mask])
        handle.remove()
        return np.concatenate(parts)

    return read


def operations(config: DecoderConfig) -> float:
    """What a token's products with the matrices up to the middle layer need; attention is extra."""
    shapes = decoder.shapes(config)["layers"].values()
    return 2.0 * (config.n_layers // 2 + 1) * sum(np.prod(s[1:]) for s in shapes if len(s) == 3)


def main(argv: Sequence[str]) -> None:
    """Measures, prints, writes."""
    del argv
    results = {}
    for model in beside_torch.MODELS.value:
        subject = beside_torch.subject(model)
        for load, rows in loads(subject.config.vocab_size).items():
            makers = {
                OURS: partial(ours, subject, rows, ROWS.value),
                USUAL: partial(hooked, subject, rows, ROWS.value, stops=False),
                STOPPING: partial(hooked, subject, rows, ROWS.value, stops=True),
            }
            figures, read = beside_torch.in_turns(makers)
            values = {name: np.asarray(a, np.float32) for name, a in read.items()}
            sizes = np.linalg.norm(values[STOPPING], axis=1)
            worst = max(
                float((np.linalg.norm(values[name] - values[STOPPING], axis=1) / sizes).max())
                for name in (OURS, USUAL)
            )
            if not worst <= TOLERANCES[subject.dtype]:
                raise UserError(
                    f"The sides differ by {worst:.1e} on {model}; run the parity tests."
                )
            beside_torch.peaks(makers, figures)
            tokens = len(values[OURS])
            name = f"{model}, {load}"
            verdicts = beside_torch.judge(
                f"{name}, {tokens:,} tokens",
                figures,
                OURS,
                BARS,
                tokens,
                operations(subject.config),
            )
            results[name] = {
                "tokens": tokens,
                "largest_relative_difference": worst,
                "figures": figures,
                "bars": verdicts,
                "share_bar": share.judge(figures[OURS]["share_of_matmul_rate"], subject.config),
            }
    beside_torch.write("capture", results)


if __name__ == "__main__":
    errors.run(main)
