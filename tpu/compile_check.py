"""Compiles the training step for TPUs that are not there: does it fit, and what does it send?

    pip install 'jax[tpu]'          # libtpu, 640 MB; no TPU and no network are needed afterwards
    python -m tpu.compile_check --targets v5e-8,v5p-256,v5e-16x2 --models llama31_8b

What is compiled are the programs that each step of a run with streamed activations calls, as it
calls them (not what comes before the first and after the last: a sample, held-out text, controls):
`stream`'s capture and gather, on the devices of one host over which a copy of the language model is
split (`activations.model_shards`); `mixing`'s draw and put, and the `train_step` of a TopK
autoencoder, on the trainer's mesh (`data`, `latent`). A target is Cloud TPU's name of a slice with
"x2" for two of them. For each case one row of a table (and, on stderr, one line of JSON): bytes per
device against the chip's memory, collectives of a step by kind and bytes, seconds of compilation.
Ends with status 1 if a case does not fit, or was not compiled within `--limit_s`. `--table` keeps
the rows in `tpu/compile_check.json` and writes the tables of `tpu/README.md` anew from all that lie
there (`--table --targets=` does that alone): what was found, and beside it what the roofline of
`tpu.step_time` counts. Nothing is run, so nothing here is a time of a step.
"""

import dataclasses
import importlib.util
import json
import math
import multiprocessing
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from emojax import files
from emojax.errors import UserError, run
from emojax.lm import decoder, sharding
from emojax.lm.capture import Tap, check_taps
from emojax.lm.config import DecoderConfig
from emojax.sae import mixing, stream
from emojax.sae import state as states
from emojax.sae.coder import SaeConfig
from emojax.sae.step import is_fused, train_step
from emojax.sae.store import Batch
from emojax.sae.stream import MODEL_DTYPES, ActivationsConfig
from emojax.sae.train_config import UPDATES, TrainConfig
from tpu import exchanges, hlo, size_flags
from tpu.chips import CHIPS, GIB, Slices
from tpu.models import MODELS

TARGETS = flags.DEFINE_list("targets", ["v5e-8", "v5e-16x2", "v5p-256"], "Slices to compile for.")
ROWS = flags.DEFINE_integer("rows", 256, "Rows of text in a batch.")
CAPTURE_TOKENS = flags.DEFINE_integer(
    "capture_tokens", ActivationsConfig.capture_tokens, "Tokens that a host captures at once."
)
MODEL_SHARDS = flags.DEFINE_integer(
    "model_shards", 4, "Devices of a host over which a copy of the language model is split."
)
MODEL_DTYPE = flags.DEFINE_enum("model_dtype", "bfloat16", MODEL_DTYPES, "Type of its weights.")
LATENT_SHARDS = flags.DEFINE_integer("latent_shards", 16, "Shards of the dictionary, at most.")
UPDATE = flags.DEFINE_enum("update", "auto", UPDATES, "train.update: how rows are updated.")
CAPTURE = flags.DEFINE_bool("capture", True, "With the language model, not the SAE's step alone.")
LIMIT = flags.DEFINE_integer("limit_s", 3600, "Seconds after which a case is given up.")

README, KEPT = Path("tpu/README.md"), Path("tpu/compile_check.json")
BEGIN, END = "<!-- python -m tpu.compile_check --table -->", "<!-- end of the table -->"
BEGIN_COMPARED = "<!-- the same, beside the roofline's count -->"
END_COMPARED = "<!-- end of the comparison -->"


