import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from tiny_models import ragged, tiny

from emojax.errors import UserError
from emojax.lm import capture as capturing
from emojax.lm import decoder, intervene
from emojax.lm.capture import Tap, capture
from emojax.lm.intervention_checks import check_kind, prepare
from emojax.lm.loss import next_token_loss

pytestmark = pytest.mark.smoke

RNG = np.random.default_rng(0)
BATCH, TIME, WIDTH, M = 3, 10, 32, 5
VECTOR = RNG.normal(size=WIDTH).astype(np.float32)
PER_ROW = RNG.normal(size=(BATCH, WIDTH)).astype(np.float32)
SAE = {
    "w_enc": RNG.normal(size=(M, WIDTH)).astype(np.float32),
    "b_enc": RNG.normal(size=M).astype(np.float32),
    "w_dec": RNG.normal(size=(M, WIDTH)).astype(np.float32),
}
TAP = Tap(1, "resid_post")


def read(interventions, taps=(TAP,), side="right", name="gemma3"):
    config, params = tiny(name)
    tokens, mask = ragged(config, BATCH, TIME, side)
    return capture(config, params, tokens, mask, list(taps), interventions)


def plain(side="right"):
    """The residual at TAP, and its mask."""
    config, _ = tiny("gemma3")
    return np.asarray(read((), side=side)[TAP]), ragged(config, BATCH, TIME, side)[1]


def edited(intervention, **how):
    return np.asarray(read([intervention], **how)[TAP])


def norm(h):
    return np.linalg.norm(h, axis=-1, keepdims=True)


def at(**more):
    return {"layer": TAP.layer, "site": TAP.site} | more


UNIT = VECTOR / np.linalg.norm(VECTOR)


@pytest.mark.parametrize(
    ("mode", "how", "formula"),
    [
        ("add", {"strength": 2.5}, lambda h: h + 2.5 * VECTOR),
        ("add", {"strength": 0.3, "unit": "fraction"}, lambda h: h + 0.3 * norm(h) * UNIT),
        ("scale", {"strength": 0.7}, lambda h: 0.7 * h),
        ("set", {"strength": -2.0}, lambda h: 0 * h - 2 * VECTOR),
        ("set", {"strength": 0.5, "unit": "fraction"}, lambda h: 0.5 * norm(h) * UNIT),
        ("project_out", {}, lambda h: h - (h @ UNIT)[..., None] * UNIT),
        ("project_out", {"strength": 0.4}, lambda h: h - 0.4 * (h @ UNIT)[..., None] * UNIT),
        ("add", {"rows": 0.25}, lambda h: h + 0.25 * VECTOR),
        ("set", {"rows": 0.25}, lambda h: 0.75 * h + 0.25 * VECTOR),
    ],
)
def test_directions_follow_their_formulas(mode, how, formula):
    h, mask = plain()
    found = edited(intervene.direction(mode, VECTOR, **at(**how)))
    np.testing.assert_allclose(found[mask], formula(h)[mask], atol=2e-5)


def test_ablation_is_exact():
    _, mask = plain()
    assert (edited(intervene.ablate(np.zeros(WIDTH), **at()))[mask] == 0).all()
    found = edited(intervene.ablate(PER_ROW, **at()))
    assert (found == PER_ROW[:, None]).all()


def test_a_scale_needs_no_vector():
    h, mask = plain()
    found = edited(intervene.direction("scale", 0.0, **at(strength=0.5)))
    np.testing.assert_array_equal(found[mask], 0.5 * h[mask])
    assert (edited(intervene.ablate(**at()))[mask] == 0).all()


def test_a_clamp_bounds_the_projection():
    h, mask = plain()
    before = h @ UNIT
    middle = np.median(before[mask])
    low, high = middle - 0.1, middle + 0.2
    for bounds in ((low, high), (low, np.inf), (-np.inf, high), (high, high)):
        found = edited(intervene.clamp(VECTOR, *bounds, **at()))
        after = np.clip(before, *bounds)
        assert (after != before)[mask].any()
        expected = h + (after - before)[..., None] * UNIT
        np.testing.assert_allclose(found[mask], expected[mask], atol=2e-5)
        np.testing.assert_array_equal(found[mask & (after == before)], h[mask & (after == before)])
    found = edited(intervene.clamp(PER_ROW, np.zeros(BATCH), 0.0, **at()))
    rest = np.einsum("btd,bd->bt", found, PER_ROW) / norm(PER_ROW)
    assert np.abs(rest[mask]).max() < 1e-4


