"""Every mesh, and several processes, give the loss curve of one device."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sae_toys import two_processes

PROGRAM = str(Path(__file__).parent / "sharded_runs.py")
MESHES = ["1x1", "2x1", "1x2", "4x1", "2x2", "1x4", "8x1", "4x2", "2x4", "1x8"]
STEPS = 50


def curves_of(done: str) -> dict[str, np.ndarray]:
    return {name: np.array(c) for name, c in json.loads(done.split("CURVES")[1]).items()}


@pytest.fixture(scope="module")
def curves(tmp_path_factory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("meshes")
    command = [sys.executable, PROGRAM, str(folder), ",".join(MESHES), str(STEPS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return curves_of(done.stdout)


@pytest.mark.parametrize("architecture", ["topk", "matryoshka"])
def test_every_mesh_gives_the_curve_of_one_device(curves, architecture):
    one = curves[f"{architecture} 1x1"]
    assert one.shape == (STEPS, 4)
    assert one[:, 3].max() > 0  # dead latents, so that their loss is compared too
    assert one[-1, 0] < 0.8 * one[0, 0]
    meshes = [name for name in curves if name.startswith(f"{architecture} ")]
    assert len(meshes) == {"topk": len(MESHES), "matryoshka": 4}[architecture]
    for mesh in meshes:
        curve = curves[mesh]
        np.testing.assert_allclose(curve[:, 0], one[:, 0], rtol=1e-5, err_msg=mesh)
        np.testing.assert_allclose(curve, one, rtol=1e-4, atol=1e-6, err_msg=mesh)


def test_two_processes_give_the_curve_of_one(tmp_path):
    alone = subprocess.run(
        [sys.executable, PROGRAM, str(tmp_path / "alone"), "1x1", "20"],
        capture_output=True,
        text=True,
        check=False,
    )
    outputs = two_processes(lambda port, i: [PROGRAM, str(tmp_path), "2x2,1x4", "20", port, i, "2"])
    assert alone.returncode == 0, alone.stderr[-2000:]
    one = curves_of(alone.stdout)["topk 1x1"]
    for curve in curves_of(outputs[0]).values():  # tokens, then latents between processes
        np.testing.assert_allclose(curve[:, 0], one[:, 0], rtol=1e-5)
