import pathlib
import re

import jax.numpy as jnp
import numpy as np
from emojax_kernels import sparse_decode, topk_encode
from emojax_kernels.shapes import Shape
from kernel_problems import dictionary

from benchmarks import tables

ROOT = pathlib.Path(__file__).parents[2]


def test_the_readmes_figures_are_those_of_the_benchmarks(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = tables.README.read_text()
    written = text.partition(tables.BEGIN)[2].partition(tables.END)[0]
    assert written == "\n" + tables.tables() + "\n"
    if not list(tables.RESULTS.glob("*-gpu.json")):
        assert "No benchmark was run on a GPU." in written


def test_the_readmes_programs_run_as_they_stand():
    """With the names of its section on layout; what they compute is compared and trained."""
    text = (ROOT / "kernels/README.md").read_text()
    programs = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(programs) == 2
    shape = Shape(24, 16, 200, 4)
    x, w_enc, b_enc, w_dec, b_dec = dictionary(shape)
    names = {"x": x, "w_enc": w_enc, "b_enc": b_enc, "w_dec": w_dec, "b_dec": b_dec, "k": shape.k}
    for program in programs:
        exec(compile(program, "kernels/README.md", "exec"), names)
    code = topk_encode(x, w_enc, b_enc, shape.k, implementation="reference")
    want = sparse_decode(*code, w_dec, b_dec, implementation="reference")
    np.testing.assert_allclose(names["x_hat"], want, atol=1e-5)
    rows, losses = names["rows"], []
    for _ in range(30):
        rows, b_dec, loss = names["step"](rows, b_dec, x)
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]
    np.testing.assert_allclose(jnp.linalg.norm(rows.w_dec, axis=1), 1, rtol=1e-5)
