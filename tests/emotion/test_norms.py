import numpy as np
import pytest

from emojax.emotion import concepts, norms
from emojax.errors import UserError


def test_the_shipped_norm():
    glasgow = norms.glasgow()
    assert len(glasgow.words) == 4682
    assert glasgow.language == "en"
    assert "Scott" in glasgow.source
    assert "CC BY 4.0" in glasgow.source
    row = glasgow.words.index("abattoir")
    assert (glasgow.valence[row], glasgow.arousal[row]) == (2.7619, 4.3333)
    assert glasgow.ratings.shape == (4682, 2)
    assert np.corrcoef(glasgow.ratings.T)[0, 1] < 0.5


def write(tmp_path, content, name="norms.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(content.encode(encoding))
    return path


def read(path):
    return norms.read(path, "en", "word", "v", "a")


def test_commas_tabs_quotes_and_a_byte_order_mark(tmp_path):
    for content in (
        'id,word,v,a\n1,joy,8,6.5\n2,"grief",1,9\n',
        "\ufeffword\tv\ta\r\njoy\t8\t6.5\r\ngrief\t1\t9\r\n",
    ):
        read_back = read(write(tmp_path, content))
        assert read_back.words == ("joy", "grief")
        assert read_back.ratings.tolist() == [[8.0, 6.5], [1.0, 9.0]]
        assert read_back.name == "norms"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("word,v\njoy,8\n", r"no column 'a' \(it has 'word', 'v'\)"),
        ("", r"no column 'word', 'v', 'a' \(it has no header\)"),
        ("word,v,a\n", "no rated word"),
        ("word,v,a\njoy,8,6\njoy,7,6\n", "'joy' twice, at line 2 and at line 3"),
        ("word,v,a\njoy,nan,6\n", "'joy' at line 2 the valence 'nan'"),
        ("word,v,a\njoy,8,NA\n", "'joy' at line 2 the arousal 'NA'"),
        ("word,v,a\njoy,8,\n", "'joy' at line 2 the arousal ''"),
        ("word,v,a\njoy,8\n", "'joy' at line 2 the arousal None"),
        ("word,v,a\nsad,2,3\njoy,80,6\n", "'joy' at line 3 the valence '80'"),
        ("word,v,a\n,8,6\n", "no word at line 2"),
    ],
)
def test_bad_files_are_told_in_one_sentence(tmp_path, content, said):
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=said) as error:
        read(path)
    assert str(path) in str(error.value)


def test_wrong_encoding_and_no_file(tmp_path):
    path = write(tmp_path, "word,v,a\njoy,8,6\n快乐,8,6\n", encoding="gbk")
    with pytest.raises(UserError, match="not UTF-8 at line 3"):
        read(path)
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "none.csv")
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path)


def test_cvaw(tmp_path, monkeypatch):
    content = "Name: x\nDictionary:\n  快乐:\n    valence: 8\n    arousal: 6.1\n"
    path = write(tmp_path, content, "cvaw.yaml")
    asked = []
    monkeypatch.setattr(norms.sources, "wheel_file", lambda *args: asked.append(args) or path)
    cvaw = norms.cvaw(tmp_path)
    assert asked == [(*norms.CVAW_WHEEL, norms.CVAW_MEMBER, tmp_path)]
    assert (cvaw.words, cvaw.language) == (("快乐",), "zh")
    assert cvaw.ratings.tolist() == [[8.0, 6.1]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("Name: x\n", "not a CVAW file"),
        ("- 1\n", "not a CVAW file"),
        ("a: [", "not a CVAW file"),
        ("!!python/object/apply:os.getcwd []", "not a CVAW file"),
        ("Dictionary:\n  快乐:\n    valence: 8\n", "not a CVAW file"),
        ("Dictionary:\n  快乐: {valence: .nan, arousal: 3}\n", "word '快乐' the valence nan"),
    ],
)
def test_bad_cvaw_files(tmp_path, content, said):
    with pytest.raises(UserError, match=said):
        norms.read_cvaw(write(tmp_path, content))


def test_test_words_leave_out_concept_words_and_their_kin():
    concept_set = concepts.load("en")
    drawn = norms.for_test(norms.glasgow(), concept_set.words, 500, seed=0)
    assert len(drawn.words) == len(set(drawn.words)) == 500
    assert not set(drawn.words) & set(concept_set.words)
    assert not {"joyous", "angrily", "delighted", "horrible"} & set(drawn.words)
    glasgow = norms.glasgow()
    rows = [glasgow.words.index(word) for word in drawn.words]
    assert (glasgow.ratings[rows] == drawn.ratings).all()
    assert norms.for_test(glasgow, concept_set.words, 500, seed=0).words == drawn.words
    assert norms.for_test(glasgow, concept_set.words, 500, seed=1).words != drawn.words
    assert len(norms.for_test(glasgow, concept_set.words, 10**6, seed=0).words) > 4000
