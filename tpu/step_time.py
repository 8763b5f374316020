"""How long a training step takes on 8 to 4,096 chips, by a roofline: a model, not a measurement.

    python -m tpu.step_time [--tpus v5e,v5p,v6e,tpu7x] [--models gemma2_9b,llama31_8b] \
      [--latents 131072,1048576] [--batch_tokens 131072] [--products 6] [--updates fused,optax] \
      [--table]

A step is capture, then one step of a TopK autoencoder. Each is as long as the slowest of four
things that overlap perfectly: arithmetic, memory, links within a slice (ICI), network between
slices (DCN); hops add a latency that nothing hides. For every number of chips the fastest
arrangement that fits in memory is taken. The batch is fixed, so that more chips mean less work for
each; a row says when twice the chips no longer save a third of the time, and what is in the way.
**No figure here was measured on a TPU**: rates are published peaks (`tpu/chips.py`), which a real
program does not reach, so that these are lower bounds.

The trainer's two updates (`emojax/sae/step.py`) differ in what goes over the mesh axis `data`.
Fused: every chip gets the inputs, slopes and codes of all tokens, and updates its own rows from
them, so that three of the products are not shared over `data`, and makes one product less. optax:
all six products are shared, and the gradients of both matrices are summed. The faster one is taken.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from emojax import files
from emojax.errors import UserError, run
from tpu import exchanges, size_flags
from tpu.chips import CHIPS, Chip
from tpu.models import MODELS, Model

TPUS = flags.DEFINE_list("tpus", list(CHIPS), "Kinds of TPU.")
BATCH = flags.DEFINE_integer("batch_tokens", 131072, "Tokens of a step, on all chips together.")
PRODUCTS = flags.DEFINE_integer(
    "products", 6, "Dense products of a step: 6 as XLA runs it today, 1 with sparse kernels."
)

# Of the trainer (`TrainConfig.update`).
UPDATES = ("fused", "optax")
UPDATE = flags.DEFINE_list(
    "updates", list(UPDATES), "How rows may be updated; the faster is taken."
)


README = Path("tpu/README.md")
MARKS = {
    6: ("<!-- python -m tpu.step_time --context 1024 --table: 6 -->", "<!-- end of 6 -->"),
    1: ("<!-- python -m tpu.step_time --context 1024 --table: 1 -->", "<!-- end of 1 -->"),
}
COUNTS = tuple(2**i for i in range(3, 13))
SUMMARY_COUNTS = (8, 64, 512, 4096)
# Seconds of one hop between neighbours (jax-ml.github.io/scaling-book/tpus).
HOP = 1e-6
# Share of the memory that weights and state may take; the rest is for what a step makes.
STATE_SHARE = 0.6
TERMS = ("arithmetic", "memory", "ICI", "DCN", "latency")


@dataclasses.dataclass(frozen=True)
class Work:
    """What is asked for.

    Attributes:
      model: the language model.
      latents: n.
      active: k.
      tokens: B, of the whole batch.
      context: tokens of a row of text.
      products: [tokens, n] × [n, d] products of an SAE step. 6: the encoder, the decoder, the
        gradient of the codes, of both matrices, and of the input (which `b_dec` needs). 1: only the
        encoder; the others touch k rows a token.
      updates: the ways of updating rows from which the faster is taken.
    """

    model: Model
    latents: int
    active: int
    tokens: int
    context: int
    products: int
    updates: tuple[str, ...] = UPDATES

    def __post_init__(self):
        for name in ("latents", "active", "tokens", "context", "products"):
            if getattr(self, name) < 1:
                raise UserError(f"The step's {name} is {getattr(self, name)}; give at least 1.")
        if self.products > 6:
            raise UserError(f"The step's products are {self.products}; give at most 6.")
        if not self.updates or not set(self.updates) <= set(UPDATES):
            raise UserError(
                f"The step's updates are {', '.join(self.updates) or '(none)'}; give some of "
                f"{', '.join(UPDATES)}."
            )
        if self.tokens % self.context:
            raise UserError(
                f"The batch of {self.tokens} tokens is no whole number of rows of {self.context}; "
                "give a multiple."
            )


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds of each thing that a chip does in a stage, in the order of `TERMS`."""

    arithmetic: float = 0.0
    memory: float = 0.0
    ici: float = 0.0
    dcn: float = 0.0
    latency: float = 0.0

    @property
    def seconds(self) -> float:
        """The slowest of what overlaps, and what does not."""
        return max(self.arithmetic, self.memory, self.ici, self.dcn) + self.latency

    @property
    def terms(self) -> tuple[float, ...]:
        """All seconds."""
        return dataclasses.astuple(self)


