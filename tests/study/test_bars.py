import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "report"))

import pytest
import synthetic_results

from emojax.report import names, table
from emojax.study import bars

pytestmark = pytest.mark.smoke


@pytest.fixture
def results():
    return synthetic_results.make()


def test_a_bar_is_met_missed_or_not_measured(results):
    results["sae"]["trained"]["fvu"] = 0.10
    results["sae"]["trained"]["dead_share"] = 0.06
    results["sae"]["trained"]["loss_recovered"] = None
    verdicts = {bar["name"]: bar["met"] for bar in bars.judge(results)}
    assert verdicts["S1"] is True
    assert verdicts["S2"] is False
    assert verdicts["S3"] is None


def test_every_claim_follows_its_number(results):
    for rating in results["ratings"]:
        rating["r"] = 0.0
    low = {bar["name"]: bar["met"] for bar in bars.judge(results)}
    for rating in results["ratings"]:
        rating["r"] = {"space": 0.9, "intersection": 0.88}.get(rating["feature_set"], 0.1)
        if rating["target"] == "arousal":
            rating["r"] -= 0.2
    high = {bar["name"]: bar["met"] for bar in bars.judge(results)}
    for name in ("B en valence", "B zh arousal", "C en", "C' zh"):
        assert low[name] is False
        assert high[name] is True
    assert high["D en"] is True
    assert high["E zh"] is True


def test_steering_is_judged_on_its_gain_over_unsteered_text_and_its_ratio(results):
    def verdicts(gain, ratio):
        for row in results["steering"]["summary"]:
            if row["method"] == "sae":
                row["emotion_word_gain"]["value"] = gain
                row["perplexity_ratio"]["value"] = ratio
        return {bar["name"]: bar["met"] for bar in bars.judge(results)}

    assert [verdicts(0.10, 2.5)[name] for name in ("T1 en", "T2 zh")] == [True, True]
    assert [verdicts(0.09, 2.6)[name] for name in ("T1 zh", "T2 en")] == [False, False]


def test_without_steering_its_bars_are_not_measured(results):
    results["steering"] = None
    verdicts = {bar["name"]: bar["met"] for bar in bars.judge(results)}
    assert verdicts["T1 en"] is None
    assert verdicts["T2 zh"] is None


def test_the_table_shows_the_gain_over_unsteered_text(results):
    lines = table.markdown(results).splitlines()
    header = next(x for x in lines if x.startswith("| text |"))
    column = header.split(" | ").index("more than unsteered")
    for row in results["steering"]["summary"]:
        gain = row["emotion_word_gain"]
        title = f"{names.LANGUAGES[row['language']]}, {names.METHODS[row['method']]}"
        (line,) = (x for x in lines if x.startswith(f"| {title} ("))
        cell = line.split(" | ")[column]
        assert cell.startswith(f"{gain['value']:.1%}" if gain else "–")


def test_the_table_shows_a_missed_bar_as_missed(results):
    results["sae"]["trained"]["fvu"] = 0.5
    results["bars"] = bars.judge(results)
    line = next(x for x in table.markdown(results).splitlines() if x.startswith("| S1"))
    assert "**missed**" in line
    assert "0.500" in line


def test_what_was_measured_on_other_weights_is_not_measured(results):
    results["sae"]["measured_on_these_weights"] = False
    found = {bar["name"]: bar["met"] for bar in bars.judge(results)}
    assert [found[name] for name in ("S1", "S2", "S3")] == [None] * 3
