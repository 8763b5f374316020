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


def test_the_interval_resamples_groups_not_texts():
    values, groups = [0.0] * 50 + [1.0] * 50, ["a"] * 50 + ["b"] * 50
    estimate = evaluate.mean(values, groups, seed=0)
    # Two groups, all alike within: as uncertain as two numbers are.
    assert (estimate.value, estimate.ci_low, estimate.ci_high) == (0.5, 0.0, 1.0)
    assert evaluate.mean([1.0, 2.0], ["a", "a"], seed=0).ci_low is None


def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        estimate = evaluate.mean(list(random.normal(3, 1, 40)), range(40), seed)
        hits += estimate.ci_low <= 3 <= estimate.ci_high
    assert 0.88 <= hits / 200 <= 0.99


def test_geometric_mean_of_a_ratio_and_its_inverse_is_one():
    assert evaluate.geometric_mean([4.0, 0.25], "ab", seed=0).value == pytest.approx(1)


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
    assert found["en", "none"].judged_intended.value == 0.5
    assert found["zh", "sae"].judged_intended is None
    assert found["zh", "sae"].language_switch.value == 1  # of the one text that has letters
    assert found["zh", "sae"].n_texts == 2


def test_a_prompt_without_unsteered_text_is_refused():
    with pytest.raises(UserError, match="'I am' has no unsteered text"):
        evaluate.measure(TEXTS[1:], PROMPTS, WORDS, {})


def test_texts_without_any_token_are_refused():
    empty = [written(0, "none", None, "", None)]
    with pytest.raises(UserError, match="unsteered text"):
        evaluate.measure(empty, PROMPTS, WORDS, {})
