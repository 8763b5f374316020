"""What is killed, damaged or moved to other devices goes on as if nothing had happened."""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from sae_toys import SAE, TRAIN, activations, digest, read_log, split_of, toy_run

from emojax.sae import trainer
from emojax.sae.checkpoints import Checkpoints

PROGRAM = str(Path(__file__).parent / "killed_run.py")


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return split_of(tmp_path_factory.mktemp("store"), activations(2560))


@pytest.fixture(scope="module")
def finished(split, tmp_path_factory):
    """An uninterrupted run of 40 steps with checkpoints at 10, 20, 30 and 40."""
    directory = tmp_path_factory.mktemp("run")
    return trainer.train(SAE, TRAIN, split, directory), directory


@pytest.fixture(scope="module")
def streamed_whole(tmp_path_factory):
    """The same of BatchTopK with a running mean, streamed from a language model."""
    directory = tmp_path_factory.mktemp("streamed")
    return trainer.train(*toy_run("streamed", directory), directory), directory


def run(folder: Path, source: str, *kill: str) -> subprocess.CompletedProcess:
    command = [sys.executable, PROGRAM, str(folder), source, *kill]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("source", "whole"), [("stored", "finished"), ("streamed", "streamed_whole")]
)
def test_kill_9_anywhere_and_the_same_command_goes_on_bitwise(tmp_path, source, whole, request):
    """One run, killed three times: between checkpoints, while one is written, just after one."""
    finished = request.getfixturevalue(whole)
    point = np.random.default_rng().integers(11, 20)
    print(f"killed at {point}")
    for kill in (("step", str(point)), ("saving", "20"), ("step", "30")):
        done = run(tmp_path, source, *kill)
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    left = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert "20" in left
    assert "40" not in left
    done = run(tmp_path, source)
    assert done.returncode == 0, done.stderr[-2000:]
    # The kill at 30 may have come before that checkpoint, which is written meanwhile, was whole.
    assert re.search("goes on after step (20|30) of 40", done.stderr)
    assert not (tmp_path / "run" / "damaged").exists()
    assert read_log(tmp_path / "run") == read_log(finished[1])
    # Losses of the log are rounded: all arrays, the running mean and the buffer among them.
    assert done.stdout.split() == ["FINISHED", digest(finished[1], *toy_run(source, tmp_path))]


def damage(path: Path) -> None:
    """Cuts the largest file of a checkpoint short."""
    largest = max((f for f in path.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def test_a_truncated_checkpoint_is_named_skipped_and_kept(split, finished, tmp_path, caplog):
    shutil.copytree(finished[1], tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "checkpoints" / "40")
    sae = trainer.train(SAE, TRAIN, split, tmp_path)
    assert "checkpoints/40 is damaged" in caplog.text
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["40", "40.txt"]
    assert "goes on after step 30" in caplog.text
    assert read_log(tmp_path) == read_log(finished[1])
    np.testing.assert_array_equal(sae.w_enc, finished[0].w_enc)


def test_whichever_file_of_a_checkpoint_is_cut_short_the_run_goes_on_bitwise(
    split, finished, tmp_path
):
    whole = finished[1] / "checkpoints" / "40"
    skipped = []
    for number, file in enumerate(sorted(f for f in whole.rglob("*") if f.is_file())):
        run = tmp_path / str(number)
        shutil.copytree(finished[1], run)
        os.truncate(run / "checkpoints" / "40" / file.relative_to(whole), file.stat().st_size // 2)
        sae = trainer.train(SAE, TRAIN, split, run)
        assert read_log(run) == read_log(finished[1]), file
        np.testing.assert_array_equal(sae.w_enc, finished[0].w_enc, str(file))
        if (run / "damaged").exists():
            skipped.append(file)
    # Some say only what is said elsewhere too. These hold what nothing else does.
    assert {"_METADATA", "manifest.ocdbt", "metrics"} <= {file.name for file in skipped}
    assert any(file.parent.name == "d" for file in skipped)


def test_a_checkpoint_of_other_bits_or_shapes_is_skipped(split, finished, tmp_path, caplog):
    """One whose digest is not its own, then one of another dictionary: back to the start."""
    mesh = trainer.states.make_mesh(TRAIN, SAE.n_latents)

    def start(config):
        return trainer.states.start(config, TRAIN, trainer.states.sample(split), mesh)

    state = start(SAE)
    with Checkpoints(tmp_path / "c", 5) as files:
        other = start(dataclasses.replace(SAE, n_latents=32))
        files.save(other._replace(step=other.step + 1), 0.5, [None])
        digest = jax.numpy.zeros(len(jax.tree.leaves(state)), "uint32")
        files._files.save(2, {"state": state._replace(step=state.step + 2), "digest": digest})
    with Checkpoints(tmp_path / "c", 5) as files:
        assert files.restore(state) is state
    assert "bits are not those" in caplog.text
    assert "state/idle is int32[32], not int32[64]" in caplog.text
    damaged = tmp_path / "damaged"
    assert sorted(path.name for path in damaged.iterdir()) == ["1", "1.txt", "2", "2.txt"]
    assert "int32[32]" in (damaged / "1.txt").read_text()


def test_the_last_checkpoints_and_the_best_are_kept(split, tmp_path):
    state = trainer.states.start(
        SAE, TRAIN, trainer.states.sample(split), trainer.states.make_mesh(TRAIN, SAE.n_latents)
    )
    with Checkpoints(tmp_path, 2) as files:
        for step, reconstruction in enumerate((0.9, 0.2, 0.5, 0.6, 0.7), 1):
            files.save(state._replace(step=state.step + step), reconstruction, [None])
    assert sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()) == [2, 4, 5]


OTHER_DEVICES = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
from pathlib import Path
from sae_toys import toy_run
from emojax.sae import trainer
folder = Path(sys.argv[1])
trainer.train(*toy_run(sys.argv[2], folder, data_shards=2, latent_shards=2), folder / "run")
"""


@pytest.mark.parametrize(
    ("source", "whole"), [("stored", "finished"), ("streamed", "streamed_whole")]
)
def test_a_run_goes_on_with_another_number_of_devices(tmp_path, source, whole, request):
    _, directory = request.getfixturevalue(whole)
    # What a run that was killed after step 30 leaves, but for the log, which is cut back.
    shutil.copytree(directory, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "40")
    path = f"{Path(PROGRAM).parent}:{os.environ.get('PYTHONPATH', '')}"
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", OTHER_DEVICES, str(tmp_path), source],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "goes on after step 30" in done.stderr
    found, wanted = read_log(tmp_path / "run"), read_log(directory)
    assert found[:30] == wanted[:30]
    for a, b in zip(found[30:], wanted[30:], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
