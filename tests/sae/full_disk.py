"""A program for `test_store.py`: a capture into a folder whose disk becomes full on its way.

    python full_disk.py FOLDER HOW

HOW: `filled`, something else fills the disk; `limited`, the system lets files grow no further;
`roomy`, nothing happens. Full it becomes before the third shard is written.
"""

import resource
import signal
import sys
from pathlib import Path

from sae_toys import CHUNK, language_model, text_rows

from emojax.errors import UserError
from emojax.lm.capture import Tap
from emojax.sae import store, store_arrays

FOLDER, HOW = Path(sys.argv[1]), sys.argv[2]
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
    # Less than a shard of values, more than store.json.
    resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK * 16, CHUNK * 16))


write = store_arrays.write


def writing(arrays, columns, start):
    if start == 2 * store_arrays.SHARD_CHUNKS * CHUNK:
        {"filled": fill, "limited": limit, "roomy": lambda: None}[HOW]()
    write(arrays, columns, start)


rows = {"train": text_rows(600), "heldout": text_rows(40, seed=1)}
store_arrays.SHARD_CHUNKS = 4
store_arrays.write = writing
try:
    store.capture(
        language_model(), Tap(1), rows, FOLDER / "store", limit_gib=1.0, chunk_tokens=CHUNK
    )
except UserError as error:
    sys.exit(f"error: {error}")