@dataclasses.dataclass(frozen=True)
class Case:
    """The programs of one run.

    Attributes:
      slices: the devices.
      model: a key of `MODELS`.
      latents: n, of the dictionary.
      active: k.
      rows: rows of text in a batch.
      context: tokens of a row.
      latent_shards: shards of the dictionary, at most; the rest of the devices split tokens.
      update: `TrainConfig.update`.
      capture: whether the language model is compiled too.
      model_shards: devices of a host over which a copy of it is split.
      model_dtype: type of its weights.
      capture_tokens: tokens that a host captures at once.
    """

    slices: Slices
    model: str
    latents: int
    active: int
    rows: int
    context: int
    latent_shards: int
    update: str
    capture: bool
    model_shards: int = 4
    model_dtype: str = "bfloat16"
    capture_tokens: int = 8192

    def __post_init__(self):
        if self.model not in MODELS:
            raise UserError(f"The model {self.model!r} is unknown; use one of {', '.join(MODELS)}.")
        sizes = ("latents", "active", "rows", "context", "latent_shards")
        for name in (*sizes, "model_shards", "capture_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"The case's {name} is {getattr(self, name)}; give at least 1.")
        if self.rows % self.mesh_shape[0] or self.latents % self.mesh_shape[1]:
            raise UserError(
                f"The batch of {self.rows} rows or the {self.latents} latents cannot be split over "
                f"a mesh of {self.mesh_shape}; give multiples of them."
            )
        if not self.capture:
            return
        attributes, own = MODELS[self.model].attributes, self.slices.devices_per_host
        parts = (attributes["num_attention_heads"], attributes["intermediate_size"], own)
        if any(part % self.model_shards for part in parts):
            raise UserError(
                f"The {parts[0]} heads, {parts[1]} MLP units of {self.model} or {own} devices of a "
                f"host cannot be split over {self.model_shards}; give other --model_shards, or "
                "--nocapture."
            )
        if self.capture_tokens % (own * self.context):
            raise UserError(
                f"The {self.capture_tokens} tokens that a host captures at once are no whole rows "
                f"of {self.context} for each of its {own} devices; give other --capture_tokens."
            )

    @property
    def devices(self) -> int:
        """JAX devices of all slices."""
        return self.slices.chips * self.slices.count * self.slices.chip.devices

    @property
    def mesh_shape(self) -> tuple[int, int]:
        """Sizes of the axes `data` and `latent`; latents stay within a slice."""
        within = self.devices // self.slices.count
        shards = next(s for s in range(min(self.latent_shards, within), 0, -1) if within % s == 0)
        return self.devices // shards, shards


def parse_target(text: str) -> Slices:
    """Reads `v5e-8`, `v5p-256` (128 chips, as Cloud TPU counts), or `v5e-16x2` for two slices.

    Raises:
      UserError: it is none of these.
    """
    found = re.fullmatch(r"([a-z0-9]+)-(\d+)(?:x(\d+))?", text)
    if not found:
        raise UserError(f"The target {text!r} cannot be read; write v5e-8, v5p-256 or v5e-16x2.")
    kind, number, count = found.groups()
    chip = CHIPS.get(kind)
    cores = 2 if chip is not None and chip.counts_cores else 1
    return Slices(kind, int(number) // cores, int(count or 1))


def named(slices: Slices) -> str:
    """What `parse_target` reads."""
    number = slices.accelerator_type.rpartition("-")[2]
    several = f"x{slices.count}" if slices.count > 1 else ""
    return f"{slices.kind}-{number}{several}"


def configs_of(case: Case) -> tuple[SaeConfig, TrainConfig]:
    """What the trainer is told."""
    model = MODELS[case.model]
    sae = SaeConfig(
        d_model=model.d_model,
        n_latents=case.latents,
        k=case.active,
        model=case.model,
        layer=model.layer,
    )
    data, latent = case.mesh_shape
    return sae, TrainConfig(
        batch_tokens=case.rows * case.context,
        data_shards=data,
        latent_shards=latent,
        update=case.update,
    )


def mesh_of(case: Case) -> Mesh:
    """The trainer's mesh, of devices that are described and not there."""
    slices = case.slices
    options = {"num_slices": slices.count} if slices.count > 1 else {}
    topology = topologies.get_topology_desc(f"{slices.kind}:{slices.topology}", "tpu", **options)
    return states.make_mesh(configs_of(case)[1], case.latents, topology.devices)


def own_mesh_of(case: Case) -> Mesh:
    """One host's devices as `stream.own_mesh` lays them; alone, as the compiler wants them."""
    shape = case.slices.chip.topologies[case.slices.chips_per_host]
    devices = topologies.get_topology_desc(f"{case.slices.kind}:{shape}", "tpu").devices
    grid = np.array(devices).reshape(-1, case.model_shards)
    return Mesh(grid, stream.OWN, axis_types=(AxisType.Auto,) * 2)


def weights_of(config: DecoderConfig, own: Mesh, dtype: str) -> Any:
    """The language model's weights on a host's devices, as shapes.

    Raises:
      UserError: the model's heads or MLP units cannot be split so.
    """
    return jax.tree.map(
        lambda shape, place: jax.ShapeDtypeStruct(shape, dtype, sharding=place),
        decoder.shapes(config),
        sharding.shardings(config, own),
        is_leaf=lambda x: isinstance(x, tuple),
    )


class Program(NamedTuple):
    """One of the programs of a run.

    Attributes:
      compiled: it.
      runs: how often a device runs it for a step.
      held: arguments of it that lie in memory between its runs too.
    """

    compiled: jax.stages.Compiled
    runs: float
    held: Any


def programs(case: Case, mesh: Mesh) -> Iterator[tuple[str, Program]]:
    """Compiles what a run calls, one after another, by name."""
    sae, settings = configs_of(case)
    tokens, d = settings.batch_tokens, sae.d_model
    state = states.like(sae, settings, mesh)
    x = jax.ShapeDtypeStruct((tokens, d), "float32", sharding=NamedSharding(mesh, P("data")))
    step = train_step.lower(sae, settings, 1000, mesh, state, Batch(x))
    yield "train_step", Program(step.compile(), 1, state)
    if not case.capture:
        return

    activations = ActivationsConfig(
        streamed=True,
        capture_tokens=case.capture_tokens,
        model_dtype=case.model_dtype,
        model_shards=case.model_shards,
        buffer_tokens=max(ActivationsConfig.buffer_tokens, 2 * tokens),
    )
    config, taps = DecoderConfig.from_hf(MODELS[case.model].attributes), (Tap(sae.layer),)
    check_taps(config, taps)
    own = own_mesh_of(case)
    weights = weights_of(config, own, case.model_dtype)
    text = (case.capture_tokens // case.context, case.context)
    rows, mask = (
        jax.ShapeDtypeStruct(text, kind, sharding=NamedSharding(own, P("data")))
        for kind in ("int32", "bool")
    )
    share = tokens * own.size // mesh.size
    runs = share / case.capture_tokens
    capture = stream._capture.lower(config, taps, weights, rows, mask).compile()
    yield "capture", Program(capture, runs, weights)

    made = jax.tree.leaves(capture.output_shardings)[0]
    arrays = (
        jax.ShapeDtypeStruct((1, *text, d), case.model_dtype, sharding=made),
        jax.ShapeDtypeStruct((case.capture_tokens,), "int32"),
        jax.ShapeDtypeStruct(text[:1], "int32"),
    )
    read = stream._Read(*arrays)  # pyrefly: ignore [bad-argument-type]  # shapes for arrays
    fresh = _fresh(own, stream.OWN, share, d, activations.dtype)
    place = [jax.ShapeDtypeStruct((), "int32")] * 3
    gather = stream._gather.lower(own, activations.dtype, share, fresh, read, *place).compile()
    yield "gather", Program(gather, runs, None)

    depth = activations.buffer_tokens // tokens
    buffer = mixing.shapes(mesh, 1, tokens, depth, d, activations.dtype)
    drawn = NamedSharding(mesh, P(mixing.EVERYWHERE))
    slots = jax.ShapeDtypeStruct((tokens,), "int32", sharding=drawn)
    yield "draw", Program(mixing.draw.lower(mesh, buffer, slots).compile(), 1, buffer)
    fresh = _fresh(mesh, mixing.EVERYWHERE, tokens, d, activations.dtype)
    yield "put", Program(mixing.put.lower(mesh, buffer, fresh, slots).compile(), 1, buffer)


def _fresh(mesh: Mesh, axis: Any, tokens: int, d_model: int, dtype: str) -> mixing.Fresh:
    """Captured tokens, as shapes."""
    like = jax.eval_shape(
        lambda: mixing.Fresh(
            jnp.zeros((1, tokens, d_model), dtype),
            jnp.zeros((1, tokens)),
            jnp.zeros(tokens, "int32"),
            jnp.zeros(tokens, "int32"),
        )
    )
    return jax.tree.map(
        lambda x, spec: x.update(sharding=NamedSharding(mesh, spec)),
        like,
        stream._fresh_specs(axis),
    )


def _bytes(tree: Any) -> int:
    """What a device holds of arrays that are split as they say."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _device_bytes(case: Case) -> int:
    return int(case.slices.chip.hbm_bytes / case.slices.chip.devices)


def _asked(case: Case) -> dict[str, Any]:
    """What a row is about."""
    return {
        "target": named(case.slices),
        "devices": case.devices,
        "mesh": case.mesh_shape,
        "model": case.model if case.capture else None,
        "latents": case.latents,
        "active": case.active,
        "update": "fused" if is_fused(*configs_of(case), "tpu") else "optax",
        "tokens": case.rows * case.context,
        "model_shards": case.model_shards if case.capture else None,
        "model_dtype": case.model_dtype if case.capture else None,
        "capture_tokens": case.capture_tokens if case.capture else None,
        "memory": _device_bytes(case),
        "jax": jax.__version__,
        "cores": len(os.sched_getaffinity(0)),
    }


def check(case: Case) -> dict[str, Any]:
    """Compiles a case, and says what it needs of each device."""
    found, since = _asked(case), time.perf_counter()
    name, needs = "train_step", {}
    held, sent = {}, {"collectives": defaultdict(float), "least": defaultdict(float)}
    try:
        # What asks for the platform while it is traced shall do as on a TPU.
        with mock.patch("jax.default_backend", lambda: "tpu"):
            for name, program in programs(case, mesh_of(case)):
                memory: Any = program.compiled.memory_analysis()
                text: Any = program.compiled.as_text()
                own = {}
                # How often a loop runs is data over layers, and for what the step does or not.
                rounds = MODELS[case.model].layers if name == "capture" else 1
                for how, total in sent.items():
                    kinds = hlo.collectives(text, rounds, least=how == "least")
                    own[how] = {kind: dataclasses.asdict(item) for kind, item in kinds.items()}
                    for kind, item in kinds.items():
                        total[kind, "count"] += program.runs * item.count
                        total[kind, "bytes"] += program.runs * item.bytes
                # Draw and put have one buffer.
                held["buffer" if name in ("draw", "put") else name] = _bytes(program.held)
                # What is held and not read, as the unembedding, is no argument.
                besides = max(0, memory.argument_size_in_bytes - _bytes(program.held))
                made = memory.output_size_in_bytes - memory.alias_size_in_bytes
                needs[name] = {
                    "runs": program.runs,
                    "besides": besides + made,
                    "temporary": memory.temp_size_in_bytes,
                    **own,
                }
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        # The compiler knows the chip's memory, and says by how much the program misses it.
        used = re.search(r"the total memory.*?\)\.|Used .*? hbm", str(error))
        reason = f"{name}: {used.group(0) if used else str(error).splitlines()[0]}"
        return found | {"fits": False, "reason": reason, "seconds": _since(since)}
    # What one program takes and makes may wait while any other runs.
    argument = sum(held.values()) + sum(program["besides"] for program in needs.values())
    temporary = max(program["temporary"] for program in needs.values())
    peak = argument + temporary
    return found | {
        "fits": peak <= _device_bytes(case),
        "argument": argument,
        "temporary": temporary,
        "peak": peak,
        **{how: _by_kind(total) for how, total in sent.items()},
        "programs": needs,
        "seconds": _since(since),
    }


def _by_kind(total: Mapping[tuple[str, str], float]) -> dict[str, dict[str, int]]:
    kinds = sorted({kind for kind, _ in total})
    return {k: {what: round(total[k, what]) for what in ("count", "bytes")} for k in kinds}


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 1)


def check_within(seconds: float, case: Case) -> dict[str, Any]:
    """`check` in a process of its own, given up after that many seconds.

    Raises:
      UserError: the compiler broke off.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_check, args=(sender, case))
    process.start()
    sender.close()
    try:
        if receiver.poll(seconds):
            return receiver.recv()
    except EOFError:
        raise UserError(
            f"The compiler broke off at {named(case.slices)}; see its message above, or look "
            "whether this machine has too little memory."
        ) from None
    finally:
        process.kill()
        process.join()
    return _asked(case) | {
        "fits": None,
        "reason": f"not compiled within {seconds:.0f} s",
        "seconds": seconds,
    }


def _check(sender: Connection, case: Case) -> None:
    # The CPU is the host, and libtpu shall not look for a TPU's metadata.
    jax.config.update("jax_platforms", "cpu")
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_ACCELERATOR_TYPE="v6e-4",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # it only compiles: others may have libtpu open
    )
    sender.send(check(case))


def _names(found: dict[str, Any]) -> list[str]:
    """The first cells of a line: what it is about."""
    split = f"/{found['model_shards']}" if found.get("model_shards") else ""
    model = f"{found['model'] or '–'}{split}"
    what = [found["target"], "×".join(map(str, found["mesh"])), model]
    return [*what, f"{found['latents']:,}", f"{found['tokens']:,}", found["update"]]


def row(found: dict[str, Any]) -> str:
    """One line of the table."""
    what = _names(found)
    if "peak" in found:
        sizes = (found[name] / GIB for name in ("argument", "temporary", "peak", "memory"))
        what += [f"{size:.1f}" for size in sizes]
        what.append(
            ", ".join(
                f"{kind} {item['count']}: {item['bytes'] / GIB:.2f}"
                for kind, item in found["collectives"].items()
            )
        )
    else:
        what += ["–", "–", "–", f"{found['memory'] / GIB:.1f}", found["reason"]]
    fits = {True: "yes", False: "**no**", None: "not known"}
    what += [f"{found['seconds']:.0f}", fits[found["fits"]]]
    return f"| {' | '.join(what)} |"


HEADER = (
    "| target | data × latent | model | latents | tokens | update | arguments | temporary | peak "
    "| memory (GiB a device) | collectives: number, GiB a device | compiled in s | fits |\n"
    f"|{'---|' * 13}"
)


def merged(kept: Iterable[dict[str, Any]], new: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by what was asked: a new one takes the place of the old one."""

    def asked(found: dict[str, Any]) -> tuple:
        kind, _, size = found["target"].partition("-")
        number, _, slices = size.partition("x")
        what = (found["model"] or "", found["latents"], found["tokens"], found["update"])
        return (list(CHIPS).index(kind), int(slices or 1), int(number), *what, *found["mesh"])

    rows = {json.dumps(asked(found)): found for found in (*kept, *new)}
    return sorted(rows.values(), key=asked)


def table(kept: list[dict[str, Any]]) -> str:
    """What stands in the README: how it was made, and the rows."""
    versions = ", ".join(sorted({found["jax"] for found in kept}))
    cores = ", ".join(sorted({str(found["cores"]) for found in kept}))
    made = f"jax {versions}, k = {kept[0]['active']}; compiled on {cores} core(s)."
    return "\n".join(["", made, "", HEADER, *map(row, kept), ""])


def counted(found: dict[str, Any]) -> dict[str, float]:
    """What the roofline expects a row's collectives to be: kind to bytes of their results.

    Of capture and the SAE's step, as in the programs' texts, where both branches of a condition are
    counted: AuxK's gathers values, sums a second reconstruction, and with the fused update gathers
    everything for twice the tokens.
    """
    model = MODELS[found["model"]]
    data, latent = found["mesh"]
    k, tokens = found["active"], found["tokens"]
    k_aux = TrainConfig.k_aux
    sizes = model.d_model, found["latents"], k, tokens, data, latent, found["update"]
    sent = exchanges.sae(*sizes)
    within, over = sent["latent"], sent["data"]
    gathered = within.gathered * (1 + k_aux / k)
    split = found["model_shards"]
    read = exchanges.capture(model, tokens * split / found["devices"], split)
    reduced = read.reduced + 2 * within.reduced
    over = exchanges.Results(3 * over.gathered, over.reduced)
    if parse_target(found["target"]).count > 1:  # `data` crosses the slices
        return {"all-gather": gathered, "all-reduce": reduced, "recv-done": sum(over)}
    return {"all-gather": gathered + over.gathered, "all-reduce": reduced + over.reduced}


def compiled(found: dict[str, Any]) -> dict[str, float]:
    """What a row's programs of capture and the SAE's step say: kind to bytes of their results."""
    sent: dict[str, float] = {}
    for name in ("capture", "train_step"):
        program = found["programs"][name]
        for kind, item in program["collectives"].items():
            sent[kind] = sent.get(kind, 0) + program["runs"] * item["bytes"]
    return sent


COMPARED = ("all-gather", "all-reduce", "recv-done")
COMPARED_HEADER = (
    "| target | data × latent | model | latents | tokens | update | "
    + " | ".join(f"{kind}: counted, compiled" for kind in COMPARED)
    + f" |\n|{'---|' * (6 + len(COMPARED))}"
)


def comparison(kept: list[dict[str, Any]]) -> str:
    """How far the roofline's bytes are those of the compiled programs: a sentence and a table."""
    ratios, rows = [], []
    for found in kept:
        if found["model"] is None or "collectives" not in found:
            continue
        expected, sent, cells = counted(found), compiled(found), []
        for kind in COMPARED:
            size = sent.get(kind, 0)
            cells.append(f"{expected.get(kind, 0) / GIB:.2f}, {size / GIB:.2f}")
            if size:
                ratios.append((expected.get(kind, 0) / size, kind, found["update"]))
        rows.append(f"| {' | '.join([*_names(found), *cells])} |")
    close = sum(abs(ratio - 1) < 0.01 for ratio, *_ in ratios)
    others = sorted({(k, u, f"{ratio:.2f}") for ratio, k, u in ratios if abs(ratio - 1) >= 0.01})
    said = f"Of {len(ratios)} sizes in {len(rows)} rows {close} agree within 1 %."
    if others:
        listed = ", ".join(f"{kind} ({update}) {ratio}" for kind, update, ratio in others)
        said += f" Counted over compiled, of the others: {listed}."
    return "\n".join(["", said, "", COMPARED_HEADER, *rows, ""])


def _kept() -> list[dict[str, Any]]:
    return json.loads(KEPT.read_text()) if KEPT.exists() else []


def main(_):
    """Compiles every case; the table goes to stdout, JSON to stderr."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("The compiler for TPUs is missing; run: pip install 'jax[tpu]'")
    cases = []
    for target in TARGETS.value:
        for model in size_flags.MODELS.value:
            for latents in size_flags.LATENTS.value:
                if not latents.isdigit():
                    raise UserError(f"The number of latents {latents!r} is no number; give 131072.")
                cases.append(
                    Case(
                        slices=parse_target(target),
                        model=model,
                        latents=int(latents),
                        active=size_flags.ACTIVE.value,
                        rows=ROWS.value,
                        context=size_flags.CONTEXT.value,
                        latent_shards=LATENT_SHARDS.value,
                        update=UPDATE.value,
                        capture=CAPTURE.value,
                        model_shards=MODEL_SHARDS.value,
                        model_dtype=MODEL_DTYPE.value,
                        capture_tokens=CAPTURE_TOKENS.value,
                    )
                )
    print(HEADER, flush=True)
    misses = 0
    for case in cases:
        found = check_within(LIMIT.value, case)
        misses += not found["fits"]
        print(json.dumps(found), file=sys.stderr, flush=True)
        print(row(found), flush=True)
        if size_flags.TABLE.value:
            kept = merged(_kept(), [found])
            with files.atomic(KEPT) as partial:
                partial.write_text(json.dumps(kept, indent=1) + "\n")
    if size_flags.TABLE.value:
        files.replace_between(README, BEGIN, END, table(_kept()))
        files.replace_between(README, BEGIN_COMPARED, END_COMPARED, comparison(_kept()))
    if misses:
        raise UserError(
            f"Of {len(cases)} cases {misses} do not fit or took too long to compile; give more "
            "chips, more latent shards or fewer rows, or a higher --limit_s."
        )


if __name__ == "__main__":
    run(main)
