import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sae_toys import SAE, D, activations, language_model, split_of

from emojax.lm.capture import Tap, capture
from emojax.sae import coder, metrics
from emojax.sae.coder import SaeConfig, SparseAutoencoder
from emojax.sae.corpus import Rows

# ± each axis: exact on anything, with D latents active.
EXACT = SparseAutoencoder(
    w_enc=jnp.concatenate([jnp.eye(D), -jnp.eye(D)]),
    b_enc=jnp.zeros(2 * D),
    w_dec=jnp.concatenate([jnp.eye(D), -jnp.eye(D)]),
    b_dec=jnp.zeros(D),
    config=SaeConfig(d_model=D, n_latents=2 * D, k=D, model="toy", layer=0),
)


@pytest.fixture(scope="module")
def data():
    x = activations(512)
    x[10] *= 500
    x[400] *= 900
    return x


@pytest.fixture(scope="module")
def split(data, tmp_path_factory):
    languages = np.arange(512) % 2
    return split_of(tmp_path_factory.mktemp("store"), data, languages)


def test_an_exact_dictionary_leaves_nothing_unexplained(split):
    found = metrics.reconstruction(EXACT, split)
    for space in ("raw", "unit_norm"):
        assert found["fvu"][space]["all"] < 1e-5
    assert 0 < found["l0"] <= D
    assert found["dead"] == 0
    assert found["tokens"] == 512


def test_a_dictionary_of_the_mean_leaves_everything(split):
    sample = split.read(0, 512)
    mean = np.mean(sample.values.astype(np.float32), axis=0)
    flat = coder.init(SAE, jnp.asarray(mean))
    flat = dataclasses.replace(flat, w_dec=jnp.zeros_like(flat.w_dec))
    found = metrics.reconstruction(flat, split)
    assert found["fvu"]["unit_norm"]["all"] == pytest.approx(1, abs=1e-3)


def test_fvu_is_the_textbook_ratio_and_massive_tokens_dominate_raw_space(data, split):
    sae = coder.init(SAE, jnp.zeros(D))
    found = metrics.reconstruction(sae, split)
    sample = split.read(0, 512)
    x = sample.values.astype(np.float64) * sample.norms[:, None]
    error = x - np.asarray(coder.reconstruct(sae, jnp.asarray(x, jnp.float32)), np.float64)

    def ratio(error, x):
        return np.sum(error**2) / np.sum((x - x.mean(axis=0)) ** 2)

    norms = np.linalg.norm(x, axis=1)
    ordinary = norms <= 4 * np.median(norms)
    assert found["massive_tokens"] == np.sum(~ordinary) >= 2
    assert found["fvu"]["raw"]["all"] == pytest.approx(ratio(error, x), rel=1e-3)
    wanted = ratio(error[ordinary], x[ordinary])
    assert found["fvu"]["raw"]["without_massive"] == pytest.approx(wanted, rel=1e-3)
    unit, left = x / norms[:, None], error / norms[:, None]
    assert found["fvu"]["unit_norm"]["all"] == pytest.approx(ratio(left, unit), rel=1e-3)
    one = ratio(left[[10, 400]], x[[10, 400]] / norms[[10, 400], None])
    assert found["fvu"]["raw"]["all"] != pytest.approx(wanted, rel=0.05)
    assert np.isfinite(one)
    for place, language in enumerate(("en", "zh")):
        chosen = ordinary & (np.arange(512) % 2 == place)
        by_hand = ratio(left[chosen], unit[chosen])
        assert found["fvu_by_language"][language] == pytest.approx(by_hand, rel=1e-3)


def test_dead_latents_and_densities_are_counted(split):
    sae = coder.init(SAE, jnp.zeros(D))
    muted = jnp.where(jnp.arange(SAE.n_latents) < 5, -100.0, 0.0)
    found = metrics.reconstruction(dataclasses.replace(sae, b_enc=muted), split)
    sample = split.read(0, 512)
    raw = jnp.asarray(sample.values.astype(np.float32) * sample.norms[:, None])
    codes = coder.encode(dataclasses.replace(sae, b_enc=muted), raw)
    rate = np.mean(np.asarray(coder.dense(codes, SAE.n_latents)) > 0, axis=0)
    assert found["dead"] == np.sum(rate == 0) >= 5
    assert found["l0"] == pytest.approx(rate.sum(), rel=1e-5)
    assert sum(found["density"]["latents"]) == np.sum(rate > 0)
    last_but_one = found["density"]["latents"][-2:]
    assert sum(last_but_one) == np.sum(rate >= 0.1)


