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


def test_libraries_that_log_through_absl_only_warn_unless_asked():
    program = """
import logging
from absl import logging as absl_logging
from emojax import errors
def main(argv):
    absl_logging.info("of a library")
    absl_logging.warning("a warning of a library")
    logging.info("of emojax")
errors.run(main)
"""
    said = []
    for asked in ([], ["--verbosity=0"]):
        command = [sys.executable, "-c", program, *asked]
        said.append(subprocess.run(command, capture_output=True, text=True).stderr)
    assert [line.split("] ")[1] for line in said[0].splitlines()] == [
        "a warning of a library",
        "of emojax",
    ]
    assert "of a library" in said[1].splitlines()[0]
