"""A program for `test_store.py` and `test_checkpoints.py`: a disk becomes full on the way.

    python full_disk.py FOLDER WHAT HOW

WHAT: `capture`, full before the third shard is written; `training`, full when the checkpoint of
step 20 is there. HOW: `filled`, something else fills the disk; `limited`, the system lets files
grow no further; `roomy`, nothing happens.
"""

import dataclasses
import resource
import signal
import sys
import time
from pathlib import Path

from sae_toys import (
    CHUNK,
    SAE,
    TRAIN,
    Interfering,
    activations,
    language_model,
    split_of,
    text_rows,
)

from emojax.errors import UserError
from emojax.lm.capture import Tap
from emojax.sae import store, store_arrays, trainer

FOLDER, WHAT, HOW = Path(sys.argv[1]), *sys.argv[2:]
BALLAST = FOLDER / "ballast"


def fill() -> None:
    with BALLAST.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def limit() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # Less than a shard of values and than a checkpoint's arrays, more than store.json and the log.
    resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK * 16, CHUNK * 16))


def become_full() -> None:
    {"filled": fill, "limited": limit, "roomy": lambda: None}[HOW]()


def capture() -> None:
    write = store_arrays.write

    def writing(arrays, columns, start):
        if start == 2 * store_arrays.SHARD_CHUNKS * CHUNK:
            become_full()
        write(arrays, columns, start)

    rows = {"train": text_rows(600), "heldout": text_rows(40, seed=1)}
    store_arrays.SHARD_CHUNKS = 4
    store_arrays.write = writing
    store.capture(
        language_model(), Tap(1), rows, FOLDER / "store", limit_gib=1.0, chunk_tokens=CHUNK
    )


def training() -> None:
    def full(_):
        while not (FOLDER / "run" / "checkpoints" / "20").exists():
            time.sleep(0.01)
        become_full()

    split = split_of(FOLDER / "store", activations(2560))
    # The log's lines fit into what its file fills already.
    settings = dataclasses.replace(TRAIN, log_every=20)
    trainer.train(SAE, settings, Interfering(split, 25, full), FOLDER / "run")


try:
    {"capture": capture, "training": training}[WHAT]()
except UserError as error:
    sys.exit(f"error: {error}")
