import pathlib
import re
import subprocess
import sys

EXAMPLE = pathlib.Path(__file__).parents[2] / "kernels" / "examples" / "train_sae.py"
# As anyone would run it, and then: what it got from this repository is emojax_kernels alone.
PROGRAM = f"""
import runpy, sys
runpy.run_path({str(EXAMPLE)!r}, run_name="__main__")
print(sorted({{name.partition(".")[0] for name in sys.modules if name.startswith("emojax")}}))
"""


def test_the_example_finds_the_dictionary_and_uses_no_emojax():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    *log, used = done.stdout.splitlines()
    assert used == "['emojax_kernels']"
    found = [int(share) for line in log for share in re.findall(r"found (\d+)%", line)]
    assert found[0] < 10 and found[-1] >= 95
