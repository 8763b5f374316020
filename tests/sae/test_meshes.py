"""Every mesh, and several processes, give the loss curve of one device."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sae_toys import two_processes

PROGRAM = str(Path(__file__).parent / "sharded_runs.py")
ALL = ("2x1", "1x2", "4x1", "2x2", "1x4", "8x1", "4x2", "2x4", "1x8")
# TopK everywhere. What needs the whole batch's codes, and the number of each latent, on fewer
# meshes; all else where tokens and latents are both split.
MESHES = {
    "topk": ALL,
    "matryoshka": ("8x1", "2x4", "1x8"),
    "batch_topk": ("2x2",),
    "jumprelu": ("2x2",),
    "relu": ("2x2",),
    "gated": ("2x2",),
    "optax": ("2x2",),
    "transcoder": ("2x2",),
    "streamed": ("2x2",),
}
STEPS = 50


def curves_of(done: str) -> dict[str, np.ndarray]:
    return {name: np.array(c) for name, c in json.loads(done.split("CURVES")[1]).items()}


@pytest.fixture(scope="module")
def curves(tmp_path_factory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("meshes")
    runs = [f"{case}={mesh}" for case, meshes in MESHES.items() for mesh in ("1x1", *meshes)]
    command = [sys.executable, PROGRAM, str(folder), ",".join(runs), str(STEPS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return curves_of(done.stdout)


@pytest.mark.parametrize("case", MESHES)
def test_every_mesh_gives_the_curve_of_one_device(curves, case):
    one = curves[f"{case}=1x1"]
    assert one.shape == (STEPS, 4)
    assert one[-1, 0] < 0.8 * one[0, 0]
    if case in ("topk", "matryoshka", "optax", "transcoder", "streamed"):
        assert one[:, 3].max() > 0  # dead latents, so that their loss is compared too
    for mesh in MESHES[case]:
        curve = curves[f"{case}={mesh}"]
        np.testing.assert_allclose(curve[:, 0], one[:, 0], rtol=1e-5, err_msg=mesh)
        np.testing.assert_allclose(curve, one, rtol=1e-4, atol=1e-6, err_msg=mesh)


def test_two_processes_give_the_curve_of_one(curves, tmp_path):
    runs = "topk=2x2,topk=1x4"  # tokens, then latents between processes
    outputs = two_processes(
        lambda port, i: [PROGRAM, str(tmp_path), runs, str(STEPS), port, i, "2"]
    )
    one = curves["topk=1x1"]
    found = curves_of(outputs[0])
    assert len(found) == 2
    for curve in found.values():
        np.testing.assert_allclose(curve[:, 0], one[:, 0], rtol=1e-5)
