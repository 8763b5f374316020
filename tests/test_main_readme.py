"""What README.md says was measured is what a run's results say."""

import re
import shlex
from pathlib import Path

import pytest

from emojax.report import results, table

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tables_are_what_the_quickstart_printed():
    found = results.read(ROOT / "docs/quickstart/results.json")
    assert table.markdown(found) in README
    command = shlex.split(found["run"]["command"])
    assert command[:3] == ["python", "-m", "experiments.quickstart"]
    assert "--set" not in command, "the README shows the default study"


def test_every_linked_file_is_there():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_first_two_commands_are_the_main_job_and_the_tests():
    first, second = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)[:2]
    assert first.strip().endswith("python -m experiments.quickstart")
    assert second.strip().endswith("python -m pytest")
