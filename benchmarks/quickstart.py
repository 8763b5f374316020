"""How long the main job takes and how much memory: a first run, then a rerun.

    python -m benchmarks.quickstart [--config configs/gemma3_270m.py]

Runs `experiments.quickstart` twice in a process of its own, with an empty cache and an empty output
folder (`--run` keeps it), and writes `benchmarks/results/quickstart.json`. The bars were set before
the measurement.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import psutil
from absl import flags

from benchmarks import processor
from emojax import errors, files
from emojax.errors import UserError

BARS = {"first_seconds": 480, "rerun_seconds": 180, "peak_gib": 6.0}

_CONFIG = flags.DEFINE_string("config", "configs/gemma3_270m.py", "The configuration to run.")
_OUTPUT = flags.DEFINE_string(
    "output", "benchmarks/results/quickstart.json", "Where the figures are written."
)
_RUN = flags.DEFINE_string("run", None, "Folder of the run; by default one that is removed.")


def measure(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds and peak resident memory in GiB of one command, its children's included."""
    started = time.perf_counter()
    process = psutil.Popen(command, env=environment)
    peak = 0
    while process.poll() is None:
        try:
            family = [process, *process.children(recursive=True)]
            peak = max(peak, sum(member.memory_info().rss for member in family))
        except psutil.NoSuchProcess:
            continue
        time.sleep(0.2)
    if process.returncode:
        raise UserError(f"{' '.join(command)} failed with status {process.returncode}; see above.")
    return time.perf_counter() - started, peak / 2**30


def main(argv: Sequence[str]) -> None:
    """Measures, prints, writes."""
    del argv
    if _RUN.value and Path(_RUN.value).exists():
        raise UserError(f"The folder {_RUN.value} exists; name one that a first run can make.")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"EMOJAX_CACHE": f"{folder}/cache"}
        command = [sys.executable, "-m", "experiments.quickstart", "--config", _CONFIG.value]
        command += ["--output", _RUN.value or f"{folder}/run"]
        first, first_peak = measure(command, environment)
        rerun, rerun_peak = measure(command, environment)
    figures = {
        "first_seconds": round(first, 1),
        "rerun_seconds": round(rerun, 1),
        "peak_gib": round(max(first_peak, rerun_peak), 2),
    }
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    report = {
        "config": _CONFIG.value,
        "machine": f"{processor.name()}, {os.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "load_average_before": round(load, 2),
        "commit": commit.stdout.strip(),
        "bars": BARS,
        "figures": figures,
        "met": {name: figures[name] <= bar for name, bar in BARS.items()},
    }
    output = Path(_OUTPUT.value)
    with files.atomic(output) as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n")
    for name, bar in BARS.items():
        print(f"{name}: {figures[name]} (bar {bar}, {'met' if report['met'][name] else 'MISSED'})")


if __name__ == "__main__":
    errors.run(main)
