import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_study
from tiny_study import STUDY

from emojax.emotion import concepts, norms
from emojax.emotion import words as kinship
from emojax.emotion.concepts import CATEGORIES, ConceptSet
from emojax.emotion.controls import Controls
from emojax.errors import UserError
from emojax.sae import coder
from emojax.study import run
from emojax.study.settings import NormsFile, Study


@pytest.fixture(autouse=True)
def few_controls(monkeypatch: pytest.MonkeyPatch):
    """Two control words for all, since choosing real ones takes seconds."""

    def choose(chosen: ConceptSet, seed: int) -> Controls:
        words = ("table", "chair") if chosen.language == "en" else ("桌子", "椅子")
        return Controls(chosen.language, words, tuple(np.array([0, 1]) for _ in CATEGORIES))

    monkeypatch.setattr(run.controls, "choose", choose)
    run.lists.cache_clear()
    yield
    run.lists.cache_clear()


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch):
    """Any attempt to load the language model fails the test."""
    monkeypatch.setattr(run.artefact, "load", lambda name: tiny_study.dictionary())
    monkeypatch.setattr(run.sources, "load", lambda model: pytest.fail("the model was loaded"))


def no_wheel(cache: Path | None = None) -> norms.Norms:
    raise UserError("cntext==2.2.1 could not be fetched")


def write_norms(path: Path, words: tuple[str, ...], header: str = "word,valence,arousal") -> str:
    rows = [f"{word},{1 + i % 8},{1 + i % 7}" for i, word in enumerate(words)]
    path.write_text("\n".join([header, *rows]), encoding="utf-8")
    return str(path)


def own_norms(path: str, **columns: str) -> Study:
    return dataclasses.replace(STUDY, norms_en=NormsFile(path, **columns))


