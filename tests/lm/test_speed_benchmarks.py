"""The benchmarks beside PyTorch run, on a model so small that their figures mean nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import tiny_gguf

from benchmarks import lm_tables, share
from emojax.lm.config import DecoderConfig

ROOT = Path(__file__).parents[2]


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("capture", ["--dtype=bfloat16", "--rows=3", "--tokens=12", "--nomemory"]),
        ("generate", ["--memory"]),
    ],
)
def test_a_benchmark_runs_and_writes_what_became_of_its_bars(name, how, tmp_path):
    pytest.importorskip("torch")
    tiny_gguf.write(tmp_path / "tiny.gguf")
    command = [sys.executable, "-m", f"benchmarks.{name}", f"--lms={tmp_path / 'tiny.gguf'}"]
    command += ["--turns=1", f"--output={tmp_path}", *how]
    environment = os.environ | {"EMOJAX_CACHE": str(tmp_path)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / f"{name}-cpu.json").read_text())
    for result in report["results"].values():
        assert result["tokens"] > 0
        for figure in result["figures"].values():
            assert figure["median_seconds"] > 0
            assert ("peak_gib" in figure) == (name == "generate")
            assert ("share_of_matmul_rate" in figure) == (name == "capture")
        assert ("share_bar" in result) == (name == "capture")
        if name == "capture":
            assert result["share_bar"]["met"] is None
            assert "of the matmul rate for a model of 8B on a GPU: not run here" in done.stdout
        for bar in result["bars"]:
            assert bar["met"] == (bar["ratio"] >= bar["asked"])
            assert f"{bar['ratio']:.2f}, {'met' if bar['met'] else 'MISSED'}" in done.stdout


LLAMA_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("backend", "layers", "reached", "met", "line"),
    [
        ("gpu", 32, 0.52, True, "* x, full: 50% of the card's matmul rate: **52.0%, met**"),
        ("gpu", 32, 0.49, False, "* x, full: 50% of the card's matmul rate: **49.0%, missed**"),
        ("gpu", 4, 0.9, None, "* 50% of a GPU's matmul rate for a model of 8B: **not run**"),
        ("cpu", 32, 0.9, None, "* 50% of a GPU's matmul rate for a model of 8B: **not run**"),
    ],
)
def test_the_share_of_the_matmul_rate_has_a_bar(backend, layers, reached, met, line, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    config = DecoderConfig.from_hf(LLAMA_8B | {"num_hidden_layers": layers})
    found = share.judge(reached, config)
    assert found["met"] is met
    results = {"x, full": {"bars": [], "share_bar": found}}
    assert list(lm_tables.bars({"results": results})) == [line]
    # What was measured before there was such a bar.
    assert list(lm_tables.bars({"results": {"x, full": {"bars": []}}})) == []
