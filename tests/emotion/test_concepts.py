import re
from collections import Counter

import numpy as np
import pytest

from emojax.emotion import concepts, controls, words
from emojax.errors import UserError


@pytest.mark.parametrize("language", concepts.LANGUAGES)
def test_shipped_sets_keep_the_rules_of_their_header(language):
    concept_set = concepts.load(language)
    assert concept_set.language == language
    assert len(concepts.CATEGORIES) == 26
    assert list(concepts.CATEGORIES) == sorted(concepts.CATEGORIES)
    assert len(set(concept_set.words)) == len(concept_set.words) == 26 * 20
    assert (np.bincount(concept_set.labels) == 20).all()
    assert controls.zipf(concept_set.words, language).min() >= 3.0 - 1e-9
    form = "[a-z]+" if language == "en" else "[\u4e00-\u9fff]{2,4}"
    assert all(re.fullmatch(form, word) for word in concept_set.words)
    assert concept_set.of("joy")[0] == {"en": "joy", "zh": "快乐"}[language]


def test_english_categories_hold_their_name_and_at_most_two_forms_of_a_root():
    concept_set = concepts.load("en")
    for category in concepts.CATEGORIES:
        own = concept_set.of(category)
        assert category in own
        root, count = Counter(words.stem(word) for word in own).most_common(1)[0]
        assert count <= 2, (category, root)


def test_chinese_words_are_simplified():
    # Every character of wordfreq's Chinese list is simplified.
    known = set().union(*controls.wordfreq.get_frequency_dict("zh", "small"))
    assert {c for word in concepts.load("zh").words for c in word} <= known


def test_shuffling_deals_the_same_words_to_other_categories():
    concept_set = concepts.load("en")
    dealt = concepts.shuffled(concept_set, 0)
    assert dealt.words == concept_set.words
    assert (np.bincount(dealt.labels) == np.bincount(concept_set.labels)).all()
    assert (dealt.labels == concept_set.labels).mean() < 0.15


def toml(**changes):
    table = {c: [f"{c}{i}" for i in range(15)] for c in concepts.CATEGORIES} | changes
    lines = [f"{c} = {list(w)!r}" for c, w in table.items() if w is not None]
    return 'language = "en"\n[words]\n' + "\n".join(lines)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (toml(joy=["glad"]), "'joy' has 1 words"),
        (toml(joy=None), r"categories \(joy\)"),
        (toml(boredom=["dull"] * 15), r"categories \(boredom\)"),
        (toml(joy=["glad"] * 15), "'glad' stands under 'joy' and under 'joy'"),
        (toml(joy=["fear3", *[f"w{i}" for i in range(15)]]), "under 'fear' and under 'joy'"),
        (toml(joy=[f" w{i}" for i in range(15)]), "blanks"),
        (toml(joy=list(range(15))), "not a word"),
        (toml().replace('"en"', '"fr"'), "in the language 'fr', not 'en'"),
        ("language = [", "not TOML"),
        ('language = "en"', "needs a key 'language' and a table 'words'"),
        ("language = 'en'\nwords = 3", "needs a key 'language' and a table 'words'"),
    ],
)
def test_bad_files_are_told_in_one_sentence(tmp_path, content, said):
    path = tmp_path / "concepts.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=said) as error:
        concepts.read(path, "en")
    assert str(path) in str(error.value)


def test_absent_files_languages_and_encodings(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        concepts.read(tmp_path / "none.toml", "en")
    with pytest.raises(UserError, match="'de'"):
        concepts.load("de")
    path = tmp_path / "gbk.toml"
    path.write_bytes("language = '中文'".encode("gbk"))
    with pytest.raises(UserError, match="UTF-8"):
        concepts.read(path, "en")


def test_a_file_that_keeps_the_rules_is_read(tmp_path):
    path = tmp_path / "concepts.toml"
    path.write_text(toml(), encoding="utf-8")
    assert concepts.read(path, "en").of("anger") == tuple(f"anger{i}" for i in range(15))
