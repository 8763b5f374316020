"""The benchmarks beside PyTorch run, on a model so small that their figures mean nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_gguf

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
    command = [sys.executable, "-m", f"benchmarks.{name}", f"--models={tmp_path / 'tiny.gguf'}"]
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
        for bar in result["bars"]:
            assert bar["met"] == (bar["ratio"] >= bar["asked"])
            assert f"{bar['ratio']:.2f}, {'met' if bar['met'] else 'MISSED'}" in done.stdout
