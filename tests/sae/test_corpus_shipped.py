"""The shipped dictionary's text is drawn again, from the files that its record names.

They are too large to ship: the test runs where $EMOJAX_CORPORA names a folder that has them.
"""

import dataclasses
import json
import os
from importlib import resources
from pathlib import Path

import pytest

from emojax.lm import sources
from emojax.sae import corpus
from emojax.sae.corpus import DataConfig


@pytest.mark.model
def test_the_shipped_rows_are_drawn_bit_for_bit():
    folder = os.environ.get("EMOJAX_CORPORA")
    if not folder:
        pytest.skip("EMOJAX_CORPORA names no folder with the corpora of the shipped dictionary")
    text = resources.files("emojax").joinpath("data/sae/gemma3_270m/config.json").read_text()
    record = json.loads(text)
    corpora = []
    for entry in record["corpora"]:
        (path,) = Path(folder).rglob(entry["file"])
        corpora.append(corpus.read(entry["language"], path))
        assert corpora[-1].sha256 == entry["sha256"]
    fields = {field.name for field in dataclasses.fields(DataConfig)} & set(record["data"])
    data = {name: record["data"][name] for name in fields}
    config = DataConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})
    rows = corpus.draw(sources.load("gemma-3-270m"), corpora, config)
    assert {split: part.digest for split, part in rows.items()} == record["text"]
