"""What a benchmark says of a contender that fails, and that it then ends badly."""

import math

import jax
import jax.numpy as jnp
import pytest

from benchmarks import figure, tables, timing, train_step
from benchmarks.timing import Contender


def refuses(**options):
    """A contender that raises."""

    def prepare():
        raise RuntimeError("no room |\n for it")

    return Contender(prepare, jax.block_until_ready, **options)


@pytest.fixture(scope="module")
def figures():
    return timing.timed(
        {
            "dense": timing.jitted(jnp.sin, jnp.ones(8)),
            "xla": refuses(),
            "sparsify": refuses(ours=False),
            "sae-lens": "not installed: pip install it",
        },
        repeats=5,
    )


def test_one_that_fails_costs_its_own_row_and_says_why(figures):
    assert figures["dense"]["median_ms"] >= figures["dense"]["queued_ms"] > 0
    assert figures["dense"]["memory_mib"] == 0
    reason = "RuntimeError: no room | for it"
    assert figures["xla"] == {"failed": reason, "ours": True}
    lines = list(timing.rows(figures, 8, "dense"))
    assert lines[1].split() == ["xla", *f"FAILED: {reason}".split()]
    assert lines[3].split()[:3] == ["sae-lens", "not", "installed:"]


def test_a_bar_says_what_failed_and_what_was_not_run(figures, capsys):
    failed = timing.ratio(figures, "xla", "dense")
    assert failed == "FAILED: xla: RuntimeError: no room | for it"
    assert timing.bar("fast", failed, 2.0, here=True)["verdict"] == failed
    assert f"fast: {failed}" in capsys.readouterr().out
    absent = timing.ratio(figures, "dense", "sae-lens")
    assert str(absent).startswith("not run here: sae-lens: not installed")
    assert timing.ratio(figures, "dense", "triton") == "not run here: triton: not asked for"
    assert timing.least([1.0, failed, 0.5]) == failed and timing.least([1.0, 0.5]) == 0.5
    assert timing.bar("fast", 3.0, 2.0, here=False)["verdict"] == "not run here"
    met = timing.bar("fast", 3.0, 2.0, here=True)
    assert (met["verdict"], met["measured"]) == ("3.00: met", 3.0)
    assert timing.bar("fast", math.nan, 2.0, here=True)["verdict"] == "nan: MISSED"


def test_the_program_ends_with_an_error_if_one_of_ours_failed(figures):
    with pytest.raises(SystemExit, match=r"error: 1 of our own failed \(cpu, encode, xla\)"):
        timing.end({"cpu": {"encode": figures, "load_average": 1.0}})
    timing.end({"cpu": {"encode": {name: figures[name] for name in ("dense", "sparsify")}}})


def test_a_roofline_that_failed_is_said_and_the_rest_is_shown(figures, monkeypatch, tmp_path):
    monkeypatch.setattr(train_step, "jitted", lambda *_, **__: refuses())
    floor = train_step.roofline((jnp.ones((2, 4)), jnp.ones((8, 4))), repeats=5)  # pyrefly: ignore
    assert floor == {"failed": "gemm: RuntimeError: no room | for it", "ours": True}
    assert train_step.said(floor) == f"FAILED: {floor['failed']}"
    result = {"shape": {"tokens": 8}, "load_average": 0.5, "roofline": floor, "steps": figures}
    report = timing.machine() | {"repeats": 5, "bars": [], "results": {"S, power law": result}}
    page = "\n".join(tables.steps(report))
    assert r"| xla | **FAILED**: RuntimeError: no room \| for it |" in page
    assert "| roofline | **FAILED**: gemm: RuntimeError" in page
    assert "| sae-lens | not here: not installed |" in page
    assert "wall clock of a call until its result is there" in page
    figure.draw(report, tmp_path / "steps.svg")
    assert (tmp_path / "steps.svg").stat().st_size > 0
    monkeypatch.setattr(timing, "on_h100", lambda: True)
    result["steps"] = {"triton fused": {"median_ms": 2.0, "memory_mib": 17 * 1024}}
    bars = {bar["bar"]: bar["verdict"] for bar in train_step.bars({"L, power law": result})}
    assert bars["H100, L: step at least 0.85 of the roofline"].startswith("FAILED: roofline: gemm")
    assert bars["H100, L: peak memory at most 17 GiB (17 over GiB used)"] == "1.00: met"
    assert bars["H100, S: step at least 8 x plain XLA"].startswith("not run here: triton fused")


def test_off_the_cpu_the_clock_is_said_to_be_that_of_calls_in_a_row():
    assert timing.clock("gpu").startswith("wall clock of 10 calls queued in a row")
