"""Every dry run of tpu/README.md works as it is printed."""

import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

README = Path("tpu/README.md").read_text()
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)]
RUNS = [
    command
    for block in BLOCKS
    for command in re.findall(
        r"^ *(python -m tpu\..*?--train \".*?\")$", block, re.DOTALL | re.MULTILINE
    )
]


def test_there_is_one_for_each_launcher_and_all_are_dry():
    modules = {shlex.split(command)[2] for command in RUNS}
    assert modules == {"tpu.queued_resources", "tpu.jobset", "tpu.xpk"}
    assert all("--dry_run" in command for command in RUNS)


@pytest.mark.parametrize("command", RUNS)
def test_a_dry_run_sends_what_is_printed_and_needs_no_account(command):
    typed = command.replace("python", shlex.quote(sys.executable), 1)
    done = subprocess.run(["bash", "-c", typed], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    words = shlex.split(command.replace("\\\n", " "))
    image = words[words.index("--image") + 1]
    assert image in done.stdout
    for word in shlex.split(words[-1]):
        assert word in done.stdout
