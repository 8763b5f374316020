import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emojax.lm.sampling import Sampling, _cut, _invert, _largest, sample

pytestmark = pytest.mark.smoke

RNG = np.random.default_rng(0)


def draws(logits, count, **settings):
    """`count` tokens from one row of logits."""
    given = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0} | settings
    sampling = Sampling(
        jnp.float32(given["temperature"]),
        jnp.int32(given["top_k"]),
        jnp.float32(given["top_p"]),
        jnp.float32(given["repetition_penalty"]),
    )
    context = jnp.broadcast_to(jnp.asarray([[1, 1, 5]]), (count, 3))
    mask = jnp.broadcast_to(jnp.asarray([[True, True, False]]), (count, 3))
    keys = jax.random.split(jax.random.key(0), count)
    tokens, logprobs = jax.jit(sample)(
        jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (count, len(logits))),
        context,
        mask,
        keys,
        sampling,
    )
    return np.asarray(tokens), np.asarray(logprobs)


def assert_drawn_from(tokens, probabilities):
    counts = np.bincount(tokens, minlength=len(probabilities))
    assert (counts[probabilities == 0] == 0).all()
    expected = probabilities * len(tokens)
    live = expected > 0
    square = ((counts - expected)[live] ** 2 / expected[live]).sum()
    degrees = live.sum() - 1
    assert square < degrees + 4 * np.sqrt(2 * degrees)


def softmax(logits):
    e = np.exp(logits - np.max(logits))
    return e / e.sum()


LOGITS = RNG.normal(size=37) * 1.5


def test_tokens_follow_the_distribution():
    tokens, logprobs = draws(LOGITS, 20_000)
    assert_drawn_from(tokens, softmax(LOGITS))
    np.testing.assert_allclose(logprobs, np.log(softmax(LOGITS))[tokens], atol=1e-5)


@pytest.mark.torch
def test_all_settings_together_are_those_of_transformers():
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as theirs

    logits = 2 * LOGITS
    logits[[1, 5]] = logits.max() + 1  # of which only 1 is in the context
    found = torch.tensor(logits[None], dtype=torch.float32)
    context = torch.tensor([[1, 1]])
    for process in (
        theirs.RepetitionPenaltyLogitsProcessor(1.4),
        theirs.TemperatureLogitsWarper(0.8),
        theirs.TopKLogitsWarper(9),
        theirs.TopPLogitsWarper(0.9),
    ):
        found = process(context, found)
    expected = torch.softmax(found, dim=-1)[0].numpy()
    assert 2 < (expected > 0).sum() < 9
    tokens, _ = draws(logits, 100_000, repetition_penalty=1.4, temperature=0.8, top_k=9, top_p=0.9)
    assert_drawn_from(tokens, expected)


@pytest.mark.parametrize("vocab", [37, 512, 5000])
def test_temperature_0_takes_the_first_of_the_largest(vocab):
    scores = RNG.integers(0, vocab // 4, (64, vocab)).astype(np.float32)
    found = jax.jit(_largest)(jnp.asarray(scores))
    np.testing.assert_array_equal(found, scores.argmax(axis=1))
    np.testing.assert_array_equal(
        jax.jit(_largest)(-1 - jnp.asarray(scores)), scores.argmin(axis=1)
    )


def test_temperature_divides():
    tokens, logprobs = draws(LOGITS, 20_000, temperature=0.6)
    assert_drawn_from(tokens, softmax(LOGITS / 0.6))
    # Log-probabilities are those of the model itself.
    np.testing.assert_allclose(logprobs, np.log(softmax(LOGITS))[tokens], atol=1e-5)


def test_top_k_then_top_p():
    order = np.argsort(-LOGITS)
    kept = np.where(np.isin(np.arange(37), order[:9]), LOGITS, -np.inf)
    tokens, _ = draws(LOGITS, 20_000, top_k=9)
    assert_drawn_from(tokens, softmax(kept))

    cumulative = np.cumsum(softmax(kept)[order])
    nucleus = order[: np.searchsorted(cumulative, 0.7) + 1]
    kept = np.where(np.isin(np.arange(37), nucleus), LOGITS, -np.inf)
    tokens, _ = draws(LOGITS, 20_000, top_k=9, top_p=0.7)
    assert 1 < len(nucleus) < 9
    assert_drawn_from(tokens, softmax(kept))


def test_repetition_penalty_of_real_context_only():
    for sign in (1, -1):
        logits = LOGITS.copy()
        logits[1] = sign * 2.0
        tokens, _ = draws(logits, 100_000, repetition_penalty=1.7)
        logits[1] = 2.0 / 1.7 if sign == 1 else -2.0 * 1.7
        assert_drawn_from(tokens, softmax(logits))


@pytest.mark.parametrize("k", [1, 2, 17, 4999, 5000, 9000])
def test_a_cut_is_exact_over_a_large_vocabulary(k):
    scores = RNG.normal(size=(3, 5000)).astype(np.float32) * 20
    scores -= scores.max(axis=1, keepdims=True)
    found = np.asarray(_cut(jnp.asarray(scores), jnp.ones_like, jnp.float32(k)))
    least = np.sort(scores, axis=1)[:, ::-1][:, min(k, 5000) - 1]
    np.testing.assert_array_equal(found, np.where(scores >= least[:, None], scores, -np.inf))


def test_a_token_without_weight_is_never_drawn():
    weights = np.zeros((4, 2000), np.float32)
    weights[0, 0] = weights[1, 1999] = weights[2, 700] = 1.0
    weights[3, [3, 1500]] = 1.0
    for uniform in (0.0, 0.3, 1 - 2**-24):
        found = np.asarray(_invert(jnp.asarray(weights), jnp.full(4, uniform, jnp.float32)))
        assert found[:3].tolist() == [0, 1999, 700]
        assert found[3] == (3 if uniform < 0.5 else 1500)


def test_a_cut_within_the_highest_scores_is_the_one_that_bisection_finds(monkeypatch):
    from emojax.lm import sampling

    scores = jnp.asarray(RNG.normal(size=(4, 300)) * 3, jnp.float32)
    scores = scores.at[:, 7].set(scores[:, 9])  # equal ones
    scores = scores - scores.max(axis=-1, keepdims=True)
    for target in (0.05, 0.5, 0.95, 0.99):
        cuts = []
        for highest in (300, 40, 1):  # always within, sometimes, never
            monkeypatch.setattr(sampling, "_HIGHEST", highest)
            cuts.append(_cut(scores, lambda s: jax.nn.softmax(s, axis=-1), jnp.float32(target)))
        np.testing.assert_array_equal(cuts[0], cuts[1])
        np.testing.assert_array_equal(cuts[0], cuts[2])
