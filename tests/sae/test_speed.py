import dataclasses

import jax
from sae_toys import TRAIN

from emojax.sae import speed
from emojax.sae.ahead import Stopwatch
from emojax.sae.coder import SaeConfig


class Clock:
    """Stands for `time.perf_counter`."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(speed.time, "perf_counter", lambda: self.now)


def test_mfu_is_known_work_in_a_known_time_of_a_known_machine(monkeypatch):
    """Encoder 2·8·32 FLOPs per token; of 4 rows, each 2·8: decode and three gradients."""
    monkeypatch.setattr(speed, "PEAKS", {jax.devices()[0].device_kind: 1e6})
    clock, waiting = Clock(monkeypatch), Stopwatch()
    config = SaeConfig(d_model=8, n_latents=32, k=4, model="toy", layer=0)
    settings = dataclasses.replace(TRAIN, data_shards=2, latent_shards=2)
    meter = speed.Meter(config, settings, waiting, 10)
    clock.now += 2.0
    waiting.seconds += 0.5
    work = 2 * 8 * 32 + 4 * 4 * 2 * 8
    rate = 5 * TRAIN.batch_tokens / 2.0
    wanted = {"tokens_per_second": rate, "input_wait": 0.25}
    wanted["sae_mfu"] = float(f"{rate * work / 4e6:.3g}")
    assert meter.read(15) == wanted
    clock.now += 1.0
    assert meter.read(16) == {
        "tokens_per_second": TRAIN.batch_tokens,
        "input_wait": 0.0,
        "sae_mfu": float(f"{TRAIN.batch_tokens * work / 4e6:.3g}"),
    }


def test_dense_codes_touch_all_rows():
    config = SaeConfig(d_model=8, n_latents=32, k=4, model="toy", layer=0, architecture="relu")
    assert speed.flops_per_token(config) == 5 * 2 * 8 * 32


def test_a_machine_without_a_data_sheet_is_measured(monkeypatch):
    monkeypatch.setattr(speed, "PEAKS", {})
    assert speed.peak_flops(TRAIN) > 1e8
