"""A program for `test_pipeline.py`: one of several processes, each with one device.

    python pipeline_process.py FOLDER PORT PROCESS PROCESSES

`FOLDER/stored`, `FOLDER/whole` and `FOLDER/cut` are runs of the whole pipeline. The last two are
one run streamed twice, the second with a SIGTERM to the last process on its way; prints where that
stopped.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import jax

FOLDER, (PORT, PROCESS, PROCESSES) = Path(sys.argv[1]), map(int, sys.argv[2:5])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{PORT}", PROCESSES, PROCESS)

from sae_toys import load, train_one  # noqa: E402
from test_pipeline import CONFIG, STREAMED  # noqa: E402

from emojax.config import Config, override  # noqa: E402
from emojax.lm import sources  # noqa: E402
from emojax.sae.stream import Stream  # noqa: E402

sources.load = load
STORED_TEXTS = ("en", "novel.txt.gz"), ("en", "posts.tsv"), ("zh", "talk.txt")
# Of many documents, which are what is split among processes.
STREAMED_TEXTS = ("en", "posts.tsv"), ("zh", "talk.tsv")
CONFIG = override(CONFIG, [f"train.data_shards={PROCESSES}", "train.epochs=1"])
STREAMED = override(CONFIG, [*STREAMED, "data.tokens=3000"])


def run(name: str, config: Config, texts: Sequence[tuple[str, str]], store: str) -> None:
    train_one(
        config,
        [(language, FOLDER / file) for language, file in texts],
        out=FOLDER / name,
        artefact=FOLDER / name / "artefact",
        store_dir=FOLDER / store,
    )


def signalling(self, *given):
    for step, batch in enumerate(batches(self, *given)):
        if step == 3 and PROCESS == PROCESSES - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        yield batch


run("stored", CONFIG, STORED_TEXTS, "store")
run("whole", STREAMED, STREAMED_TEXTS, "heldout")
batches = Stream.batches
with mock.patch.object(Stream, "batches", signalling):
    try:
        run("cut", STREAMED, STREAMED_TEXTS, "heldout")
    except KeyboardInterrupt:
        saved = (FOLDER / "cut" / "checkpoints").glob("[0-9]*")
        print("STOPPED", max(int(path.name) for path in saved))
run("cut", STREAMED, STREAMED_TEXTS, "heldout")
