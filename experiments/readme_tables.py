"""Writes what a finished quickstart printed into README.md, and its results into docs/quickstart/.

    python -m experiments.readme_tables

What stands in the README between its two marks is never edited by hand.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from emojax import errors, files
from emojax.report import results, table

_RUN = flags.DEFINE_string("run", "runs/quickstart", "The folder of the finished run.")
README, RESULTS = Path("README.md"), Path("docs/quickstart/results.json")
BEGIN, END = "<!-- python -m experiments.readme_tables -->", "<!-- end of the tables -->"


def main(argv: Sequence[str]) -> None:
    """Copies the results, without the points of the scatter plots, and the tables."""
    del argv
    found = results.read(Path(_RUN.value) / "results.json")
    found["scatters"] = []
    results.write(found, RESULTS)
    files.replace_between(README, BEGIN, END, table.markdown(found))
    print(f"written to {README} and {RESULTS}")


if __name__ == "__main__":
    errors.run(main)
