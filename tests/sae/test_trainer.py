import dataclasses
import os
import shutil
import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from sae_toys import SAE, TRAIN, D, Interfering, K, N, activations, read_log, split_of

from emojax.errors import UserError
from emojax.sae import coder, metrics, schedule, trainer
from emojax.sae import state as states
from emojax.sae.step import train_step
from emojax.sae.store import Batch, Split


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> Split:
    return split_of(tmp_path_factory.mktemp("store"), activations(2560))


@pytest.fixture(scope="module")
def finished(split, tmp_path_factory):
    """An uninterrupted run."""
    directory = tmp_path_factory.mktemp("run")
    return trainer.train(SAE, TRAIN, split, directory), directory


def test_training_explains_held_out_data_far_better_than_no_training(split, finished, tmp_path):
    sae, directory = finished
    log = read_log(directory)
    assert [entry["step"] for entry in log] == list(range(1, 41))
    assert log[-1]["loss"] < 0.6 * log[0]["loss"]
    assert all(entry["l0"] <= K for entry in log)
    held_out = split_of(tmp_path / "held", activations(1000, seed=1))
    before = metrics.reconstruction(states.untrained(SAE, states.sample(split)), held_out)
    after = metrics.reconstruction(sae, held_out)
    assert after["fvu"]["unit_norm"]["all"] < 0.6 * before["fvu"]["unit_norm"]["all"]


def test_decoder_rows_stay_unit_vectors(finished):
    np.testing.assert_allclose(np.linalg.norm(finished[0].w_dec, axis=1), 1, rtol=1e-5)


def test_random_rows_lie_where_the_activations_do(split):
    found = states.sample(split)
    random = states.random(SAE, found)
    np.testing.assert_allclose(np.linalg.norm(random.w_dec, axis=1), 1, rtol=1e-5)
    x, _ = coder.scale(SAE, jax.numpy.asarray(found.x))
    shrunk = np.linalg.norm(random.w_enc, axis=1)
    np.testing.assert_allclose(shrunk, shrunk[0], rtol=1e-5)
    # Another length of the encoder's rows leaves more.
    left = [
        np.sum((x - coder.decode(other, coder.encode(other, found.x))) ** 2)
        for factor in (1, 0.9, 1.1)
        for other in [dataclasses.replace(random, w_enc=factor * random.w_enc)]
    ]
    assert left[0] == min(left)
    strength, axes = np.linalg.eigh(np.cov(np.asarray(x).T))
    share = np.mean((np.asarray(random.w_dec) @ axes) ** 2, axis=0)
    assert np.corrcoef(share, strength)[0, 1] > 0.9
    untrained = states.untrained(SAE, found)
    np.testing.assert_array_equal(random.b_dec, untrained.b_dec)
    assert np.corrcoef(np.mean((untrained.w_dec @ axes) ** 2, axis=0), strength)[0, 1] < 0.5


def test_first_step_starts_from_the_untrained_dictionary(split, finished):
    untrained = states.untrained(SAE, states.sample(split))
    state = states.start(SAE, TRAIN, states.sample(split), states.make_mesh(TRAIN, N))
    for name in ("w_enc", "b_enc", "w_dec", "b_dec"):
        np.testing.assert_allclose(state.params[name], getattr(untrained, name), rtol=1e-6)


def test_a_fused_step_changes_rows_and_moments_in_place():
    """What it plans beside them are two gradients and a copy of a matrix, not one of all six."""
    sae = dataclasses.replace(SAE, d_model=128, n_latents=2048)
    settings = dataclasses.replace(TRAIN, batch_tokens=8, update="fused")
    mesh = states.make_mesh(settings, sae.n_latents)
    batch = Batch(jax.ShapeDtypeStruct((8, 128), np.float32))
    step = train_step.lower(sae, settings, 10, mesh, states.like(sae, settings, mesh), batch)
    planned = step.compile().memory_analysis()
    matrix = 4 * sae.n_latents * sae.d_model
    assert planned.alias_size_in_bytes > 6 * matrix
    assert planned.temp_size_in_bytes < 4 * matrix


