import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_study
from tiny_study import TAP

from emojax.errors import UserError
from emojax.lm import capture, text
from emojax.sae import coder
from emojax.study import words

WORDS = ("happy", "happiness", "sad", "word", "the", "Te")
TEMPLATES = ("The word {}", "the {}")


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory):
    return tiny_study.language_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def readings(lm, folder: Path) -> words.Readings:
    return words.read(lm, TAP, WORDS, TEMPLATES, folder, "words")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each pass of the model has read."""
    passes: list[int] = []
    last_token = capture.last_token

    def spy(lm, rows, *arguments, **named):
        passes.append(len(rows))
        return last_token(lm, rows, *arguments, **named)

    monkeypatch.setattr(words.capture, "last_token", spy)
    return passes


def test_the_token_read_is_the_words_own_last_token(lm, readings: words.Readings):
    assert readings.words == WORDS
    for t, template in enumerate(TEMPLATES):
        for w, word in enumerate(WORDS):
            row = text.tokenize(lm, [template.removesuffix("{}") + word])[0]
            assert lm.tokenizer.decode(row).endswith(word)
            tokens = np.array([row], np.int32)
            full = capture.capture(lm.config, lm.params, tokens, np.ones_like(tokens, bool), [TAP])
            expected = np.asarray(full[TAP])[0, -1]
            np.testing.assert_allclose(readings.residuals[t, w], expected, rtol=1e-4, atol=1e-4)


def test_n_tokens_are_the_words_own(lm, readings: words.Readings):
    alone = [len(text.tokenize(lm, [f" {word}"], bos=False)[0]) for word in WORDS]
    assert readings.n_tokens.tolist() == alone
    assert len(set(alone)) > 1


def test_part_keeps_the_order_asked_for(readings: words.Readings):
    some = words.part(readings, ["the", "happy"])
    assert some.words == ("the", "happy")
    np.testing.assert_array_equal(some.residuals, readings.residuals[:, [4, 0]])
    np.testing.assert_array_equal(some.n_tokens, readings.n_tokens[[4, 0]])


def test_codes_and_directions_are_means_over_templates(readings: words.Readings):
    sae = tiny_study.dictionary().sae
    each = [
        np.asarray(coder.dense(coder.encode(sae, jnp.asarray(x)), sae.config.n_latents))
        for x in readings.residuals
    ]
    assert np.abs(each[0] - each[1]).max() > 1e-3
    np.testing.assert_allclose(words.codes(sae, readings), np.mean(each, axis=0), atol=1e-5)
    # A batch that does not divide the words gives the same.
    np.testing.assert_allclose(
        words.codes(sae, readings, batch=4), words.codes(sae, readings), atol=1e-5
    )
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in readings.residuals]
    np.testing.assert_allclose(words.directions(readings), np.mean(unit, axis=0), atol=1e-6)


def test_what_was_read_is_not_read_again(lm, folder: Path, readings, counted: list[int]):
    again = words.read(lm, TAP, WORDS, TEMPLATES, folder, "words")
    assert counted == []
    np.testing.assert_array_equal(again.residuals, readings.residuals)


def test_an_interrupted_reading_goes_on(lm, tmp_path: Path, monkeypatch, readings, counted):
    monkeypatch.setattr(words, "_CHUNK", 5)
    keep = words._keep

    def interrupted(path, residuals):
        keep(path, residuals)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(words, "_keep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            words.read(lm, TAP, WORDS, TEMPLATES, tmp_path, "words")
    assert counted == [5]
    again = words.read(lm, TAP, WORDS, TEMPLATES, tmp_path, "words")
    assert counted == [5, 5, 2]
    np.testing.assert_allclose(again.residuals, readings.residuals, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "another shape", "not finite"])
def test_a_damaged_file_is_made_again(lm, folder: Path, tmp_path: Path, readings, counted, damage):
    (good,) = folder.glob("residuals-*.npy")
    bad = tmp_path / good.name
    shutil.copyfile(good, bad)
    if damage == "truncated":
        bad.write_bytes(good.read_bytes()[:-100])
    elif damage == "garbage":
        bad.write_bytes(b"not an array at all")
    elif damage == "empty":
        bad.write_bytes(b"")
    elif damage == "another shape":
        np.save(bad, np.load(good)[1:])
    else:
        np.save(bad, np.full_like(np.load(good), np.nan))
    again = words.read(lm, TAP, WORDS, TEMPLATES, tmp_path, "words")
    assert counted == [len(WORDS) * len(TEMPLATES)]
    np.testing.assert_allclose(again.residuals, readings.residuals, rtol=1e-4, atol=1e-4)
    assert bad.read_bytes() == good.read_bytes()


def test_the_name_says_what_residuals_depend_on(lm, folder: Path, monkeypatch):
    rows = [[2, 3], [2, 4]]
    names = {
        words._name(lm, TAP, rows),
        words._name(lm, TAP, rows[::-1]),
        words._name(lm, TAP._replace(layer=2), rows),
        words._name(lm, TAP._replace(site="attn_out"), rows),
    }
    monkeypatch.setattr(words, "_LAYOUT", words._LAYOUT + 1)
    names.add(words._name(lm, TAP, rows))
    assert len(names) == 5


def test_a_disk_without_room_is_noticed_before_the_model_runs(lm, tmp_path, monkeypatch, counted):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("emojax.files.shutil.disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(UserError, match=r"has 0 MiB free and .* are needed"):
        words.read(lm, TAP, WORDS, TEMPLATES, tmp_path, "words")
    assert counted == []
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_noticed_before_the_model_runs(lm, tmp_path, counted):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="cannot be written to"):
        words.read(lm, TAP, WORDS, TEMPLATES, tmp_path / "cache", "words")
    assert counted == []


def test_the_bar_moves_with_every_batch(lm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    moved: list[int] = []

    class Bar(words.tqdm):
        def update(self, n: float | None = 1):
            moved.append(n)
            return super().update(n)

    monkeypatch.setattr(words, "tqdm", Bar)
    # The words without a token of their own are longer rows: three batches.
    some = ("happy", "zzzzzzzz", "zzzzzzzzzzzzzzzz")
    words.read(lm, TAP, some, ["the {}"], tmp_path, "words")
    assert moved == [1, 1, 1]
    words.read(lm, TAP, some, ["the {}"], tmp_path, "words")
    assert moved == [1, 1, 1, 3]
