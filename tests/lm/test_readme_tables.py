"""The README's tables of the language model's speed are what its benchmarks wrote."""

from pathlib import Path

import pytest

from benchmarks import lm_tables

pytestmark = pytest.mark.smoke


def test_the_figures_are_those_of_the_benchmarks(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    text = lm_tables.README.read_text(encoding="utf-8")
    written = text.partition(lm_tables.BEGIN)[2].partition(lm_tables.END)[0]
    assert written == "\n" + lm_tables.text() + "\n"
