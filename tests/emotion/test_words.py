import numpy as np
import pytest

from emojax.emotion import words


@pytest.mark.parametrize(
    "family",
    [
        "happy happiness happily happier",
        "hope hopeful hopeless hopelessness hoping hopes",
        "admire admiration admired",
        "sad sadness sadden saddest",
        "worry worried worries",
        "love loving lover lovely",
        "run running runner",
    ],
)
def test_forms_of_one_root_share_a_stem(family):
    assert len({words.stem(word) for word in family.split()}) == 1


def test_unrelated_words_do_not():
    unrelated = ["table", "music", "anger", "paper", "river", "doctor", "window", "yellow"]
    assert len({words.stem(word) for word in unrelated}) == len(unrelated)
    assert words.stem("sad") == "sad"
    assert words.stem("ring") == "ring"


def test_chinese_words_go_by_their_commonest_character():
    group = words.groups(["愤怒", "愤慨", "愤恨", "怒火", "桌子"], "zh")
    assert group[0] == group[1] == group[2]
    assert len(set(group)) == 3


@pytest.mark.parametrize("language", ["en", "zh"])
def test_kin_never_straddle_folds_and_folds_are_even(language):
    rng = np.random.default_rng(0)
    letters = list("abcdefghij") if language == "en" else list("愤怒悲伤喜爱桌椅水火")
    some = sorted({"".join(rng.choice(letters, 2 + language.count("n"))) for _ in range(400)})
    if language == "en":
        some += [word + "ness" for word in some]
    fold = words.folds(some, language, 5, seed=0)
    group = words.groups(some, language)
    for index in np.unique(group):
        assert len(set(fold[group == index])) == 1
    if language == "en":
        assert np.ptp(np.bincount(fold, minlength=5)) <= 4
    assert set(fold) == set(range(5))
    assert (fold == words.folds(some, language, 5, seed=0)).all()
    assert (fold != words.folds(some, language, 5, seed=1)).any()


def test_kin_of_concept_words():
    assert words.kin(["angrily", "hopes", "table"], ["angry", "hope"], "en").tolist() == [
        True,
        True,
        False,
    ]
    # 开心 is part of 开心果, and 不 stands alone; sharing one character is not kinship here.
    found = words.kin(["开心果", "心", "高兴", "开门", "开心"], ["开心", "不高兴"], "zh")
    assert found.tolist() == [True, False, True, False, True]
