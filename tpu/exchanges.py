"""What the chips of a step send each other, counted by hand: the roofline's half of the comparison.

Sizes are those of results on one device, in bytes, as `tpu.hlo` reads them in compiled programs.
"""

from typing import NamedTuple

from tpu.models import Model


class Results(NamedTuple):
    """Bytes of what a device gets of gathers, and of sums."""

    gathered: float = 0.0
    reduced: float = 0.0


def capture(model: Model, tokens: float, split: int) -> Results:
    """Of reading the language model, for `tokens` of a group of `split` chips, in bfloat16.

    A sum after each attention and each MLP, and one of the embedding, whose vocabulary is split.
    """
    return Results(reduced=(2 * model.layers + 1) * 2 * tokens * model.d_model * (split > 1))


def sae(
    d: int, latents: int, active: int, tokens: float, data: int, latent: int, update: str
) -> dict[str, Results]:
    """Of the SAE's step, in float32, by axis of the mesh; nothing crosses an axis of one shard.

    Over `latent`, of a shard's tokens: the k values of every shard, and the sum x̂. Over `data`: the
    inputs, slopes, values and indices of all tokens if the update is fused, else the gradients of
    both matrices.

    Args:
      d: width of the activations.
      latents: n, of the whole dictionary.
      active: k.
      tokens: of the whole batch.
      data: shards of the tokens.
      latent: shards of the dictionary.
      update: "fused" or "optax".
    """
    own = tokens / data
    fused, rows = Results(gathered=8 * tokens * (d + active)), latents / latent
    by_update = fused if update == "fused" else Results(reduced=8 * rows * d)
    by_latent = Results(4 * own * active * latent, 4 * own * d)
    return {
        "latent": by_latent if latent > 1 else Results(),
        "data": by_update if data > 1 else Results(),
    }
