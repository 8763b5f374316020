import signal
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from etils.epath import testing

from emojax import files

# A shell starts what runs in its background with Ctrl-C ignored, and the processes that tests start
# and interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> Iterator[files.Place]:
    """A `gs://` address whose objects lie in a folder; nothing can be appended to them."""

    def opened(real, path, mode):
        assert "a" not in mode, "an object cannot be appended to"
        return real(path, mode)

    monkeypatch.chdir(tmp_path)
    with testing.mock_epath(open=opened):
        yield files.place("gs://bucket")


@pytest.fixture(scope="module", autouse=True)
def within_the_limit_of_memory_maps() -> Iterator[None]:
    """Lets go of compiled programs before they reach what Linux allows one process.

    Each one keeps some memory maps for as long as JAX keeps it. At the limit (65,530 by default)
    the next mapping fails, and the process dies in a thread of the compiler without a word.
    """
    yield
    maps, limit = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
    if not limit.exists():
        return
    with maps.open() as lines:
        held = sum(1 for _ in lines)
    if held > int(limit.read_text()) // 2:
        jax.clear_caches()