def test_l0_dead_latents_and_densities_are_those_of_each_language(data, tmp_path):
    """Of a third that is English, a rest that is Chinese, and of a language without a token."""
    languages = np.where(np.arange(512) % 3 == 0, 0, 2)
    split = dataclasses.replace(split_of(tmp_path, data, languages), languages=("en", "fr", "zh"))
    # Biases leave some codes with fewer than k latents.
    sae = dataclasses.replace(coder.init(SAE, jnp.zeros(D)), b_enc=jnp.full(SAE.n_latents, -0.45))
    on = np.asarray(coder.dense(coder.encode(sae, jnp.asarray(data)), SAE.n_latents)) > 0
    found = metrics.reconstruction(sae, split)
    assert found["density"]["latents"] == _histogram(on)
    for place, language in ((0, "en"), (2, "zh")):
        own = on[languages == place]
        assert found["l0_by_language"][language] == pytest.approx(np.sum(own) / len(own))
        assert found["dead_share_by_language"][language] == np.mean(~own.any(axis=0))
        assert found["density_by_language"][language] == _histogram(own)
    for name in ("fvu", "l0", "dead_share", "density"):
        assert found[f"{name}_by_language"]["fr"] is None
    assert found["l0_by_language"]["en"] != found["l0_by_language"]["zh"]


def _histogram(on: np.ndarray) -> list[int]:
    rate = on.mean(axis=0)
    edges = metrics.DENSITY_EDGES
    return [
        int(np.sum((10**low <= rate) & (rate < 10**high) if high else rate >= 10**low))
        for low, high in itertools.pairwise(edges)
    ]


def test_loss_recovered_is_one_when_exact_and_zero_when_zero():
    lm = language_model()
    rng = np.random.default_rng(0)
    tokens = tuple((1, *rng.integers(2, 40, 23).tolist()) for _ in range(12))
    short = tuple((1, 5, 6) for _ in range(4))
    rows = Rows(tokens + short, (0, 1) * 8, ("en", "zh"), "")
    tap = Tap(1)
    nothing = dataclasses.replace(EXACT, w_dec=jnp.zeros_like(EXACT.w_dec))
    whole = np.array(tokens, np.int32)
    read = capture(lm.config, lm.params, whole, np.ones_like(whole, bool), [tap])[tap]
    mean = np.asarray(jnp.mean(read[:, 1:].reshape(-1, D), axis=0))
    found = metrics.loss_recovered(
        lm, tap, {"exact": EXACT, "nothing": nothing}, rows, mean, rows_per_language=5, batch_rows=2
    )
    for language in ("en", "zh"):
        entry = found[language]
        loss = entry["cross_entropy"]
        assert entry["predictions"] == 5 * 23
        assert loss["exact"] == pytest.approx(loss["clean"], rel=1e-4)
        assert loss["nothing"] == pytest.approx(loss["zero_ablated"], rel=1e-5)
        assert (
            len({round(loss[name], 4) for name in ("clean", "zero_ablated", "mean_ablated")}) == 3
        )
        assert entry["kl"]["exact"] == pytest.approx(0, abs=1e-5)
        assert entry["kl"]["nothing"] == pytest.approx(entry["kl"]["zero_ablated"], rel=1e-5)
        assert entry["recovered"]["exact"] == pytest.approx(1, abs=1e-3)
        assert entry["recovered"]["nothing"] == pytest.approx(0, abs=1e-4)
        assert entry["recovered_from_mean"]["exact"] == pytest.approx(1, abs=1e-3)


def test_the_first_token_is_left_alone():
    h = jax.random.normal(jax.random.key(0), (2, 5, D))
    made = metrics._reconstructed(dataclasses.replace(EXACT, w_dec=EXACT.w_dec * 0), h)
    np.testing.assert_array_equal(made[:, 0], h[:, 0])
    assert not np.any(made[:, 1:])