def test_a_mask_of_positions():
    h, mask = plain("left")
    position = np.cumsum(mask, axis=1) - 1
    per_row = RNG.random((BATCH, TIME)) < 0.5
    for chosen in (per_row, per_row[0], per_row[:, :5], np.pad(per_row, ((0, 0), (0, 7)))):
        found = edited(intervene.direction("add", VECTOR, **at(positions=chosen)), side="left")
        full = np.zeros((BATCH, TIME), bool)
        width = min(TIME, chosen.shape[-1])
        full[:, :width] = chosen[..., :width]
        inside = mask & np.take_along_axis(full, np.maximum(position, 0), axis=1)
        assert inside.any() and (mask & ~inside).any()
        np.testing.assert_array_equal(found[mask & ~inside], h[mask & ~inside])
        np.testing.assert_allclose(found[inside], (h + VECTOR)[inside], atol=1e-5)


@pytest.mark.parametrize("site", ["z", "mlp_hidden", "attn_out", "final_norm"])
def test_sites_beside_the_stream(site):
    layer = 3 if site == "final_norm" else 1
    tap = Tap(layer, site)
    before = np.asarray(read([], [tap])[tap])
    found = np.asarray(
        read([intervene.direction("add", wide(site), layer=layer, site=site)], [tap])[tap]
    )
    mask = ragged(tiny("gemma3")[0], BATCH, TIME, "right")[1]
    np.testing.assert_allclose(found[mask], (before + wide(site))[mask], atol=1e-5)


