import json

import pytest
import synthetic_results

from emojax.errors import UserError
from emojax.report import results


@pytest.fixture
def found():
    return synthetic_results.make()


def test_results_come_back_from_their_file(tmp_path, found):
    results.write(found, tmp_path / "results.json")
    assert results.read(tmp_path / "results.json") == found


def test_every_number_is_plain_json(found):
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda r: r["model"].pop("layer"), r"results\.model\.layer is missing"),
        (lambda r: r["ratings"][3].update(rr=1), r"results\.ratings\[3\]\.rr is not known"),
        (lambda r: r["ratings"][0].update(r=None), r"results\.ratings\[0\]\.r is None"),
        (lambda r: r["ratings"][0].update(r=True), r"results\.ratings\[0\]\.r is True"),
        (lambda r: r["ratings"][0].update(r=float("nan")), r"ratings\[0\]\.r is nan"),
        (lambda r: r["ratings"][0].update(r2=float("inf")), r"ratings\[0\]\.r2 is inf"),
        (lambda r: r["ratings"][0].update(language="fr"), r"language is 'fr'"),
        (lambda r: r["spaces"][1]["valence"].append("5"), r"spaces\[1\]\.valence\[26\] is '5'"),
        (lambda r: r["run"]["seconds"].update(load="1"), r"run\.seconds\.load is '1'"),
        (lambda r: r.update(steering=[]), r"results\.steering is \[\]"),
        (lambda r: r.update(bars={}), r"results\.bars is \{\}"),
        (lambda r: r.update(schema=0), "schema 0"),
    ],
)
def test_what_does_not_fit_is_named(found, damage, problem):
    damage(found)
    with pytest.raises(UserError, match=problem):
        results.check(found)


def test_what_was_not_measured_may_be_none(found):
    found["steering"] = found["cross_language"] = found["run"]["peak_memory_gib"] = None
    found["spaces"][0]["valence"][0] = None
    results.check(found)


def test_bad_results_leave_the_earlier_file(tmp_path, found):
    path = tmp_path / "results.json"
    results.write(found, path)
    before = path.read_bytes()
    found["sae"]["trained"]["fvu"] = float("nan")
    with pytest.raises(UserError, match=r"sae\.trained\.fvu is nan"):
        results.write(found, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("content", [None, b"{", b"\xff", b"[]"])
def test_a_file_that_holds_no_results_is_refused(tmp_path, content):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"run the experiment again|make the results fit"):
        results.read(path)


@pytest.mark.parametrize(
    ("relation", "value", "met"),
    [("≥", 0.5, True), ("≥", 0.49, False), ("≤", 0.5, True), ("≤", 0.51, False), ("≥", None, None)],
)
def test_a_bar_is_met_when_its_relation_holds(relation, value, met):
    assert results.bar("X", "claim", relation, 0.5, value)["met"] is met
