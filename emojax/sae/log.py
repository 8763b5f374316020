"""Where a run's figures go: a JSONL file always, TensorBoard and Weights & Biases if installed."""

import importlib
import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from emojax.files import atomic

Sink = Callable[[int, Mapping[str, float | int]], None]


def sinks(directory: Path, run: Mapping[str, Any], step: int) -> list[Sink]:
    """All that takes a line's numbers, for a run that goes on after `step`."""
    there = (jsonl(directory, step), tensorboard(directory), wandb(directory, run))
    return [sink for sink in there if sink is not None]


def jsonl(directory: Path, step: int) -> Sink:
    """`training_log.jsonl`, cut back to `step`: what comes after it will be written again."""
    path = directory / "training_log.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    with atomic(path) as partial:
        partial.write_text("".join(line for line in whole if json.loads(line)["step"] <= step))

    def write(step: int, numbers: Mapping[str, float | int]) -> None:
        del step
        with path.open("a") as file:
            file.write(json.dumps(numbers) + "\n")

    return write


def tensorboard(directory: Path) -> Sink | None:
    """TensorBoard files in `<run>/tensorboard`, if the package is installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    writer = importlib.import_module("tensorboard.summary").Writer(str(directory / "tensorboard"))

    def write(step: int, numbers: Mapping[str, float | int]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(f"train/{name}", value, step)
        writer.flush()

    return write


def wandb(directory: Path, run: Mapping[str, Any]) -> Sink | None:
    """Weights & Biases, if the package is installed and `$WANDB_PROJECT` says where to."""
    if importlib.util.find_spec("wandb") is None or not os.environ.get("WANDB_PROJECT"):
        return None
    started = importlib.import_module("wandb").init(
        dir=str(directory), config=dict(run), resume="allow", id=os.environ.get("WANDB_RUN_ID")
    )
    return lambda step, numbers: started.log(dict(numbers), step=step)
