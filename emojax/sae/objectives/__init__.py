"""How each architecture is trained: one file each, the same functions in each.

An objective turns a batch into *terms*, each a reconstruction whose squared error is summed into
the loss (`emojax.sae.losses`), and a penalty for what is active.
"""

from emojax.sae.objectives import batch_topk, gated, jumprelu, matryoshka, relu, topk
from emojax.sae.objectives.objective import Objective

OBJECTIVES: dict[str, Objective] = {
    "topk": topk.OBJECTIVE,
    "batch_topk": batch_topk.OBJECTIVE,
    "matryoshka": matryoshka.OBJECTIVE,
    "jumprelu": jumprelu.OBJECTIVE,
    "gated": gated.OBJECTIVE,
    "relu": relu.OBJECTIVE,
}