def test_rows_have_their_own_vectors_strengths_and_weights():
    h, mask = plain()
    strength = np.array([1.0, -2.0, 3.0])
    rows = np.array([1.0, 0.0, 0.5])
    found = edited(intervene.direction("add", PER_ROW, **at(strength=strength, rows=rows)))
    expected = h + (strength * rows)[:, None, None] * PER_ROW[:, None]
    np.testing.assert_allclose(found[mask], expected[mask], atol=1e-5)
    np.testing.assert_array_equal(found[1], h[1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_count_real_tokens(side):
    h, mask = plain(side)
    starts, ends = np.array([0, 1, 2]), np.array([3, 2, 30])
    found = edited(intervene.direction("add", VECTOR, **at(positions=(starts, ends))), side=side)
    position = np.cumsum(mask, axis=1) - 1
    inside = mask & (position >= starts[:, None]) & (position < ends[:, None])
    assert inside.any() and (mask & ~inside).any()
    # Only what is at the tap itself: tokens outside are those very bits.
    np.testing.assert_array_equal(found[mask & ~inside], h[mask & ~inside])
    np.testing.assert_allclose(found[inside], (h + VECTOR)[inside], atol=1e-5)


def test_phases():
    h, _ = plain()
    for phase, changes in (("prompt", True), ("generated", False), ("both", True)):
        found = edited(intervene.direction("add", VECTOR, **at(phase=phase)))
        assert (found != h).any() == changes


def latent_formula(h, change, threshold=0.0, unit_norm=False):
    size = norm(h) if unit_norm else 1.0
    pre = (h / size) @ SAE["w_enc"].T + SAE["b_enc"]
    z = np.where(pre > threshold, pre, 0)
    return h + size * ((change(z) - z) @ SAE["w_dec"])


@pytest.mark.parametrize("unit_norm", [False, True])
@pytest.mark.parametrize(
    ("mode", "value", "change"),
    [
        ("add", 0.5, lambda z: z + 0.5),
        ("clamp", np.arange(M), lambda z: 0 * z + np.arange(M)),
        ("scale", np.full((BATCH, M), 3.0), lambda z: 3 * z),
    ],
)
def test_latents_follow_their_formula(mode, value, change, unit_norm):
    h, mask = plain()
    how = at(unit_norm=unit_norm, threshold=0.8)
    found = edited(intervene.latents(mode, value, **SAE, **how))
    expected = latent_formula(h, change, 0.8, unit_norm)
    scale = np.abs(expected[mask]).max()
    np.testing.assert_allclose(found[mask], expected[mask], atol=2e-6 * scale)
    assert (found != h).any()


def wide(site, name="gemma3"):
    """A vector of the site's width."""
    return np.resize(VECTOR, decoder.site_width(tiny(name)[0], site))


def no_ops_of_sites(name):
    """An edit at each site that changes nothing."""
    last = tiny(name)[0].n_layers - 1
    return {
        f"at {site}": intervene.direction(
            "add", wide(site, name), layer=last, site=site, strength=0.0
        )
        for site in decoder.SITES
    }


# Each way of changing nothing.
NO_OPS = {
    "strength 0": intervene.direction("add", VECTOR, **at(strength=0.0)),
    "fraction 0": intervene.direction("add", VECTOR, **at(strength=0.0, unit="fraction")),
    "scale 1": intervene.direction("scale", VECTOR, **at(strength=1.0)),
    "project 0": intervene.direction("project_out", VECTOR, **at(strength=0.0)),
    "no direction": intervene.direction("project_out", np.zeros(WIDTH), **at()),
    "clamp without bounds": intervene.clamp(VECTOR, **at()),
    "clamp within bounds": intervene.clamp(VECTOR, -1e6, 1e6, **at()),
    "clamp without direction": intervene.clamp(np.zeros(WIDTH), 5.0, 5.0, **at()),
    "patch of no rows": intervene.patch(PER_ROW[:, None], True, **at(rows=0.0)),
    "empty mask": intervene.direction("set", VECTOR, **at(positions=np.zeros(4, bool))),
    "no rows": intervene.direction("set", VECTOR, **at(rows=0.0)),
    "no positions": intervene.direction("set", VECTOR, **at(positions=(3, 3))),
    "no phase": intervene.direction("set", VECTOR, **at(phase="generated")),
    "latents add 0": intervene.latents("add", 0.0, **SAE, **at()),
    "latents scale 1": intervene.latents("scale", 1.0, **SAE, **at()),
    "silent latents": intervene.latents("scale", 5.0, **SAE, **at(threshold=1e9)),
}


# Where attention and MLP stand side by side, the sites alone: the ways do not know of blocks.
@pytest.mark.parametrize(
    ("name", "why"),
    [
        *(("gemma3", why) for why in (*no_ops_of_sites("gemma3"), *NO_OPS)),
        *(("neox", why) for why in no_ops_of_sites("neox")),
    ],
)
def test_what_changes_nothing_is_bit_identical(name, why):
    last = tiny(name)[0].n_layers - 1
    taps = [Tap(0), Tap(1), Tap(last), Tap(last, "final_norm")]
    edit = (no_ops_of_sites(name) | NO_OPS)[why]
    before, after = read((), taps, name=name), read([edit], taps, name=name)
    for tap in taps:
        np.testing.assert_array_equal(after[tap], before[tap])


def test_what_changes_nothing_is_bit_identical_in_parts(monkeypatch):
    taps = [Tap(1), Tap(3, "final_norm")]
    rows = [slice(i, i + 1) for i in range(BATCH)]
    monkeypatch.setattr(capturing, "_parts", lambda batch, time: rows)
    capturing._capture.clear_cache()
    before = read((), taps)
    every = no_ops_of_sites("gemma3") | NO_OPS
    after = read([every[why] for why in ("at mlp_hidden", "strength 0", "silent latents")], taps)
    capturing._capture.clear_cache()
    for tap in taps:
        np.testing.assert_array_equal(after[tap], before[tap])


def test_what_changes_nothing_is_bit_identical_in_bfloat16():
    config, params = tiny("gemma3")
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    tokens, mask = ragged(config, BATCH, TIME, "right")
    taps = [Tap(1), Tap(3, "final_norm")]
    before = capture(config, params, tokens, mask, taps)
    sites = no_ops_of_sites("gemma3")
    some = [NO_OPS[why] for why in ("fraction 0", "clamp within bounds", "silent latents")]
    for edits in (list(sites.values()), some):
        after = capture(config, params, tokens, mask, taps, edits)
        for tap in taps:
            assert after[tap].dtype == jnp.bfloat16
            np.testing.assert_array_equal(after[tap], before[tap])


def test_nothing_before_the_site_changes_and_everything_after_does():
    order = [Tap(layer, s) for layer in range(4) for s in decoder.SITES if s != "final_norm"]
    order.append(Tap(3, "final_norm"))
    before = read((), order)
    for i, tap in enumerate(order):
        edit = intervene.direction("add", wide(tap.site), layer=tap.layer, site=tap.site)
        after = read([edit], order)
        for earlier in order[:i]:
            np.testing.assert_array_equal(after[earlier], before[earlier])
        assert (np.asarray(after[tap]) != before[tap]).all(axis=-1).any()
        assert (np.asarray(after[order[-1]]) != before[order[-1]]).any()


def test_several_act_in_their_order():
    h, mask = plain()
    add = intervene.direction("add", VECTOR, **at())
    double = intervene.direction("scale", VECTOR, **at(strength=2.0))
    found = np.asarray(read([add, double])[TAP])
    np.testing.assert_allclose(found[mask], 2 * (h + VECTOR)[mask], atol=2e-5)
    found = np.asarray(read([double, add])[TAP])
    np.testing.assert_allclose(found[mask], (2 * h + VECTOR)[mask], atol=2e-5)


def test_changing_an_intervention_does_not_compile_again():
    read([intervene.direction("add", VECTOR, **at())])
    before = capturing._capture._cache_size()
    for other in (
        intervene.direction("project_out", PER_ROW, layer=3, strength=np.ones(3)),
        intervene.direction("set", VECTOR, layer=0, positions=(1, 2), phase="prompt"),
        intervene.direction("add", VECTOR, layer=2, unit="fraction", rows=[0, 1, 0.5]),
        intervene.clamp(VECTOR, -1.0, np.ones(3), layer=1),
        intervene.direction("add", VECTOR, layer=2, positions=np.arange(7) % 2 == 0),
    ):
        read([other])
    assert capturing._capture._cache_size() == before
    # What is compiled has room for as many positions as the pass: patches differ in none of it.
    sizes = []
    for values in (PER_ROW[:, None], np.ones((BATCH, TIME, WIDTH)), np.ones((4, WIDTH))):
        read([intervene.patch(values, True, layer=2, positions=(0, 1))])
        sizes.append(capturing._capture._cache_size())
    assert sizes == 3 * sizes[:1] and before > 0
    read([intervene.latents("add", 1.0, **SAE, layer=1)])
    before = capturing._capture._cache_size()
    read(
        [
            intervene.latents(
                "clamp",
                np.ones((BATCH, M)),
                **{name: -array for name, array in SAE.items()},
                layer=2,
                threshold=np.arange(M),
                unit_norm=True,
                rows=[1, 0, 0.5],
                positions=(1, 3),
                phase="prompt",
            )
        ]
    )
    assert capturing._capture._cache_size() == before


def test_gradients_flow_through_vectors_and_latents():
    config, params = tiny("gemma3")
    tokens, mask = map(jnp.asarray, ragged(config, BATCH, TIME, "right"))
    lengths = np.asarray(mask.sum(axis=1))

    def loss(numbers):
        vector, strength, value, low, values = numbers
        edits = prepare(
            config,
            [
                intervene.direction("add", vector, **at(strength=strength, unit="fraction")),
                intervene.latents("add", value, **SAE, layer=2),
                intervene.clamp(vector, low, layer=2),
                intervene.patch(values, True, layer=0, site="z", rows=0.5, positions=(0, 1)),
            ],
            lengths,
            TIME,
        )
        positions = decoder.positions_of(mask)

        def visit(site, layer, h):
            return intervene.apply(edits, site, layer, h, positions, jnp.zeros_like(mask))

        h = decoder.normed(config, params, tokens, mask, visit)
        return jnp.sum(jnp.where(mask[..., None], jnp.sin(h), 0.0))

    values = jnp.asarray(RNG.normal(size=(TIME, 64)), jnp.float32)
    # Far above every projection, so that none is near the clamp's kink.
    numbers = (jnp.asarray(VECTOR), jnp.asarray(0.3), jnp.full(M, 0.2), jnp.asarray(90.0), values)
    with jax.default_matmul_precision("highest"):
        check_grads(loss, (numbers,), order=1, modes="rev", eps=1e-2, rtol=2e-2)
        gradients = jax.grad(loss)(numbers)
    assert all(jnp.any(g != 0) and jnp.all(jnp.isfinite(g)) for g in gradients)


@pytest.mark.parametrize("zero", ["embedding", "ablated"])
def test_gradients_are_finite_where_activations_are_zero(zero):
    config, params = tiny("gemma3", 2)
    tokens, mask = jnp.full((1, 4), 7), jnp.ones((1, 4), bool)

    def loss(numbers):
        embed, vector = numbers
        layer = 0 if zero == "embedding" else 1
        where = [{"layer": layer, "site": "resid_pre", "positions": (i, i + 1)} for i in range(3)]
        edits = [
            intervene.direction("add", vector, **where[0]),
            intervene.direction("add", vector, unit="fraction", **where[1]),
            intervene.latents("add", vector[:M], **SAE, unit_norm=True, **where[2]),
        ]
        if zero == "ablated":
            add = intervene.direction("add", vector, layer=0, site="resid_pre")
            edits = [add, intervene.ablate(layer=1, site="resid_pre", positions=(0, 3)), *edits]
        return jnp.sum(next_token_loss(config, params | {"embed": embed}, tokens, mask, edits))

    embed = params["embed"].at[7].set(0.0) if zero == "embedding" else params["embed"]
    for gradient in jax.grad(loss)((embed, jnp.asarray(VECTOR))):
        assert jnp.all(jnp.isfinite(gradient)) and jnp.any(gradient != 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: intervene.direction("add", VECTOR, layer=4), "layer 4"),
        (lambda: intervene.direction("add", VECTOR, layer=-1), "layer -1"),
        (lambda: intervene.direction("add", VECTOR, layer=0, site="final_norm"), "no final_norm"),
        (lambda: intervene.direction("add", VECTOR, layer=0, site="attn"), "site 'attn'"),
        (lambda: intervene.direction("ad", VECTOR, layer=0), "mode 'ad'"),
        (lambda: intervene.direction("add", VECTOR, layer=0, unit="norm"), "unit 'norm'"),
        (
            lambda: intervene.direction("project_out", VECTOR, layer=0, unit="fraction"),
            "mode project_out has the unit fraction",
        ),
        (lambda: intervene.direction("add", VECTOR, layer=0, phase="end"), "phase 'end'"),
        (lambda: intervene.direction("add", 1.0, layer=0), r"vector has shape \(\)"),
        (lambda: intervene.ablate(VECTOR, layer=0, site="z"), r"vector has shape \(32,\).*64"),
        (lambda: intervene.direction("clamp", VECTOR, layer=0), "mode 'clamp'"),
        (lambda: intervene.clamp(VECTOR, 2.0, 1.0, layer=0), "low is above high"),
        (lambda: intervene.clamp(VECTOR, np.nan, layer=0), "low holds NaN"),
        (lambda: intervene.patch(VECTOR, True, layer=0), r"values has shape \(32,\)"),
        (
            lambda: intervene.patch(PER_ROW[:, None, 1:], True, layer=0),
            r"values has shape \(3, 1, 31\)",
        ),
        (lambda: intervene.patch(PER_ROW * np.inf, True, layer=0), "values holds NaN"),
        (lambda: intervene.patch(PER_ROW, np.ones(2, bool), layer=0), r"mask has shape \(2,\)"),
        (
            lambda: intervene.patch(PER_ROW, np.ones((3, 3), bool), layer=0),
            r"mask has shape \(3, 3\) for values of shape \(3, 32\)",
        ),
        (lambda: intervene.patch(PER_ROW, 1.0, layer=0), "mask holds float64, not booleans"),
        (lambda: intervene.ablate(layer=0, positions=(1, 2, 3)), "tuple of 3"),
        (lambda: intervene.ablate(layer=0, positions=(-1, 10**6)), "starts below 0"),
        (lambda: intervene.ablate(layer=0, positions=(3, -1)), "ends before its start"),
        (lambda: intervene.ablate(layer=0, positions=([0, 4, 0], 3)), "ends before its start"),
        (
            lambda: intervene.ablate(layer=0, positions=[1, 2]),
            "neither a tuple .start, end. nor a mask",
        ),
        (lambda: intervene.ablate(layer=0, positions=(0, 2.5)), "end is 2.5, not whole numbers"),
        (
            lambda: intervene.ablate(layer=0, positions=(0, None)),
            r"positions is \(0, None\), and None is no position; give .* whole numbers",
        ),
        (lambda: intervene.ablate(layer="0"), "layer '0', which is no whole number"),
        (lambda: intervene.ablate(layer=[0, 1]), r"layer \[0, 1\], which is no whole number"),
        (lambda: intervene.ablate(layer=1.5), "layer 1.5, which is no whole number"),
        (lambda: intervene.ablate([[1.0], [1.0, 2.0]], layer=0), "vector is not an array of num"),
        (lambda: intervene.ablate(layer=0, rows="all"), "rows is not an array of numbers"),
        (
            lambda: intervene.ablate(layer=0, positions=np.ones((2, 9), bool)),
            r"positions has shape \(2, 9\)",
        ),
        (lambda: intervene.direction("add", VECTOR[:-1], layer=0), r"vector has shape \(31,\)"),
        (lambda: intervene.direction("add", PER_ROW[:2], layer=0), r"vector has shape \(2, 32\)"),
        (lambda: intervene.direction("add", VECTOR * np.nan, layer=0), "vector holds NaN"),
        (lambda: intervene.direction("add", VECTOR, layer=0, strength=np.inf), "strength holds"),
        (lambda: intervene.direction("add", VECTOR, layer=0, rows=[1, 0]), "rows has shape"),
        (
            lambda: intervene.latents("add", 1.0, **SAE | {"w_dec": SAE["w_dec"].T}, layer=0),
            "w_dec has shape",
        ),
        (lambda: intervene.latents("set", 1.0, **SAE, layer=0), "mode 'set'"),
        (
            lambda: intervene.latents("add", 1.0, **SAE | {"w_enc": np.float32(1)}, layer=0),
            "w_enc has shape",
        ),
        (
            lambda: intervene.latents(
                "add", np.ones(M), **SAE | {"w_enc": SAE["w_enc"].T}, layer=0
            ),
            r"w_enc has shape \(32, 5\), that is \[d_in, m\] as in SAELens",
        ),
    ],
)
def test_bad_interventions_are_refused_before_compiling(make, message, monkeypatch):
    monkeypatch.setattr(capturing, "_dispatch", None)
    with pytest.raises(UserError, match=message) as error:
        read([make()])
    assert "\n" not in str(error.value)


