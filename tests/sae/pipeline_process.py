"""A program for `test_pipeline.py`: one of several processes, each with one device.

    python pipeline_process.py FOLDER PORT PROCESS PROCESSES FILE…

`FOLDER/stored` is a run of the whole pipeline. `FOLDER/whole` and `FOLDER/cut` are one run streamed
twice, the second with a SIGTERM to the last process on its way; prints where that stopped.
"""

import dataclasses
import os
import signal
import sys
from pathlib import Path

import jax

FOLDER, (PORT, PROCESS, PROCESSES) = Path(sys.argv[1]), map(int, sys.argv[2:5])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{PORT}", PROCESSES, PROCESS)

from sae_toys import (  # noqa: E402
    SAE,
    TRAIN,
    Cycle,
    language_model,
    load,
    streamed,
    text_rows,
    train_one,
)
from test_pipeline import CONFIG  # noqa: E402

from emojax.config import override  # noqa: E402
from emojax.lm import sources  # noqa: E402
from emojax.sae import trainer  # noqa: E402

lm = language_model()
sources.load = load
texts = [(name, FOLDER / file) for name, file in zip(("en", "en", "zh"), sys.argv[5:], strict=True)]
train_one(
    override(CONFIG, [f"train.data_shards={PROCESSES}", "train.epochs=1"]),
    texts,
    out=FOLDER / "stored",
    artefact=FOLDER / "artefact",
    store_dir=FOLDER / "store",
)

settings = dataclasses.replace(TRAIN, epochs=1, data_shards=PROCESSES)
rows = text_rows(600)


def run(name: str, signalled: int = -1) -> None:
    text = Cycle(rows, PROCESS, PROCESSES)
    source = streamed(lm, rows, settings, tokens=40 * TRAIN.batch_tokens, text=text)
    batches = source.batches

    def signalling(*given):
        for step, batch in enumerate(batches(*given)):
            if step == signalled and PROCESS == PROCESSES - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    source.batches = signalling
    trainer.train(SAE, settings, source, FOLDER / name)


run("whole")
try:
    run("cut", 13)
except KeyboardInterrupt:
    print(
        "STOPPED", max(int(path.name) for path in (FOLDER / "cut" / "checkpoints").glob("[0-9]*"))
    )
run("cut")
