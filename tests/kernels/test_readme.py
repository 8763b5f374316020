import pathlib

from benchmarks import tables

ROOT = pathlib.Path(__file__).parents[2]


def test_the_readmes_figures_are_those_of_the_benchmarks(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = tables.README.read_text()
    written = text.partition(tables.BEGIN)[2].partition(tables.END)[0]
    assert written == "\n" + tables.tables()
    if not list(tables.RESULTS.glob("*-gpu.json")):
        assert "No benchmark was run on a GPU." in written
