import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sae_toys import SAE, D, N, language_model, text_rows

from emojax.errors import UserError
from emojax.lm import batching
from emojax.lm.capture import Tap, capture
from emojax.sae import coder
from emojax.sae.coder import SaeConfig, SparseAutoencoder
from emojax.sae.edit import edit

pytestmark = pytest.mark.smoke

LATENTS = [40, 3, 17, 22, 58]
M = len(LATENTS)
CHANGES = {
    "add": (0.5, lambda z: z + 0.5),
    "clamp": (np.linspace(0.0, 2.0, M), lambda z: 0 * z + np.linspace(0.0, 2.0, M)),
    "scale": (3.0, lambda z: 3 * z),
}


def dictionary(**changes) -> SparseAutoencoder:
    """With biases and thresholds that matter, as wide as the toy model."""
    config = dataclasses.replace(SAE, layer=1, **changes)
    keys = jax.random.split(jax.random.key(5), 5)
    sae = coder.init(config, 0.3 * jax.random.normal(keys[0], (D,)))
    topk = config.architecture == "topk"
    return dataclasses.replace(
        sae,
        w_enc=jax.random.normal(keys[1], (N, D)),
        b_enc=0.5 * jax.random.normal(keys[2], (N,)),
        # Some below zero, where ReLU is what decides.
        threshold=None if topk else jax.random.normal(keys[3], (N,)),
    )


def read(interventions=()):
    """The residual stream at the dictionary's tap, as rows of tokens, and the real tokens."""
    lm = language_model()
    rows = text_rows(4).tokens
    tokens, mask = batching.pad(rows, len(rows), max(map(len, rows)))
    with jax.default_matmul_precision("highest"):
        found = capture(lm.config, lm.params, tokens, mask, [Tap(1)], interventions)
    return np.asarray(found[Tap(1)])[mask]


def by_the_coder(sae, h, change):
    """h + decode(z') − decode(z) by `coder`, where only the edited latents change."""
    z = coder.dense(coder.encode(sae, h), N)
    edited = z.at[:, np.array(LATENTS)].set(change(z[:, np.array(LATENTS)]))
    slots = jnp.broadcast_to(jnp.arange(N), z.shape)
    both = [coder.decode(sae, coder.Codes(code, slots)) for code in (edited, z)]
    return np.asarray(h + (both[0] - both[1]) * coder.scale(sae.config, h)[1])


@pytest.mark.parametrize("mode", CHANGES)
@pytest.mark.parametrize("input_scale", ["unit_norm", "none"])
@pytest.mark.parametrize("architecture", ["batch_topk", "jumprelu", "topk"])
def test_an_edit_is_encode_change_decode(architecture, input_scale, mode):
    # With room for every latent, so that none above its threshold is cut off.
    sae = dictionary(architecture=architecture, input_scale=input_scale, max_active=N)
    value, change = CHANGES[mode]
    h = read()
    found = read([edit(sae, LATENTS, mode, value)])
    expected = by_the_coder(sae, jnp.asarray(h), change)
    assert not np.allclose(expected, h, atol=1e-2)
    if architecture == "topk":
        z = np.asarray(coder.dense(coder.encode(sae, jnp.asarray(h)), N))[:, LATENTS]
        pre = preactivations(sae, h)[:, LATENTS]
        outside = (pre > 0) & (z == 0)
        assert outside.any() and not outside.all()
        # A latent outside the k largest counts with its rectified pre-activation.
        there = np.where(outside, pre, 0.0)
        size = np.asarray(coder.scale(sae.config, jnp.asarray(h))[1])
        extra = (change(there) - there) - (change(0 * there))
        expected = expected + size * (extra @ np.asarray(sae.w_dec)[LATENTS])
        assert mode != "add" or np.abs(extra).max() < 1e-6  # adds in any case
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def preactivations(sae, h):
    x = np.asarray(coder.scale(sae.config, jnp.asarray(h))[0])
    return (x - np.asarray(sae.b_dec)) @ np.asarray(sae.w_enc).T + np.asarray(sae.b_enc)


def test_a_threshold_silences_a_latent_outside_the_k_largest():
    sae = dictionary()
    h = read()
    z = np.asarray(coder.dense(coder.encode(sae, jnp.asarray(h)), N))
    pre = preactivations(sae, h)
    # One whose values among the k largest are all above those outside.
    least = np.where(z > 0, z, np.inf).min(axis=0)
    most = np.where(z > 0, -np.inf, pre).max(axis=0)
    fitting = np.flatnonzero((least > most + 1e-3) & np.isfinite(least) & (most > 1e-3))
    assert len(fitting)
    latent = int(fitting[0])
    given = edit(sae, [latent], "scale", 0.0, threshold=(least[latent] + most[latent]) / 2)
    changed = (read([given]) != h).any(axis=1)
    np.testing.assert_array_equal(changed, z[:, latent] > 0)


def test_an_edit_acts_where_it_is_told():
    h = read()
    found = read([edit(dictionary(), LATENTS, "add", 2.0, rows=0.0)])
    np.testing.assert_array_equal(found, h)


@pytest.mark.parametrize(
    ("latents", "changes", "message"),
    [
        ([], {}, "give a list of their numbers"),
        (np.array([[1]]), {}, "give a list of their numbers"),
        ([1, N], {}, f"Latent {N} was to be edited and the dictionary has those from 0 to {N - 1}"),
        ([-1], {}, "Latent -1"),
        ([4, 4], {}, "stands twice"),
        (
            [1],
            {"w_enc": jnp.zeros((D, N))},
            r"w_enc has shape \(16, 64\).*SAELens' W_enc is \[d_in",
        ),
        (
            [1],
            {"config": dataclasses.replace(SAE, input_scale="none", target_site="mlp_out")},
            "transcoder: it reads resid_post and writes mlp_out",
        ),
    ],
)
def test_what_cannot_be_edited(latents, changes, message):
    given = dictionary()
    fields = {f.name: getattr(given, f.name) for f in dataclasses.fields(given)} | changes
    sae = object.__new__(SparseAutoencoder)  # past the shapes that tests check
    for name, field in fields.items():
        object.__setattr__(sae, name, field)
    with pytest.raises(UserError, match=message):
        edit(sae, latents, "add", 1.0)


def test_settings_of_a_dictionary_are_its_place():
    config = SaeConfig(d_model=D, n_latents=N, k=4, model="toy", layer=0, site="resid_mid")
    given = edit(dataclasses.replace(dictionary(), config=config), [1], "add", 1.0, phase="prompt")
    assert (given.layer, given.site, given.phases.tolist()) == (0, "resid_mid", [True, False])
