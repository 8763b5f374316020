"""A program for `test_hub.py`, since where the hub is, is read from the environment at import.

    python hub_process.py CACHE SOURCE…

Prints as JSON what loading each source gives: the SHA-256 of its parameters, or the error.
"""

import hashlib
import json
import sys
from pathlib import Path

import jax
import numpy as np

from emojax.errors import UserError
from emojax.lm import sources


def outcome(source: str, cache: Path) -> str:
    try:
        lm = sources.load(source, cache=cache)
    except UserError as error:
        return str(error)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(lm.params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    print(json.dumps([outcome(source, Path(sys.argv[1])) for source in sys.argv[2:]]))