@dataclasses.dataclass(frozen=True)
class Plan:
    """An arrangement and what it costs.

    Attributes:
      lm_groups: groups of chips that each take a share of the rows.
      lm_split: chips of a group, over which each layer is split.
      lm_gathered: whether a group's weights are spread over the groups and gathered layer by layer.
      data: shards of the SAE's tokens.
      latent: shards of its latents.
      across: the axis that goes across slices: "data" or "latent"; "" with one slice.
      update: of the rows, one of `UPDATES`.
      capture: cost of reading the language model.
      sae: cost of the SAE's step.
    """

    lm_groups: int
    lm_split: int
    lm_gathered: bool
    data: int
    latent: int
    across: str
    update: str
    capture: Cost
    sae: Cost

    @property
    def seconds(self) -> float:
        """Of a step: capture, then the SAE."""
        return self.capture.seconds + self.sae.seconds

    @property
    def dominant(self) -> str:
        """The stage and the term that most of the time is due to."""
        stages = (("capture", self.capture), ("SAE", self.sae))
        name, stage = max(stages, key=lambda item: item[1].seconds)
        return f"{name}: {TERMS[stage.terms.index(max(stage.terms))]}"


def slices_of(chip: Chip, chips: int) -> int:
    """How many slices that many chips are."""
    most = max(chip.topologies)
    return max(1, chips // most)


def capture_cost(work: Work, chip: Chip, slices: int, groups: int, t: int, gathered: bool) -> Cost:
    """Layers up to the tap, in bfloat16, rows split over groups, layers over a group's t chips.

    Arithmetic: 2 FLOPs a weight and token, and 4·context·heads a token for attention, of which the
    causal half is not saved. Memory: the weights once, and per layer eight passes over the residual
    stream. ICI within a group: two all-reduces a layer and one of the embedding, each
    2·(1 - 1/t) of the group's activations; over groups: the weights, if gathered.
    """
    model = work.model
    weights = model.layers * model.layer_params
    attention = 4 * work.context * model.heads_width * model.layers
    flops = work.tokens * (2 * weights + attention) / (groups * t)
    stream = work.tokens / groups * model.d_model * 2
    moved = 2 * weights / t * (2 if gathered else 1) + 8 * model.layers * stream / t
    sent = 2 * (1 - 1 / t) * exchanges.capture(model, work.tokens / groups, t).reduced
    hops = (2 * model.layers + 1) * (t > 1) * _hops(chip, t)
    if gathered:
        within = groups // slices
        sent += 2 * weights / t * (1 - 1 / within)
        hops += model.layers * _hops(chip, within)
    return Cost(flops / chip.flops, moved / chip.hbm_rate, sent / chip.ici_rate, 0.0, hops * HOP)


def sae_cost(
    work: Work, chip: Chip, chips: int, data: int, across: str, update: str, *, aligned: bool
) -> Cost:
    """A step with latents sharded.

    Per chip, with B/data tokens and n/latent latents. Memory: per product the chip's codes written
    and read in float32, and its matrix once; Adam reads and writes weights, moments and gradients
    (32 bytes a parameter). Links, all of float32 as the trainer's are: over `latent` all-gather of
    k values from every shard, all-reduce of x̂, and all-gather of x where it is not `aligned`, which
    is where capture splits the rows otherwise; over `data`, fused, all-gather of x, of x̂'s gradient
    and of the codes, with optax all-reduce of both gradients.
    """
    latent = chips // data
    slices = slices_of(chip, chips)
    tokens, rows = work.tokens / data, work.latents / latent
    d, k = work.model.d_model, work.active
    matrix = rows * d
    # Products of the chip's own tokens, and those that a fused update makes for the tokens of all.
    # A fused update makes none for the input's gradient: b_dec needs its sum over tokens alone.
    own = [min(work.products, 3), 3 - min(work.products, 3)]
    own[0 if own[0] == 3 else 1] -= update == "fused"
    wide = [max(0, work.products - 3), 3 - max(0, work.products - 3)]
    seen = work.tokens if update == "fused" else tokens
    # Dense ones, and those that touch k rows a token, spread over the shards.
    products, sparse = (own[i] * tokens + wide[i] * seen for i in (0, 1))
    sparse *= k * d / latent
    flops = 2 * products * matrix + 2 * sparse
    moved = 4 * (own[0] + wide[0]) * matrix + 8 * products * rows + 4 * sparse + 32 * 2 * matrix
    moved += 4 * tokens * (k * latent + 8 * d)

    def over(axis: str, size: int, gathered: float, reduced: float) -> tuple[float, float, float]:
        """Bytes that a chip receives within and between slices, and hops."""
        apart = slices if across == axis else 1
        within = size // apart
        ici = (gathered + 2 * reduced) * (1 - 1 / within)
        # Between slices each chip exchanges its own share of what its slice has.
        dcn = (gathered + 2 * reduced) / within * (1 - 1 / apart)
        return ici, dcn, 3 * (size > 1) * _hops(chip, within)

    sent = exchanges.sae(d, work.latents, k, work.tokens, data, latent, update)
    x = 0 if aligned else 4 * tokens * d
    gathered, reduced = sent["latent"]
    ici_latent, dcn_latent, hops_latent = over("latent", latent, x + gathered, reduced)
    ici_data, dcn_data, hops_data = over("data", data, *sent["data"])
    return Cost(
        flops / chip.flops,
        moved / chip.hbm_rate,
        (ici_latent + ici_data) / chip.ici_rate,
        (dcn_latent + dcn_data) / chip.dcn_rate,
        (hops_latent + hops_data) * HOP,
    )


def state_bytes(work: Work, chip: Chip, chips: int, plan: Plan) -> float:
    """What one chip holds: weights, moments and gradients in float32, and the language model.

    And what a fused update gathers, if there is anything to gather: x and x̂'s gradient.
    """
    model = work.model
    lm = 2 * model.layers * model.layer_params / plan.lm_split
    if plan.lm_gathered:
        lm /= plan.lm_groups / slices_of(chip, chips)
    gathered = 8 * work.tokens * model.d_model if plan.update == "fused" and plan.data > 1 else 0
    return lm + 16 * 2 * work.latents / plan.latent * model.d_model + gathered


def _hops(chip: Chip, size: int) -> float:
    """Hops of a ring collective on a torus: half of each side, all sides one after the other."""
    sides = len(chip.topologies[4].split("x"))
    return sides * size ** (1 / sides) / 2 if size > 1 else 0.0


def plans(work: Work, chip: Chip, chips: int) -> Iterator[Plan]:
    """Every arrangement in powers of two that fits the batch, the dictionary and the memory."""
    slices = slices_of(chip, chips)
    powers = [2**i for i in range(chips.bit_length())]
    rows = work.tokens // work.context
    # Rows, and a layer's heads, cannot be split further; chips beyond that repeat the work.
    heads = work.model.attributes["num_attention_heads"]
    lm = []
    for groups, t in itertools.product(powers, powers):
        idle = chips // (groups * t)
        if rows % groups or heads % t or groups < slices or idle < 1:
            continue
        if idle > 1 and (rows % (2 * groups) == 0 or heads % (2 * t) == 0):
            continue
        for gathered in (False, True) if groups > slices else (False,):
            cost = capture_cost(work, chip, slices, groups, t, gathered)
            lm.append((groups, t, gathered, cost))
    sae = []
    ways = ("data", "latent") if slices > 1 else ("",)
    for data, across, update in itertools.product(powers, ways, work.updates):
        size = {"data": data, "latent": chips // data, "": slices}[across]
        if work.tokens % data or work.latents % (chips // data) or size < slices:
            continue
        sae += [
            (
                *(data, across, update, aligned),
                sae_cost(work, chip, chips, data, across, update, aligned=aligned),
            )
            for aligned in (False, True)
        ]
    for (groups, t, gathered, read), (data, across, update, aligned, step) in itertools.product(
        lm, sae
    ):
        if aligned != ((groups, t) == (data, chips // data)):
            continue
        plan = Plan(groups, t, gathered, data, chips // data, across, update, read, step)
        if state_bytes(work, chip, chips, plan) <= STATE_SHARE * chip.hbm_bytes:
            yield plan


def best(work: Work, chip: Chip, chips: int) -> Plan | None:
    """The fastest arrangement, or None if none fits."""
    return min(plans(work, chip, chips), key=lambda plan: plan.seconds, default=None)


def scaling(work: Work, chip: Chip) -> tuple[dict[int, Plan], int | None]:
    """The best plan by number of chips, and the number after which doubling it saves too little.

    Too little: less than a third of the time, where perfect scaling would save half.
    """
    found = {count: plan for count in COUNTS if (plan := best(work, chip, count))}
    for count, plan in found.items():
        twice = found.get(2 * count)
        if twice is not None and twice.seconds > plan.seconds * 2 / 3:
            return found, count
    return found, None


def report(tpu: str, name: str, work: Work) -> str:
    """A table of one TPU, model and dictionary."""
    found, stop = scaling(work, CHIPS[tpu])
    lines = [
        f"### {tpu}, {name}, {work.latents:,} latents",
        "",
        "| chips | slices | capture ms | SAE ms | M tokens/s | data × latent | update | slowest |",
        f"|{'---|' * 8}",
    ]
    for count in COUNTS:
        plan = found.get(count)
        slices = slices_of(CHIPS[tpu], count)
        if plan is None:
            lines.append(f"| {count:,} | {slices} | – | – | – | – | – | does not fit |")
            continue
        split = f"{plan.data} × {plan.latent}"
        rate = work.tokens / plan.seconds / 1e6
        lines.append(
            f"| {count:,} | {slices} | {1e3 * plan.capture.seconds:.1f} | "
            f"{1e3 * plan.sae.seconds:.1f} | {rate:.2f} | {split} | "
            f"{plan.update} | {plan.dominant} |"
        )
    return "\n".join([*lines, "", f"{verdict(found, stop)}."])


def verdict(found: dict[int, Plan], stop: int | None) -> str:
    """Where it stops scaling, and why."""
    if not found:
        return "Fits on none of these"
    if stop is None:
        return "Scales to the last row"
    after = found[2 * stop]
    spare = 2 * stop > after.lm_groups * after.lm_split
    why = (
        "the batch has no more rows and heads to share out"
        if spare and after.dominant.startswith("capture")
        else after.dominant
    )
    return f"Stops scaling at {stop:,} chips (twice as many save under a third): {why}"


def summary(tpu: str, name: str, work: Work) -> str:
    """One row: millions of tokens a second on some numbers of chips, and the verdict."""
    found, stop = scaling(work, CHIPS[tpu])
    rates = [
        f"{work.tokens / found[count].seconds / 1e6:.2f}" if count in found else "–"
        for count in SUMMARY_COUNTS
    ]
    stops = "–" if stop is None else f"{stop:,}"
    why = verdict(found, stop).rpartition("): ")[2]
    return f"| {' | '.join([name, f'{work.latents:,}', tpu, *rates, stops, why])} |"


def summaries(works: list[tuple[str, str, Work]]) -> str:
    """The table of `summary`."""
    counts = " | ".join(f"{count:,} chips" for count in SUMMARY_COUNTS)
    header = f"| model | latents | TPU | {counts} | stops at | in the way |\n|{'---|' * 9}"
    return "\n".join([header, *(summary(*work) for work in works)])


def main(_):
    """Prints a table for every TPU, model and dictionary that is asked for."""
    for flag, known in ((TPUS, CHIPS), (size_flags.MODELS, MODELS)):
        for name in flag.value:
            if name not in known:
                raise UserError(f"The name {name!r} is unknown; use some of {', '.join(known)}.")
    for latents in size_flags.LATENTS.value:
        if not latents.isdigit():
            raise UserError(f"The number of latents {latents!r} is no number; give 131072.")
    print(
        "Roofline from published peaks; nothing was run on a TPU. "
        f"{BATCH.value:,} tokens a step, rows of {size_flags.CONTEXT.value}, "
        f"k = {size_flags.ACTIVE.value}, "
        f"{PRODUCTS.value} dense products."
    )
    works = [
        (tpu, name, _work(name, int(latents), PRODUCTS.value))
        for name, latents, tpu in itertools.product(
            size_flags.MODELS.value, size_flags.LATENTS.value, TPUS.value
        )
    ]
    for work in works:
        print(f"\n{report(*work)}")
    print(f"\n### M tokens/s, and where it stops scaling\n\n{summaries(works)}")
    if size_flags.TABLE.value:
        for products, (begin, end) in MARKS.items():
            anew = [(tpu, name, _work(name, work.latents, products)) for tpu, name, work in works]
            files.replace_between(README, begin, end, f"\n{summaries(anew)}\n")


def _work(name: str, latents: int, products: int) -> Work:
    active, context = size_flags.ACTIVE.value, size_flags.CONTEXT.value
    sizes = latents, active, BATCH.value, context, products
    return Work(MODELS[name], *sizes, tuple(UPDATE.value))


if __name__ == "__main__":
    run(main)
