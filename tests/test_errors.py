import subprocess
import sys

import pytest

pytestmark = pytest.mark.smoke

PROGRAM = """
from emojax import errors
def main(argv):
    raise {error}
errors.run(main)
"""


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        ("errors.UserError('norms.csv has no column VAL; add it.')", 1, "error: norms.csv has no"),
        ("KeyboardInterrupt", 130, "interrupted: run the same command again"),
    ],
)
def test_one_line_and_a_status(error: str, status: int, said: str):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(error=error)], capture_output=True, text=True
    )
    assert done.returncode == status
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


def test_a_stray_argument_is_refused():
    program = "from emojax import errors\nerrors.run(lambda argv: None)"
    done = subprocess.run([sys.executable, "-c", program, "stray"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "Unknown arguments: stray" in done.stdout + done.stderr
