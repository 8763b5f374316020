"""The main job: read words, find emotion features, compare with people, steer text, report.

    python -m experiments.quickstart
    python -m experiments.quickstart --set study.seed=1 --output runs/seed1

Writes `report.html` and `results.json` into the output folder. Whatever was finished is kept
there, so an interrupted run goes on where it was.
"""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from emojax import config, errors
from emojax.report import table
from emojax.study import run

_CONFIG = flags.DEFINE_string("config", "configs/gemma3_270m.py", "The study's configuration.")
_SET = flags.DEFINE_multi_string(
    "set",
    [],
    "An override such as study.writing.strength=0.05; may be repeated. Commas separate values "
    "(study.languages=en,zh), bars separate texts (study.writing.prompts_en=Hello, I | Dear all,). "
    "study.norms_en.path=FILE takes human ratings of your own, a CSV or TSV file; "
    "study.norms_en.word, .valence and .arousal name its columns. study.concepts_en=FILE takes "
    "emotion words of your own, a TOML file like emojax/data/concepts_en.toml.",
)
_OUTPUT = flags.DEFINE_string("output", "runs/quickstart", "Folder of the report and the results.")


def main(argv: Sequence[str]) -> None:
    """Runs the study and prints its table."""
    del argv
    settings = config.load(Path(_CONFIG.value), _SET.value)
    words = ["python", "-m", "experiments.quickstart", "--config", _CONFIG.value]
    words += [word for text in _SET.value for word in ("--set", text)]
    results = run.study(settings.study, Path(_OUTPUT.value), shlex.join(words))
    print(table.markdown(results))
    print(f"\nOpen {os.path.relpath(Path(_OUTPUT.value) / 'report.html')} in a browser.")


if __name__ == "__main__":
    errors.run(main)
