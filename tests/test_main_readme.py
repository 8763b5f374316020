"""What README.md says was measured is what a run's results say."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from emojax import files
from emojax.errors import UserError
from emojax.report import results, table
from emojax.steer.vectors import Source, SteeringVector, save

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.smoke
def test_the_tables_are_what_the_quickstart_printed():
    found = results.read(ROOT / "docs/quickstart/results.json")
    assert table.markdown(found) in README
    command = shlex.split(found["run"]["command"])
    assert command[:3] == ["python", "-m", "experiments.quickstart"]
    assert "--set" not in command, "the README shows the default study"


@pytest.mark.smoke
def test_every_linked_file_is_there():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.smoke
def test_the_first_two_commands_are_the_main_job_and_the_tests():
    first, second = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)[:2]
    assert first.strip().endswith("python -m experiments.quickstart")
    assert second.strip().endswith("python -m pytest")


@pytest.mark.smoke
def test_only_what_stands_between_two_marks_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- b -->\nafter\n")
    files.replace_between(page, "<!-- a -->", "<!-- b -->", "new")
    assert page.read_text() == "before\n<!-- a -->\nnew\n<!-- b -->\nafter\n"
    with pytest.raises(UserError, match="does not hold <!-- c --> once"):
        files.replace_between(page, "<!-- c -->", "<!-- b -->", "new")


@pytest.mark.model
def test_the_python_of_the_readme_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    """From top to bottom in one interpreter, in a folder with the vectors of a run."""
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(640).astype(np.float32)
    vector = SteeringVector("joy", direction, 9, "resid_post", Source("sae"))
    (tmp_path / "runs/quickstart").mkdir(parents=True)
    save([vector], tmp_path / "runs/quickstart/steering.safetensors")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 4
    names: dict = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"README.md, block {number}", "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) >= 2
    assert np.abs(names["patched"] - names["logits"]).max() > 1
