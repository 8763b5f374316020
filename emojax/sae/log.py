"""Where a run's figures go: a JSONL file always, TensorBoard and Weights & Biases if installed."""

import importlib
import importlib.util
import json
import logging
import os
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from emojax.errors import UserError
from emojax.files import Place, atomic, is_address, reason

Numbers = Mapping[str, float | int]
# W&B's own variables. Any of them asks for it: SAELens and others bring the package along, and an
# installed package alone is no leave to send anything anywhere.
WANDB = ("WANDB_PROJECT", "WANDB_API_KEY", "WANDB_MODE")


class Sink(Protocol):
    """What takes a run's figures besides the file."""

    def write(self, step: int, numbers: Numbers) -> None:
        """Takes a line of the training."""
        ...

    def measured(self, step: int, numbers: Numbers) -> None:
        """Takes what the finished dictionary was measured to be."""
        ...

    def close(self, failed: bool) -> None:
        """Nothing comes any more."""
        ...


class Log:
    """All that takes the figures of the run in `directory`, which goes on after `step`.

    It is open within `with`; an error that leaves it marks W&B's run as failed.
    """

    def __init__(self, directory: Place, step: int):
        self._file = Jsonl(directory, step)
        found: tuple[Sink | None, ...] = tensorboard(directory), wandb(directory, step)
        self._sinks = [sink for sink in found if sink is not None]

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.flush()
        for sink in self._sinks:
            sink.close(failed=kind is not None)

    def write(self, step: int, numbers: Numbers) -> None:
        """Takes a line."""
        self._file.write(numbers)
        for sink in self._sinks:
            sink.write(step, numbers)

    def measured(self, step: int, evaluation: Mapping[str, Any]) -> None:
        """Takes what `evaluation.json` holds: whole in the file, elsewhere its single numbers."""
        self._file.write({"step": step, "evaluation": evaluation})
        numbers = dict(_flat("evaluation", evaluation))
        for sink in self._sinks:
            sink.measured(step, numbers)

    def flush(self) -> None:
        """What was written is in the file afterwards."""
        self._file.flush()


def _flat(name: str, value: Any) -> Iterator[tuple[str, float | int]]:
    """The numbers of nested mappings by their path; a histogram is not one number."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}/{key}", inner)
    elif isinstance(value, int | float):
        yield name, value


class Jsonl:
    """`training_log.jsonl`, cut back to `step`: what comes after it will be written again.

    What was measured at the end is measured again too. On a disk each line is there at once.
    Nothing can be appended to an object in a bucket: there the file is written anew by `flush`,
    which comes before every checkpoint, so that a run that goes on from one finds all lines up to
    it.
    """

    def __init__(self, directory: Place, step: int):
        self._path = directory / "training_log.jsonl"
        lines = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
        found = [(line, json.loads(line)) for line in lines if line.endswith("\n")]
        self._lines = [
            line for line, held in found if held["step"] <= step and "evaluation" not in held
        ]
        self._all_there = False
        self.flush()

    def write(self, entry: Mapping[str, Any]) -> None:
        """Takes a line.

        Raises:
          UserError: the disk is full, or cannot be written to.
        """
        line = json.dumps(entry) + "\n"
        if is_address(self._path):
            self._lines.append(line)
            self._all_there = False
            return
        try:
            with self._path.open("a") as file:
                file.write(line)
        except OSError as error:
            raise UserError(
                f"{self._path} could not be written ({reason(error)}); mend that (free room on a "
                "full disk) and run again, which goes on from the last checkpoint."
            ) from None

    def flush(self) -> None:
        """Writes what is not there yet."""
        if not self._all_there:
            with atomic(self._path) as partial:
                partial.write_text("".join(self._lines))
        self._all_there = True


class TensorBoard:
    """TensorBoard's files in `<run>/tensorboard`."""

    def __init__(self, writer: Any):
        self._writer = writer

    def write(self, step: int, numbers: Numbers) -> None:
        """Takes a line."""
        self.measured(step, {f"train/{name}": value for name, value in numbers.items()})

    def measured(self, step: int, numbers: Numbers) -> None:
        """Takes numbers whose names say which group they are of."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, failed: bool) -> None:
        """Ends the file."""
        del failed
        self._writer.close()


def tensorboard(directory: Place) -> TensorBoard | None:
    """TensorBoard, if the package is installed and the run's folder is on a disk."""
    if is_address(directory) or importlib.util.find_spec("tensorboard") is None:
        return None
    summary = importlib.import_module("tensorboard.summary")
    return TensorBoard(summary.Writer(str(directory / "tensorboard")))


class WeightsAndBiases:
    """A run of Weights & Biases, which may have lines from before this process."""

    def __init__(self, run: Any):
        self._run, self._first = run, run.step

    def write(self, step: int, numbers: Numbers) -> None:
        """Takes a line, unless W&B has it: a run goes on from a checkpoint, before its last line.

        The line that it has is the same one, and W&B takes no step twice.
        """
        if step >= self._first:
            self._run.log(dict(numbers), step=step)

    def measured(self, step: int, numbers: Numbers) -> None:
        """Puts numbers into the run's summary."""
        del step
        self._run.summary.update(dict(numbers))

    def close(self, failed: bool) -> None:
        """Sends what is left."""
        self._run.finish(exit_code=int(failed))


def wandb(directory: Place, step: int) -> WeightsAndBiases | None:
    """Weights & Biases, if the package is installed and one of its variables asks for it.

    A sweep trains several dictionaries in one process, each a run of its own. The run's id lies in
    `<run>/wandb_id`, so that a training that goes on goes on in the same run; where W&B does not
    start then, it goes on without.

    Raises:
      UserError: W&B does not start at step 0: nobody is logged in, or its server is not there.
    """
    if importlib.util.find_spec("wandb") is None or not any(map(os.environ.get, WANDB)):
        return None
    place = directory / "wandb_id"
    if not place.exists():
        with atomic(place) as partial:
            partial.write_text(uuid.uuid4().hex[:8])
    # Its own files lie on a disk.
    kept = {} if is_address(directory) else {"dir": str(directory)}
    package = importlib.import_module("wandb")
    try:
        started = package.init(
            **kept,
            project=os.environ.get("WANDB_PROJECT", "emojax"),
            name=directory.name,
            config=json.loads((directory / "run.json").read_text()),
            id=place.read_text(),
            resume="allow",
            reinit="create_new",
        )
    except package.Error as error:
        said = (
            f"Weights & Biases does not start ({str(error).rstrip('.')}); log in to it, set "
            f"WANDB_MODE=offline, or unset {', '.join(WANDB)}."
        )
        if not step:
            raise UserError(said) from None
        logging.warning("%s", said)
        return None
    return WeightsAndBiases(started)
