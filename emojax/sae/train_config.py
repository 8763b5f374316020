"""How a dictionary is trained: the settings, checked before anything is computed."""

import dataclasses
import math

from emojax.errors import UserError

UPDATES = ("auto", "fused", "optax")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a dictionary is trained.

    Attributes:
      epochs: passes over the activations; streamed ones are captured anew for each.
      batch_tokens: tokens per step.
      learning_rate: Adam's peak rate; None: 2e-4 / √(n_latents / 2¹⁴) (Gao et al. 2024, §A.3).
      warmup_share: share of the steps over which the rate, and the penalty of what is active, rise
        from 0.
      decay_share: share of the steps, at the end, over which the rate falls back to 0.
      aux_coefficient: α, the weight of the loss of dead latents; 0 leaves it out.
      k_aux: dead latents per token that the loss of dead latents uses.
      dead_after_tokens: a latent is dead once this many tokens passed without it.
      sparsity_coefficient: λ, the weight of the penalty (jumprelu, gated, relu).
      bandwidth: width of the kernel of JumpReLU's straight-through gradients, in scaled units.
      ema_decay: the result is a running mean of the weights with this decay; 0: the last weights.
      update: "fused" (`emojax_kernels.fused_row_update`, where codes are sparse), "optax" (the
        plain reference) or "auto": what moves fewer bytes (`emojax.sae.step.fused_moves_less`),
        which is fused with one shard of tokens, and optax with several unless tokens are few.
      seed: of the order of the activations, stored or drawn from a stream's buffer.
      log_every: steps between two lines of the log.
      checkpoint_every: steps between two checkpoints.
      keep: latest checkpoints kept; the one with the best reconstruction is kept besides.
      data_shards: size of the mesh axis over which tokens are split.
      latent_shards: size of the mesh axis over which latents are split.
    """

    epochs: int = 1
    batch_tokens: int = 1024
    learning_rate: float | None = None
    warmup_share: float = 0.05
    decay_share: float = 0.3
    aux_coefficient: float = 1 / 32
    k_aux: int = 64
    dead_after_tokens: int = 200_000
    sparsity_coefficient: float = 0.1
    bandwidth: float = 0.001
    ema_decay: float = 0.0
    update: str = "auto"
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500
    keep: int = 2
    data_shards: int = 1
    latent_shards: int = 1

    def __post_init__(self):
        counts = ("epochs", "batch_tokens", "k_aux", "dead_after_tokens", "log_every")
        counts += ("checkpoint_every", "keep", "data_shards", "latent_shards")
        for name in counts:
            if getattr(self, name) < 1:
                raise UserError(
                    f"Training's {name} is {getattr(self, name)}; give a number of at least 1."
                )
        if not 0 <= self.seed < 2**31:
            raise UserError(f"Training's seed is {self.seed}; give a number from 0 to {2**31 - 1}.")
        rate = self.learning_rate
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise UserError(f"The learning rate is {rate}; give a positive number.")
        for name in ("warmup_share", "decay_share", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"Training's {name} is {getattr(self, name)}; give a share between 0 and 1."
                )
        for name in ("aux_coefficient", "sparsity_coefficient"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(
                    f"Training's {name} is {getattr(self, name)}; give 0 or a positive number."
                )
        if self.ema_decay == 1:
            raise UserError("Training's ema_decay is 1, with which nothing is learnt; give less.")
        if not 0 < self.bandwidth < math.inf:
            raise UserError(f"Training's bandwidth is {self.bandwidth}; give a positive number.")
        if self.update not in UPDATES:
            raise UserError(
                f"Training's update {self.update!r} is unknown; choose one of {', '.join(UPDATES)}."
            )
