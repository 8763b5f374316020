import numpy as np
import pytest
from synthetic_material import PLANTED, material

from emojax.emotion.concepts import CATEGORIES
from emojax.errors import UserError
from emojax.report import results as schema
from emojax.study import analysis
from emojax.study.settings import Study

STUDY = Study(
    model="none",
    sae="none",
    folds=3,
    outside_draws=3,
    permutations=20,
    bootstraps=10,
    null_permutations=3,
)


@pytest.fixture(scope="module")
def both():
    return {"en": material("en", 1), "zh": material("zh", 2)}


@pytest.fixture(scope="module")
def found(both):
    return analysis.select(STUDY, both)


@pytest.fixture(scope="module")
def null(both):
    return analysis.nulls(STUDY, both)


def test_planted_latents_are_found_and_few_others(found):
    for category in range(len(CATEGORIES)):
        planted = set(range(PLANTED * category, PLANTED * (category + 1)))
        for selection in found.selections.values():
            assert planted <= set(selection.lists[category].tolist())
            assert len(selection.lists[category]) <= PLANTED + 1
        assert planted <= set(found.shared[category].tolist())


def test_the_feature_table_names_the_words_that_light_a_latent(found, null, both):
    table = analysis.feature_table(found, null, both)
    schema._check(table, schema.Features, "features")
    anger = table["categories"][CATEGORIES.index("anger")]
    assert anger["emotion"] == "anger"
    assert set(anger["en"][0]["top_words"]) <= set(both["en"].concepts.of("anger"))
    for passing, match in zip(table["passing"], table["control_words"], strict=True):
        assert passing["language"] == match["language"]
        assert passing["trained"] >= PLANTED * len(CATEGORIES)
        # Neither a dictionary of noise nor words dealt at random have emotions.
        assert max(passing["untrained"], passing["shuffled"]) <= 3
        assert match["largest_length_gap"] < 1


def test_spaces_and_their_agreement_have_the_schema(found, null, both):
    spaces = analysis.spaces(STUDY, found, both)
    for space in spaces:
        schema._check(space, schema.Space, "space")
        assert space["n_latents"] >= PLANTED * len(CATEGORIES)
    across = analysis.across(STUDY, found, null, both)
    schema._check(across, schema.CrossLanguage, "cross")
    # The same latents were planted in both languages, so shuffling categories loses them all.
    assert across["jaccard_mean"] > 0.7 > across["jaccard_null"]
    assert across["jaccard_p"] == pytest.approx(1 / 21)
    assert [control["of"] for control in across["controls"]] == ["dense", "untrained"]
    for control in across["controls"]:  # nothing was planted there
        assert abs(control["rdm_spearman"]["value"]) < 0.3


def test_ratings_come_from_the_space_and_from_nothing_else(found, null, both):
    rated, scatters, differences = analysis.compare(STUDY, found, null, both)
    r = {(x["language"], x["target"], x["feature_set"]): x["r"] for x in rated}
    for language in ("en", "zh"):
        for target in ("valence", "arousal"):
            assert r[language, target, "space"] > 0.9
            for control in ("outside", "untrained", "dense"):
                assert abs(r[language, target, control]) < 0.35
    assert {x["feature_set"] for x in rated} == set(schema.FeatureSet.__args__)
    sizes = {x["feature_set"]: x["n_features"] for x in rated if x["language"] == "en"}
    assert sizes["outside"] == sizes["untrained"] == sizes["space"]
    for difference in differences:
        # Where two sets are one and the same, all three are zero but for rounding.
        assert difference["ci_low"] - 1e-9 <= difference["r"] <= difference["ci_high"] + 1e-9
    scatter = scatters[0]
    assert len(scatter["words"]) == len(scatter["human"]) == len(scatter["predicted"])


def test_few_latents_are_enough_where_they_hold_the_ratings(both):
    few = analysis.few_latents(STUDY, both)
    schema._check(few, list[schema.FewLatents], "few")
    r = {(x["language"], x["target"], x["dictionary"], x["n_latents"]): x["r"] for x in few}
    assert {key[3] for key in r} == {1, 10, 50}  # the dictionary has 160
    for language in ("en", "zh"):
        assert r[language, "valence", "trained", 1] > 0.9
        assert abs(r[language, "valence", "untrained", 50]) < 0.35


def test_one_language_shares_nothing_and_transfers_nothing(both, found, null):
    alone, own_null = {"en": both["en"]}, {"en": null["en"]}
    own = analysis.select(STUDY, alone)
    assert [list(x) for x in own.read("en")] == [list(x) for x in found.read("en")]
    assert not any(map(len, own.shared))
    assert analysis.across(STUDY, own, own_null, alone) is None
    assert [space["language"] for space in analysis.spaces(STUDY, own, alone)] == ["en"]
    table = analysis.feature_table(own, own_null, alone)
    schema._check(table, schema.Features, "features")
    assert list(table["words_per_category"]) == ["en"]
    assert [x["language"] for x in table["passing"]] == ["en"]
    assert not any(category["zh"] or category["shared"] for category in table["categories"])
    rated, scatters, differences = analysis.compare(STUDY, own, own_null, alone)
    for part in (rated, scatters, differences):
        assert {x["language"] for x in part} == {"en"}
    measured = {x["feature_set"] for x in rated}
    assert measured == set(schema.FeatureSet.__args__) - {"intersection", "transfer"}
    assert {x["other"] for x in differences} == measured - {"space", "length"}


def test_an_emotion_without_features_is_named(both):
    poor = dict(both)
    concept = both["en"].concept.trained.copy()
    rows = both["en"].concepts.labels == CATEGORIES.index("pride")
    concept[rows] = 0
    coded = analysis.dataclasses.replace(both["en"].concept, trained=concept)
    poor["en"] = analysis.dataclasses.replace(both["en"], concept=coded)
    with pytest.raises(UserError, match="pride"):
        analysis.select(STUDY, poor)


def test_overlap_of_unlike_lists_is_nothing_and_of_like_lists_all():
    ours = [np.array([i]) for i in range(26)]
    theirs = [np.array([i + 26]) for i in range(26)]
    jaccard, null = analysis._overlap(ours, theirs, 10, 0)
    assert jaccard == 0
    assert (null == 0).all()
    jaccard, null = analysis._overlap(ours, ours, 10, 0)
    assert jaccard == 1
    assert (null < 0.3).all()
