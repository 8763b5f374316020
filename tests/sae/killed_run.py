"""A program for `test_resume.py`: one training run, which may kill itself.

    python killed_run.py FOLDER SOURCE [POINT STEP]

FOLDER: on a disk or in a bucket. SOURCE: `stored` or `streamed` (`toy_run`). POINT: `step`, kill -9
before the batch of STEP is given out; `saving`, kill -9 while the checkpoint of STEP is written,
before its folder gets its name or, in a bucket, the object that says it is whole. A run that gets
to its end prints the SHA-256 of its last checkpoint's arrays.
"""

import os
import signal
import sys
import time
from pathlib import Path

from etils import epath
from sae_toys import digest, toy_run

from emojax import files
from emojax.sae import checkpoints, trainer

FOLDER, SOURCE = files.place(sys.argv[1]), sys.argv[2]
POINT, STEP = (sys.argv[3], int(sys.argv[4])) if len(sys.argv) > 3 else ("", -1)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


sae, settings, source = toy_run(SOURCE, FOLDER)
if POINT == "step":
    batches = type(source).batches
    saved = STEP // settings.checkpoint_every * settings.checkpoint_every
    whole = FOLDER / "run" / "checkpoints" / str(saved) / "commit_success.txt"

    def dying(self, batch_tokens, seed, first_step=0):
        for step, batch in enumerate(batches(self, batch_tokens, seed, first_step), first_step):
            # To a bucket a checkpoint is sent for longer than the few steps since take.
            while step == STEP and files.is_address(FOLDER) and not whole.exists():
                time.sleep(0.05)
            if step == STEP:
                die()
            yield batch

    type(source).batches = dying
if POINT == "saving":
    rename, save = os.rename, checkpoints.Checkpoints.save

    def dying_save(self, state, *rest):
        if int(state.step) == STEP:
            # The folder's name is given last, by a rename: die instead.
            for module in ("rename", "replace"):
                setattr(os, module, lambda *_, **__: die())
            Path.rename = Path.replace = lambda *_: die()
            write = epath.Path.write_text

            def dying_write(path, *given, **more):
                if path.name == "commit_success.txt":
                    die()
                return write(path, *given, **more)

            type(epath.Path("/")).write_text = dying_write
        save(self, state, *rest)
        self._files.wait()

    checkpoints.Checkpoints.save = dying_save
trainer.train(sae, settings, source, FOLDER / "run")
print("FINISHED", digest(FOLDER / "run", sae, settings, source))