def test_rate_rises_stays_and_falls_to_nothing():
    rate = schedule.learning_rate(dataclasses.replace(TRAIN, learning_rate=None), 2**14, 100)
    values = np.array([float(rate(step)) for step in range(101)])
    assert values[0] == pytest.approx(2e-4 / 5)
    np.testing.assert_allclose(values[4:70], 2e-4, rtol=1e-6)
    assert np.all(np.diff(values[70:]) < 0)
    assert values[100] == 0
    wide = schedule.learning_rate(dataclasses.replace(TRAIN, learning_rate=None), 2**16, 100)
    assert float(wide(50)) == pytest.approx(1e-4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_call_goes_on_bitwise(
    split, finished, tmp_path, number, caplog
):
    wanted, directory = finished
    stopping = Interfering(split, 13, lambda batch: os.kill(os.getpid(), number))
    with pytest.raises(KeyboardInterrupt):
        trainer.train(SAE, TRAIN, stopping, tmp_path)
    assert read_log(tmp_path)[-1]["step"] == 14
    sae = trainer.train(SAE, TRAIN, split, tmp_path)
    assert "goes on after step 14" in caplog.text
    assert read_log(tmp_path) == read_log(directory)
    for name in ("w_enc", "b_enc", "w_dec", "b_dec"):
        np.testing.assert_array_equal(getattr(sae, name), getattr(wanted, name))


def test_a_crash_goes_on_from_the_last_checkpoint_bitwise(split, finished, tmp_path, caplog):
    wanted, directory = finished

    def crash(batch):
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        trainer.train(SAE, TRAIN, Interfering(split, 27, crash), tmp_path)
    # The batch of step 28 is asked for before the numbers of step 27 are.
    assert read_log(tmp_path)[-1]["step"] == 26
    with (tmp_path / "training_log.jsonl").open("a") as log:
        log.write('{"step": 28, "lo')  # a line cut short
    sae = trainer.train(SAE, TRAIN, split, tmp_path)
    assert "goes on after step 20" in caplog.text
    assert read_log(tmp_path) == read_log(directory)
    np.testing.assert_array_equal(sae.w_enc, wanted.w_enc)


def test_a_finished_run_is_not_run_again(split, finished):
    sae, directory = finished
    before = read_log(directory)
    forbidden = Interfering(split, 40, lambda batch: pytest.fail("a step was made"))
    again = trainer.train(SAE, TRAIN, forbidden, directory)
    assert read_log(directory) == before
    np.testing.assert_array_equal(again.w_dec, sae.w_dec)


def test_another_run_in_the_same_folder_is_refused(split, finished):
    _, directory = finished
    other = dataclasses.replace(TRAIN, learning_rate=1e-3)
    with pytest.raises(UserError, match=r"train\.learning_rate"):
        trainer.train(SAE, other, split, directory)


def test_a_run_goes_on_with_other_settings_that_change_no_number(split, finished, tmp_path):
    wanted, directory = finished
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "40")
    other = dataclasses.replace(TRAIN, keep=1, checkpoint_every=7)
    sae = trainer.train(SAE, other, split, tmp_path)
    assert read_log(tmp_path) == read_log(directory)
    np.testing.assert_array_equal(sae.w_enc, wanted.w_enc)
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert "40" in left
    assert len(left) <= 2


def test_room_is_asked_for_beside_the_checkpoints_that_are_there(
    split, finished, tmp_path, monkeypatch
):
    """In all for the latest two, the best and the one that is being written."""
    size, free = trainer.checkpoint_bytes(SAE, TRAIN, states.make_mesh(TRAIN, N), {}), 0
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    there = sum(1 for _ in (finished[1] / "checkpoints").glob("[0-9]*"))
    assert there in (2, 3)
    for directory, lacking in ((tmp_path, 4), (finished[1], 4 - there)):
        free = lacking * size - 1
        with pytest.raises(UserError, match="MiB free"):
            trainer.train(SAE, TRAIN, split, directory)
    free += 1
    sae = trainer.train(SAE, TRAIN, split, finished[1])
    np.testing.assert_array_equal(sae.w_enc, finished[0].w_enc)


def test_a_loss_that_is_not_finite_stops_with_its_step(split, tmp_path):
    def poison(batch):
        batch.x[3] = np.nan

    settings = dataclasses.replace(TRAIN, log_every=5)
    said = r"at step 13 \(step 10 is saved\); all of its batch's stored activations are finite"
    with pytest.raises(UserError, match=said):
        trainer.train(SAE, settings, Interfering(split, 12, poison), tmp_path)
    assert read_log(tmp_path)[-1]["step"] == 10
    assert (tmp_path / "checkpoints" / "10").is_dir()


def test_an_activation_that_is_not_finite_is_named(tmp_path, monkeypatch):
    x = activations(2560)
    x[1234, 3] = np.nan
    broken = split_of(tmp_path / "store", x)
    with pytest.raises(UserError, match="first 2,560 activations"):
        trainer.train(SAE, TRAIN, broken, tmp_path / "run")
    monkeypatch.setattr(states, "SAMPLE_TOKENS", 1000)
    with pytest.raises(UserError, match=r"1 of its batch's stored .* is token 1234, row 0, pos"):
        trainer.train(SAE, TRAIN, broken, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning_rate": 0.0}, "learning rate is 0"),
        ({"learning_rate": float("nan")}, "learning rate is nan"),
        ({"ema_decay": 1.0}, "nothing is learnt"),
        ({"epochs": 0}, "epochs is 0"),
        ({"warmup_share": 1.5}, "warmup_share is 1.5"),
        ({"aux_coefficient": -1.0}, "aux_coefficient"),
        ({"bandwidth": 0.0}, "bandwidth is 0"),
        ({"update": "adam"}, "update 'adam'"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**31}, "seed is 2147483648"),
    ],
)
def test_impossible_settings_are_refused(change, said):
    with pytest.raises(UserError, match=said):
        dataclasses.replace(TRAIN, **change)


def test_meshes_and_splits_that_do_not_fit_are_refused(split, tmp_path):
    with pytest.raises(UserError, match="devices"):
        states.make_mesh(dataclasses.replace(TRAIN, data_shards=64), N)
    eight = jax.devices()[:1] * 8
    for shards, said in (
        ({"latent_shards": 3}, "does not divide the 8 devices"),
        ({"latent_shards": 8}, "does not divide the batch"),
        ({"data_shards": 8}, "does not divide the batch"),
    ):
        with pytest.raises(UserError, match=said):
            states.make_mesh(dataclasses.replace(TRAIN, batch_tokens=130, **shards), N + 1, eight)
    with pytest.raises(UserError, match="less than a batch"):
        trainer.train(SAE, dataclasses.replace(TRAIN, batch_tokens=4096), split, tmp_path)
    with pytest.raises(UserError, match="relu trains with dense"):
        relu = dataclasses.replace(SAE, architecture="relu")
        trainer.train(relu, dataclasses.replace(TRAIN, update="fused"), split, tmp_path)
    with pytest.raises(UserError, match=r"sae\.d_model=16"):
        trainer.train(dataclasses.replace(SAE, d_model=D + 1), TRAIN, split, tmp_path)
