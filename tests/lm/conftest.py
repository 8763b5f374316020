import pytest
from parity_table import write


def pytest_addoption(parser):
    parser.addoption(
        "--write-parity", action="store_true", help="write what parity tests measure to docs"
    )


@pytest.fixture(scope="session")
def parity(request):
    """What the parity tests measure: row -> column -> error; written down if asked."""
    measured = {}
    yield measured
    if request.config.getoption("--write-parity", default=False):
        write(measured)