def test_what_is_no_list_of_interventions():
    with pytest.raises(UserError, match="where a list of them is needed"):
        check_kind(intervene.ablate(layer=0))
    with pytest.raises(UserError, match="Intervention 2 of 2 is a ndarray; make it by"):
        check_kind([intervene.ablate(layer=0), VECTOR])


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"rows": 2}, "rows holds 2; give each row's weight, from 0"),
        ({"rows": [0, 2]}, "rows holds 2; give each row's weight, from 0"),
        ({"rows": [0, 1.5, 1]}, "rows holds 1.5; give each row's weight"),
        ({"rows": jnp.array(-0.5)}, "rows holds -0.5; give each row's weight"),
        ({"rows": [1, 0]}, r"rows has shape \(2,\), .*; give one number or \(3,\)"),
        ({"strength": [1, 2]}, r"strength has shape \(2,\), .*; give one number or \(3,\)"),
        ({"positions": ([0, 1], 5)}, r"start has shape \(2,\), .*; give one number or \(3,\)"),
        ({"positions": (0, 2.5)}, "end is 2.5, not whole numbers"),
        ({"layer": None}, "layer None, which is no whole number"),
        ({"layer": [0, 1]}, r"layer \[0, 1\], which is no whole number"),
        ({"layer": 1.5}, "layer 1.5, which is no whole number"),
    ],
)
def test_weights_shapes_and_layers_of_another_kind(where, message, monkeypatch):
    monkeypatch.setattr(capturing, "_dispatch", None)
    with pytest.raises(UserError, match=message):
        read([intervene.direction("add", VECTOR, **at(**where))])
