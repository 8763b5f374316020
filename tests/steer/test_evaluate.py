import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from steer_model import CONFIG, tiny_model

from emojax.errors import UserError
from emojax.lm import decoder
from emojax.steer import evaluate
from emojax.steer.evaluate import Written
from emojax.steer.judge import Judge

WORDS = {
    "en": {"joy": ["joy", "happy"], "fear": ["fear"]},
    "zh": {"joy": ["快乐"], "fear": ["害怕"]},
}
PROMPTS = [("en", "I am"), ("zh", "今天我")]


def test_distinct_n_and_repetition_count_by_hand():
    assert evaluate.distinct_n([1, 2, 1, 2], 2) == pytest.approx(2 / 3)
    assert evaluate.repetition([7] * 10) == pytest.approx(6 / 7)
    assert evaluate.repetition(range(10)) == 0
    assert evaluate.distinct_n([5], 2) == 1


@pytest.mark.parametrize(
    ("text", "words", "language", "held"),
    [
        ("So HAPPY!", ["happy"], "en", True),
        ("unhappy", ["happy"], "en", False),
        ("a c.t", ["c.t"], "en", True),
        ("a cat", ["c.t"], "en", False),
        ("我很快乐。", ["快乐"], "zh", True),
        ("我很快,乐", ["快乐"], "zh", False),
    ],
)
def test_concept_words_are_found_as_words(text, words, language, held):
    assert evaluate.words_in(text, words, language) == words * held


@pytest.mark.parametrize(
    ("text", "language", "switched"),
    [
        ("今天天气很好 ok", "zh", False),
        ("今天 the weather is fine", "zh", True),
        ("the weather is fine 今天", "en", False),
        ("今天天气很好", "en", True),
        ("привет", "en", True),
        ("12 ... !", "en", None),
    ],
)
def test_language_switch_goes_by_most_letters(text, language, switched):
    assert evaluate.language_switch(text, language) is switched


def test_perplexity_is_of_the_continuation_given_its_prompt():
    lm = tiny_model()
    prompts, written = [[1, 2, 3], [4], [5, 6]], [[7, 8], [9, 10, 11, 12], []]
    rows = [[*p, *w, *[0] * (5 - len(p) - len(w))] for p, w in zip(prompts, written, strict=True)]
    mask = [[i < len(p) + len(w) for i in range(5)] for p, w in zip(prompts, written, strict=True)]
    logits = decoder.logits(CONFIG, lm.params, jnp.array(rows), jnp.array(mask))
    logprobs = np.asarray(jax.nn.log_softmax(logits))
    first = (logprobs[0, 2, 7] + logprobs[0, 3, 8]) / 2
    second = np.mean([logprobs[1, i, token] for i, token in enumerate(written[1])])
    found = evaluate.perplexities(lm, prompts, written)
    assert found == [
        pytest.approx(np.exp(-first), 1e-4),
        pytest.approx(np.exp(-second), 1e-4),
        None,
    ]


@pytest.fixture(scope="module")
def joyful():
    """A judge to whom everything is joy."""
    constant = DummyClassifier(strategy="constant", constant="joy")
    pipeline = make_pipeline(TfidfVectorizer(), constant).fit(["yes", "no"], ["joy", "fear"])
    return Judge(pipeline, ("fear", "joy"), n_train=2, n_test=2, accuracy=0.5, macro_f1=1 / 3)


def written(prompt, method, emotion, text, perplexity):
    return Written(prompt, method, emotion, text, tuple(range(len(text))), perplexity)


TEXTS = [
    written(0, "none", None, "going home", 10.0),
    written(0, "sae", "joy", "so happy", 20.0),
    written(0, "sae", "fear", "so happy", 5.0),
    written(1, "none", None, "很快乐", 8.0),
    written(1, "sae", "joy", "", None),
    written(1, "sae", "fear", "I fear", 16.0),
]


