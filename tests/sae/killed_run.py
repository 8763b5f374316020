"""A program for `test_resume.py`: one training run, which may kill itself.

    python killed_run.py FOLDER [POINT STEP]

POINT: `step`, kill -9 before the batch of STEP; `saving`, kill -9 while the checkpoint of
STEP is written, before its folder gets its name.
"""

import os
import signal
import sys
from pathlib import Path

from sae_toys import SAE, TRAIN, activations, split_of

from emojax.sae import checkpoints, trainer

FOLDER = Path(sys.argv[1])
POINT, STEP = (sys.argv[2], int(sys.argv[3])) if len(sys.argv) > 2 else ("", -1)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


split = split_of(FOLDER / "store", activations(2560))
if POINT == "step":
    batches = type(split).batches

    def dying(self, batch_tokens, seed, first_step=0):
        for step, batch in enumerate(batches(self, batch_tokens, seed, first_step), first_step):
            if step == STEP:
                die()
            yield batch

    type(split).batches = dying
if POINT == "saving":
    rename, save = os.rename, checkpoints.Checkpoints.save

    def dying_save(self, state, reconstruction):
        if int(state.step) == STEP:
            # The folder's name is given last, by a rename: die instead.
            for module in ("rename", "replace"):
                setattr(os, module, lambda *_, **__: die())
            Path.rename = Path.replace = lambda *_: die()
        save(self, state, reconstruction)
        self._files.wait()

    checkpoints.Checkpoints.save = dying_save
trainer.train(SAE, TRAIN, split, FOLDER / "run")
print("FINISHED")
