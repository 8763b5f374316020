"""Where a run's figures go: a JSONL file always, TensorBoard and Weights & Biases if installed."""

import importlib
import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from emojax.files import Place, atomic, is_address

Sink = Callable[[int, Mapping[str, float | int]], None]


class Log:
    """All that takes a line's numbers, for a run that goes on after `step`."""

    def __init__(self, directory: Place, run: Mapping[str, Any], step: int):
        self._file = Jsonl(directory, step)
        others = (tensorboard(directory), wandb(directory, run))
        self._sinks: list[Sink] = [self._file.write, *filter(None, others)]

    def write(self, step: int, numbers: Mapping[str, float | int]) -> None:
        """Takes a line."""
        for sink in self._sinks:
            sink(step, numbers)

    def close(self) -> None:
        """Nothing that was written is lost afterwards; it may still be written to."""
        self._file.close()


class Jsonl:
    """`training_log.jsonl`, cut back to `step`: what comes after it will be written again.

    On a disk each line is there at once. Nothing can be appended to an object in a bucket: there
    the file is written anew by `close`, which comes before every checkpoint, so that a run that
    goes on from one finds all lines up to it.
    """

    def __init__(self, directory: Place, step: int):
        self._path = directory / "training_log.jsonl"
        lines = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        self._lines = [line for line in whole if json.loads(line)["step"] <= step]
        self._all_there = False
        self.close()

    def write(self, step: int, numbers: Mapping[str, float | int]) -> None:
        """Takes a line."""
        del step
        line = json.dumps(numbers) + "\n"
        if is_address(self._path):
            self._lines.append(line)
            self._all_there = False
            return
        with self._path.open("a") as file:
            file.write(line)

    def close(self) -> None:
        """Writes what is not there yet."""
        if not self._all_there:
            with atomic(self._path) as partial:
                partial.write_text("".join(self._lines))
        self._all_there = True


def tensorboard(directory: Place) -> Sink | None:
    """TensorBoard files in `<run>/tensorboard`, if the package is installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    writer = importlib.import_module("tensorboard.summary").Writer(str(directory / "tensorboard"))

    def write(step: int, numbers: Mapping[str, float | int]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(f"train/{name}", value, step)
        writer.flush()

    return write


def wandb(directory: Place, run: Mapping[str, Any]) -> Sink | None:
    """Weights & Biases, if the package is installed and `$WANDB_PROJECT` says where to."""
    if importlib.util.find_spec("wandb") is None or not os.environ.get("WANDB_PROJECT"):
        return None
    # Its own files lie on a disk.
    kept = {} if is_address(directory) else {"dir": str(directory)}
    started = importlib.import_module("wandb").init(
        **kept, config=dict(run), resume="allow", id=os.environ.get("WANDB_RUN_ID")
    )
    return lambda step, numbers: started.log(dict(numbers), step=step)
