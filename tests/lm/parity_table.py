"""The table of `docs/parity.md`: which model, which check, what a test run measured."""

from importlib import metadata
from pathlib import Path

from tiny_models import CONFIGS

from benchmarks import processor
from emojax.lm.config import DecoderConfig

PATH = Path(__file__).parents[2] / "docs" / "parity.md"
COMMAND = "python -m pytest tests/lm/test_parity.py tests/lm/test_real_models.py --write-parity"
CHECKS = (
    "logits, right padding",
    "logits, left padding",
    "residual stream, every layer",
    "KV-cache steps",
)
ROUND_TRIP = "saved weights"
REAL_CHECKS = ("logits, English", "logits, Chinese", "residual stream, every layer")
REAL_MODELS = ("gemma-3-270m", "smollm2-135m-instruct")

_COMPARED = ("jax", "torch", "transformers")
_HEAD = f"""# Parity with `transformers` and PyTorch

Written by a test run, not by hand:

```sh
{COMMAND}
```

Each row is a tiny random model that `transformers` made, saved and ran in float32 on the CPU (eager
attention), and that emojax loaded from the saved files. A number is the largest difference from
PyTorch over all real tokens, divided by the largest value there; the tests ask for at most 1e-5.
Prompts have up to 40 tokens, padded on either side, which is longer than every window; the cache is
filled with 24 positions and then with 16 single steps, whose logits are compared with PyTorch's
pass over the whole; for the ropes dynamic and longrope, whose original context of 32 tokens is
crossed on the way, with PyTorch's own steps. "Saved weights" says whether what emojax saves again
has the bits that PyTorch saved; the decoder of a model that also sees is not saved, since half a
model would be.

"""
_REAL_HEAD = """
The same on real weights (as their packages hold them, dequantised to float32), in English and
Chinese, at up to 600 tokens, beyond Gemma's window. A number is the largest difference of a token's
vector, divided by its norm; the tests ask for at most 1e-4.

"""


def traits(name):
    """What tells the tiny model of that name from the others."""
    config = DecoderConfig.from_hf(CONFIGS[name])
    heads = {config.n_heads: "MHA", 1: "MQA"}.get(config.n_kv_heads, "GQA")
    ropes = ", ".join(dict.fromkeys(rope.kind for rope in config.ropes)) or "learned positions"
    if 0 < config.rotary_dim < config.head_dim:
        ropes += f" ({config.rotary_dim} of {config.head_dim})"
    windows = " / ".join(str(w) for w in sorted(set(config.windows)) if w) or "–"
    if 0 in config.windows and windows != "–":
        windows += " or all"
    return config.family, heads, ropes, windows


def write(measured):
    """Writes the document; rows that this run did not measure stay as they are."""
    before = read() if PATH.exists() else {}
    header = ("model", "family", "heads", "positions", "window", *CHECKS, ROUND_TRIP)
    rows = []
    for name in CONFIGS:
        row = measured.get(name) or before.get(name, {})
        numbers = [_number(row, check) for check in CHECKS]
        round_trip = row.get(ROUND_TRIP, "–")
        rows.append((name, *traits(name), *numbers, round_trip))
    real_header = ("model", *REAL_CHECKS)
    real = [
        (m, *(_number(measured.get(m) or before.get(m, {}), check) for check in REAL_CHECKS))
        for m in REAL_MODELS
    ]
    PATH.parent.mkdir(exist_ok=True)
    with_what = ", ".join(f"{name} {metadata.version(name)}" for name in _COMPARED)
    last = f"The last run: {processor.name()}, {with_what}.\n\n"
    PATH.write_text(_HEAD + last + _lines(header, rows) + _REAL_HEAD + _lines(real_header, real))


def read():
    """The document's cells: row -> column -> text."""
    cells = {}
    for line in PATH.read_text().splitlines():
        values = [value.strip() for value in line.strip("|").split("|")]
        if line.startswith("| model "):
            header = values
        elif line.startswith("| "):
            cells[values[0]] = dict(zip(header, values, strict=True))
    return cells


def _number(row, check):
    value = row.get(check, "–")
    return value if isinstance(value, str) else f"{value:.1e}"


def _lines(header, rows):
    cells = [header, ("---",) * len(header), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)