BAD: dict[str, tuple[Callable[[Path], Study], str]] = {
    "no norms file": (lambda path: own_norms(str(path / "none.csv")), "none.csv cannot be read"),
    "no such column": (
        lambda path: own_norms(write_norms(path / "n.csv", ("a",), "Word,valence,arousal")),
        "has no column 'word'",
    ),
    "too few words": (
        lambda path: own_norms(write_norms(path / "n.csv", ("table", "chair", "lamp"))),
        "too few for 5 folds",
    ),
    "too few emotions": (
        lambda path: own_norms(
            write_norms(path / "n.csv", tuple(f"{a}{b}qx" for a in "abcdefgh" for b in "abcdefgh"))
        ),
        "rates concept words of only 0 of 26 emotions",
    ),
    "no wheel": (
        lambda path: dataclasses.replace(STUDY, languages=("en", "zh")),
        "could not be fetched",
    ),
    "no judge": (
        lambda path: dataclasses.replace(STUDY, judge=str(path / "nowhere")),
        "nowhere/labels.txt cannot be read",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_noticed_before_the_model_is_loaded(tmp_path, monkeypatch, unloaded, name):
    make, said = BAD[name]
    monkeypatch.setattr(run.norms, "cvaw", no_wheel)
    with pytest.raises(UserError, match=said):
        run.study(make(tmp_path), tmp_path / "out", "test")
    assert not list((tmp_path / "out").iterdir())


def test_a_dictionary_that_is_not_there_is_noticed_first(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(run, "check", lambda *_: pytest.fail("words were drawn"))
    with pytest.raises(UserError, match="There is no dictionary at tiny"):
        run.study(STUDY, tmp_path, "test")


def test_a_dictionary_of_a_wider_site_is_refused_before_words_are_read(tmp_path, monkeypatch):
    lm, trained = tiny_study.language_model(tmp_path), tiny_study.dictionary()
    width = lm.config.d_ff
    config = dataclasses.replace(trained.sae.config, site="mlp_hidden", d_model=width)
    sae = coder.init(config, jnp.zeros(width))
    monkeypatch.setattr(run.artefact, "load", lambda _: dataclasses.replace(trained, sae=sae))
    monkeypatch.setattr(run.sources, "load", lambda _: lm)
    monkeypatch.setattr(run, "check", lambda *_: None)
    with pytest.raises(UserError, match=f"reads mlp_hidden, which is {width} wide"):
        run.study(STUDY, tmp_path, "test")


def test_an_output_that_cannot_be_written_is_noticed_first(tmp_path: Path, unloaded):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match="cannot be written to"):
        run.study(STUDY, tmp_path / "taken", "test")


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_the_base_install_names_the_extra(tmp_path, monkeypatch, unloaded, package: str):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package}.*pip install 'emojax\[demo\]'"):
        run.study(STUDY, tmp_path, "test")


def test_words_are_drawn_once_and_development_words_are_others():
    tested = run.lists(STUDY, "en", False)
    assert run.lists(STUDY, "en", False) is tested
    others = run.lists(STUDY, "en", True)
    assert len(tested.tested.words) == len(others.tested.words) == 100
    assert tested.norms.name == "Glasgow Norms"
    for drawn, aside in ((tested, []), (others, tested.tested.words)):
        held_out = [*drawn.concepts.words, *drawn.controls.words, *aside]
        assert not kinship.kin(drawn.tested.words, held_out, "en").any()
        assert set(drawn.tested.words) <= set(drawn.words)
        assert len(set(drawn.words)) == len(drawn.words)


def test_a_norm_of_the_users_own_is_read_with_its_columns(tmp_path: Path):
    concept_words = concepts.load("en").words
    plain = tuple(w for w in norms.glasgow().words if w not in concept_words)[:300]
    path = write_norms(tmp_path / "mine.csv", (*concept_words, *plain), "Word,V,A")
    settings = own_norms(path, word="Word", valence="V", arousal="A")
    run.check(settings, "en")
    drawn = run.lists(settings, "en", False)
    assert drawn.norms.name == "mine"
    assert set(drawn.tested.words) <= set(plain)


def test_emotion_words_of_the_users_own_are_read(tmp_path: Path):
    shipped = (Path(run.__file__).parents[1] / "data/concepts_en.toml").read_text(encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(shipped.replace('"admire", ', '"admirable", '), encoding="utf-8")
    drawn = run.lists(dataclasses.replace(STUDY, concepts_en=str(path)), "en", False)
    assert "admirable" in drawn.concepts.of("admiration")
    assert "admire" not in drawn.concepts.words


def test_reading_gives_every_list_its_codes_and_text_is_checked(tmp_path: Path):
    lm, trained = tiny_study.language_model(tmp_path), tiny_study.dictionary()
    run.check_text(STUDY, lm, "en")
    material = run.read(STUDY, lm, trained, "en", tmp_path / "cache")
    drawn = run.lists(STUDY, "en", False)
    for coded, words in (
        (material.concept, drawn.concepts.words),
        (material.control, drawn.controls.words),
        (material.rated, drawn.tested.words),
    ):
        assert coded.words == tuple(words)
        assert coded.trained.shape == coded.untrained.shape == (len(words), 128)
        assert coded.dense.shape == (len(words), lm.config.d_model)
        assert (coded.n_tokens > 0).all()
    development = run.read(STUDY, lm, trained, "en", tmp_path / "cache", development=True)
    assert not set(development.rated.words) & set(material.rated.words)
    np.testing.assert_array_equal(development.concept.n_tokens, material.concept.n_tokens)

    long = dataclasses.replace(STUDY.writing, prompts_en=("happy " * 200,))
    with pytest.raises(UserError, match="more than the model's context of 128"):
        run.check_text(dataclasses.replace(STUDY, writing=long), lm, "en")
    path = write_norms(tmp_path / "n.csv", ("<bos>", *(f"w{i}" for i in range(200))))
    with pytest.raises(UserError, match="The word '<bos>' cannot be represented"):
        run.check_text(
            dataclasses.replace(
                own_norms(path), reading=dataclasses.replace(STUDY.reading, words_per_language=500)
            ),
            lm,
            "en",
        )
