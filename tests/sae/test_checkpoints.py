"""What the disk or the memory has no room for: told in a sentence, and nothing is lost."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from sae_toys import SAE, TRAIN, Interfering, activations, read_log, split_of

from emojax.errors import UserError
from emojax.sae import state as states
from emojax.sae import trainer
from emojax.sae.checkpoints import Checkpoints
from emojax.sae.store import Split


@pytest.fixture
def split(tmp_path) -> Split:
    return split_of(tmp_path / "store", activations(2560))


def test_a_full_disk_is_one_sentence_and_the_same_call_goes_on(split, tmp_path, monkeypatch):
    wanted = trainer.train(SAE, TRAIN, split, tmp_path / "whole")

    def fill(_):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))

    said = r"run/checkpoints could not be written \(No space left on device\); step 20 is saved"
    with pytest.raises(UserError, match=said):
        trainer.train(SAE, TRAIN, Interfering(split, 25, fill), tmp_path / "run")
    monkeypatch.undo()
    sae = trainer.train(SAE, TRAIN, split, tmp_path / "run")
    np.testing.assert_array_equal(sae.w_enc, wanted.w_enc)
    assert read_log(tmp_path / "run") == read_log(tmp_path / "whole")


def test_what_the_system_refuses_while_a_checkpoint_is_written_is_one_sentence(tmp_path):
    """Orbax learns of it in a thread of its own."""
    program = str(Path(__file__).parent / "full_disk.py")
    command = [sys.executable, program, str(tmp_path), "training", "limited"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "ERROR:absl" not in done.stderr
    said = "could not be written (File too large); step 20 is saved: mend that"
    assert said in done.stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."),
    ],
)
def test_a_checkpoint_for_which_memory_has_no_room_stays(split, tmp_path, monkeypatch, error):
    mesh = states.make_mesh(TRAIN, SAE.n_latents)
    state = states.start(SAE, TRAIN, states.sample(split), mesh)

    def failing(*_):
        raise error

    with Checkpoints(tmp_path / "checkpoints", 2) as files:
        files.save(state._replace(step=state.step + 1), 0.5, [None])
    with Checkpoints(tmp_path / "checkpoints", 2) as files:
        with monkeypatch.context() as patched:
            patched.setattr(files._files, "load", failing)
            with pytest.raises(type(error)):
                files.restore(state)
        assert int(files.restore(state).step) == 1
    assert not (tmp_path / "damaged").exists()
