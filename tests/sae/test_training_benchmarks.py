"""The trainer's benchmarks run, on sizes so small that their figures mean nothing."""

import json
from pathlib import Path

import jax
import pytest
from absl import flags
from absl.testing import flagsaver
from emojax_kernels.shapes import Shape
from sae_toys import language_model

from benchmarks import figure, sae_tables, sae_training, scaling, timing
from emojax.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def options(tmp_path):
    """Sets flags of a benchmark, which writes into `tmp_path`."""
    with flagsaver.flagsaver():
        flags.FLAGS.mark_as_parsed()
        flags.FLAGS.output = str(tmp_path)
        yield flags.FLAGS


@pytest.mark.smoke
def test_the_figures_are_those_of_the_benchmarks(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = sae_tables.README.read_text(encoding="utf-8")
    written = page.partition(sae_tables.BEGIN)[2].partition(sae_tables.END)[0]
    assert written == "\n" + sae_tables.text() + "\n"


def test_each_axis_grows_eightfold_beside_its_roofline(options, tmp_path, monkeypatch, capsys):
    base = Shape(64, 128, 1024, 8)
    monkeypatch.setitem(scaling.BASE, "cpu", base)
    monkeypatch.setattr(scaling, "AXES", {axis: scaling.AXES[axis] for axis in ("n", "k")})
    every = scaling.sizes
    monkeypatch.setattr(scaling, "sizes", lambda *of: [every(*of)[i] for i in (0, 2, 3)])
    options.repeats = 5
    scaling.main([])
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "scaling-cpu.json").read_text())
    page = "\n".join(sae_tables.grown(report))
    for result in report["results"].values():
        sizes = [int(size) for size in result["figures"]]
        assert sizes[-1] == 8 * sizes[0]
        assert f"{sizes[0]:,} to {sizes[-1]:,}" in page
        first, *_, last = result["figures"].values()
        for (of, to), bar in zip(scaling.COMPARED.values(), result["bars"], strict=True):
            grew, floor = last[of] / first[of], last[to] / first[to]
            assert bar["measured"] == pytest.approx(floor / grew)
            assert f"{bar['bar']}: {bar['verdict']}" in printed
            assert f"{grew:.2f} x, roofline {floor:.2f} x: " in page
    shared = [report["results"]["n"]["figures"]["1024"], report["results"]["k"]["figures"]["8"]]
    assert shared[0] == shared[1], "the size that the axes share is measured once"
    assert "k: active latents a token" in (tmp_path / "scaling-cpu.svg").read_text()


def test_a_size_that_failed_is_said_and_the_rest_is_shown(tmp_path):
    ran = {"median_ms": 2.0, "roofline_ms": 1.0, "memory_mib": 3, "roofline_mib": 2}
    figures = {"16": ran | {"tokens_per_second": 4}, "128": {"failed": "no room", "ours": True}}
    bars = [scaling.bar("n", figures, what, *of) for what, of in scaling.COMPARED.items()]
    result = {"load_average": 1.0, "figures": figures, "bars": bars}
    report = timing.machine() | {
        "repeats": 5,
        "factor": 1.5,
        "base": {"n": 16},
        "results": {"n": result},
    }
    page = "\n".join(sae_tables.grown(report))
    assert "**an end failed**" in page and "4 to failed" in page
    figure.draw_scaling(report, {"n": "latents"}, tmp_path / "scaling.svg")
    assert (tmp_path / "scaling.svg").stat().st_size > 0


@pytest.mark.smoke
def test_the_sizes_of_a_gpu_are_refused_without_one(options):
    options.sizes = "gpu"
    with pytest.raises(UserError, match="JAX finds no GPU; leave --sizes out"):
        scaling.main([])
    options.sizes = "cpu"
    assert scaling.chosen() == scaling.BASE["cpu"]


@pytest.mark.smoke
def test_sizes_and_types_are_those_of_the_platform_but_for_what_is_asked(options, monkeypatch):
    assert sae_training.sizes() == sae_training.SIZES["cpu"]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    own = sae_training.sizes()
    assert own == sae_training.SIZES["gpu"]
    assert (own.streamed, own.dtype) == (True, "bfloat16")
    options.tokens, options.streamed = 4096, False
    assert sae_training.sizes() == own._replace(tokens=4096, streamed=False)


@pytest.mark.parametrize("streamed", [False, True])
def test_what_a_step_waits_for_is_measured(streamed, options, monkeypatch, capsys):
    """Stored and streamed activations of a toy model; the other side is not needed for it."""
    options.tokens, options.step_tokens, options.streamed = 4096, 1024, streamed
    options.n_latents, options.k = 128, 4
    lm = language_model()
    monkeypatch.setattr(sae_training, "ROW_TOKENS", 32)
    monkeypatch.setattr(sae_training, "LOOPS", 1)
    monkeypatch.setattr(sae_training, "BUFFER", 2048)
    monkeypatch.setattr(sae_training.sources, "load", lambda *_, **__: lm)
    captured = sae_training.ours("toy")()
    assert captured >= 4096
    found = sae_training.judged(sae_training.waiting("toy"))
    assert all(0 <= found[name] < 1 for name in found.keys() & {"standing", "share"})
    assert ("share" in found) == (not streamed)
    assert found["met"] == (max(found["standing"], found.get("share", 0.0)) < 0.02)
    assert json.loads(json.dumps(found)) == found
    printed = capsys.readouterr().out
    assert ("met" if found["met"] else "MISSED") in printed
    assert "on a GPU: not run here" in printed
    assert ("**missed**" in sae_tables.waits(found)) == (not found["met"])
