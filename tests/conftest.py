from collections.abc import Iterator

import pytest
from etils.epath import testing

from emojax import files


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> Iterator[files.Place]:
    """A `gs://` address whose objects lie in a folder; nothing can be appended to them."""

    def opened(real, path, mode):
        assert "a" not in mode, "an object cannot be appended to"
        return real(path, mode)

    monkeypatch.chdir(tmp_path)
    with testing.mock_epath(open=opened):
        yield files.place("gs://bucket")