def test_measures_of_each_text(joyful):
    rows = evaluate.measure(TEXTS, PROMPTS, WORDS, {"en": joyful})
    assert [row.perplexity_ratio for row in rows] == pytest.approx([1, 2, 0.5, 1, None, 2])
    assert [row.emotion_words for row in rows] == [None, ["happy"], [], None, [], []]
    assert [row.judged_intended for row in rows] == [None, True, False, None, None, None]
    assert [row.language_switch for row in rows] == [False, False, False, False, None, True]


def test_summaries_score_unsteered_text_against_every_emotion(joyful):
    rows = evaluate.measure(TEXTS, PROMPTS, WORDS, {"en": joyful})
    summaries = evaluate.summarise(rows, PROMPTS, WORDS, seed=0)
    found = {(s.language, s.method): s for s in summaries}
    assert found["en", "sae"].perplexity_ratio.value == pytest.approx(1)
    assert found["en", "sae"].emotion_word.value == 0.5
    assert found["en", "none"].emotion_word.value == 0
    assert found["zh", "none"].emotion_word.value == 0.5  # 快乐 is of joy, not of fear
    assert found["en", "sae"].emotion_word_gain.value == 0.5
    assert found["zh", "sae"].emotion_word_gain.value == -0.5
    assert found["zh", "none"].emotion_word_gain is None
    assert found["en", "none"].judged_intended.value == 0.5
    assert found["zh", "sae"].judged_intended is None
    assert found["zh", "sae"].language_switch.value == 1  # of the one text that has letters
    assert found["zh", "sae"].n_texts == 2


def test_a_ratio_is_over_the_geometric_mean_of_the_prompts_own_unsteered_texts():
    prompts = [("en", "one"), ("en", "two")]
    texts = [
        written(0, "none", None, "home", 4.0),
        written(0, "none", None, "home home home", 1.0),  # degenerate, and very likely
        written(1, "none", None, "joy", 100.0),
        written(1, "none", None, "home", 100.0),
        *(written(p, "sae", e, "joy", 8.0) for p in (0, 1) for e in ("joy", "fear")),
    ]
    rows = evaluate.measure(texts, prompts, WORDS, {})
    assert [row.perplexity_ratio for row in rows] == pytest.approx([2, 0.5, 1, 1, 4, 4, 0.08, 0.08])
    plain, steered = evaluate.summarise(rows, prompts, WORDS, seed=0)
    assert steered.perplexity_ratio.value == pytest.approx((4 * 0.08) ** 0.5)
    # One of the second prompt's two unsteered texts has a word of one of two emotions.
    assert plain.emotion_word.value == pytest.approx(1 / 8)
    assert steered.emotion_word_gain.value == pytest.approx(1 / 2 - 1 / 8)
    assert plain.perplexity_ratio == evaluate.Estimate(1.0, None, None, "")


def test_every_interval_says_what_it_covers():
    prompts = [("en", "one"), ("en", "two")]
    texts = [written(p, "none", None, t, 9.0) for p in (0, 1) for t in ("home", "joy")]
    texts += [written(p, "sae", e, "joy", 8.0) for p in (0, 1) for e in ("joy", "fear")]
    rows = evaluate.measure(texts, prompts, WORDS, {})
    plain, steered = evaluate.summarise(rows, prompts, WORDS, seed=0)
    assert steered.repetition.covers == steered.emotion_word.covers == "prompts and emotions"
    everything = "prompts, emotions and unsteered texts of a prompt"
    assert steered.emotion_word_gain.covers == steered.perplexity_ratio.covers == everything
    assert plain.repetition.covers == "prompts and texts of a prompt"
    assert plain.emotion_word.covers == "prompts, emotions and texts of a prompt"


def test_a_prompt_without_unsteered_text_is_refused():
    with pytest.raises(UserError, match="'I am' has no unsteered text"):
        evaluate.measure(TEXTS[1:], PROMPTS, WORDS, {})


def test_texts_without_any_token_are_refused():
    empty = [written(0, "none", None, "", None)]
    with pytest.raises(UserError, match="unsteered text"):
        evaluate.measure(empty, PROMPTS, WORDS, {})
