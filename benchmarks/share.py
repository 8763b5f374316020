"""The bar for how much of a card's matmul rate `benchmarks.capture` reaches, set beforehand."""

import math
from typing import Any

import jax

from emojax.lm import decoder
from emojax.lm.config import DecoderConfig

# Of the rate of one large product of matrices; and what counts as a model of 8B.
ASKED, PARAMETERS = 0.5, 7e9


def judge(share: float, config: DecoderConfig) -> dict[str, Any]:
    """What became of the bar, printed too; `met` is None but for a model of 8B on a GPU.

    Args:
      share: of the matmul rate, that a pass reached.
      config: the model's traits.
    """
    shapes = jax.tree.leaves(decoder.shapes(config), is_leaf=lambda x: isinstance(x, tuple))
    judged = jax.default_backend() == "gpu" and sum(map(math.prod, shapes)) >= PARAMETERS
    met = share >= ASKED if judged else None
    verdict = "not run here" if met is None else f"{share:.1%}, {'met' if met else 'MISSED'}"
    print(f"  bar: {ASKED:.0%} of the matmul rate for a model of 8B on a GPU: {verdict}")
    return {"asked": ASKED, "share": share, "met": met}
