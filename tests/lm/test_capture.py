import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import ragged, tiny, tiny_lm

from emojax.errors import UserError
from emojax.lm import capture as capturing
from emojax.lm import decoder, intervene
from emojax.lm.batching import batches, check_rows, check_tokens, pad
from emojax.lm.capture import Tap, capture, last_token, stream

pytestmark = pytest.mark.smoke


def every_site(config, params, tokens, mask):
    """All sites of all layers, from a plain pass without a loop over traced layers."""
    found = {}

    def visit(site, layer, h):
        jax.debug.callback(lambda layer, h: found.update({(int(layer), site): h}), layer, h)
        return h

    decoder.normed(config, params, jnp.asarray(tokens), jnp.asarray(mask), visit)
    jax.effects_barrier()
    return found


@pytest.mark.parametrize("name", ["gemma3", "llama_mha"])
def test_every_site_of_every_layer(name):
    config, params = tiny(name)
    tokens, mask = ragged(config, 3, 12, "left")
    expected = every_site(config, params, tokens, mask)
    sites = [s for s in decoder.SITES if s != "final_norm"]
    taps = [Tap(layer, site) for layer in range(config.n_layers) for site in sites]
    taps.append(Tap(config.n_layers - 1, "final_norm"))
    read = capture(config, params, tokens, mask, taps)
    assert list(read) == taps and len(expected) == len(taps)
    for tap in taps:
        np.testing.assert_allclose(read[tap][mask], expected[tap][mask], atol=1e-5)
    for layer in range(config.n_layers):
        found = {site: np.asarray(read[Tap(layer, site)]) for site in sites}
        for site, values in found.items():
            assert values.shape == (*mask.shape, decoder.site_width(config, site))
        mid = found["resid_pre"] + found["attn_out"]
        np.testing.assert_allclose(mid, found["resid_mid"], atol=1e-6)
        post = found["resid_mid"] + found["mlp_out"]
        np.testing.assert_allclose(post, found["resid_post"], atol=1e-6)
        if not config.post_norms:
            p = {name: np.asarray(a[layer]) for name, a in params["layers"].items()}
            np.testing.assert_allclose(found["z"] @ p["o"], found["attn_out"], atol=1e-5)
            np.testing.assert_allclose(found["mlp_hidden"] @ p["down"], found["mlp_out"], atol=1e-5)


@pytest.mark.parametrize("at_once", [2, 4])
def test_rows_may_go_through_a_layer_in_parts(at_once, monkeypatch):
    config, params = tiny("gemma3")
    tokens, mask = ragged(config, 6, 9, "right")
    vectors = np.random.default_rng(0).normal(size=(6, config.d_model))
    edits = [
        intervene.direction(
            "add", vectors, layer=1, strength=np.arange(6), rows=[1, 0, 1, 1, 0, 1]
        ),
        intervene.patch(vectors[:, None], True, layer=2, site="attn_out", positions=(0, 1)),
        intervene.latents(
            "clamp",
            np.ones((6, 4)),
            layer=0,
            w_enc=vectors[:4],
            b_enc=np.ones(4),
            w_dec=vectors[:4],
        ),
    ]
    taps = [Tap(0), Tap(2, "mlp_hidden"), Tap(3, "final_norm"), Tap(1, "z")]
    whole = capture(config, params, tokens, mask, taps, edits)
    parts = [slice(i, i + at_once) for i in range(0, 6, at_once)]
    monkeypatch.setattr(capturing, "_parts", lambda batch, time: parts)
    capturing._capture.clear_cache()
    found = capture(config, params, tokens, mask, taps, edits)
    capturing._capture.clear_cache()
    for tap in taps:
        expected = whole[tap][mask]
        # The edits make a residual of up to 50; a processor may round parts of a batch otherwise.
        np.testing.assert_allclose(found[tap][mask], expected, atol=1e-5 * abs(expected).max())


def test_parts_are_few_and_all_of_the_batch():
    for batch in range(1, 40):
        for time in (1, 8, 128, 300, 2000):
            parts = capturing._parts(batch, time)
            assert [row for rows in parts for row in range(batch)[rows]] == list(range(batch))
            assert len(parts) <= 8
            size = parts[0].stop
            assert size * time <= 512 or size in (1, -(-batch // 8))


def test_other_layers_do_not_compile_again():
    config, params = tiny("gemma3")
    tokens, mask = ragged(config, 2, 11, "right")
    capture(config, params, tokens, mask, [Tap(0), Tap(2, "resid_mid")])
    before = capturing._capture._cache_size()
    for a, b in ((1, 0), (3, 3), (2, 1)):
        capture(config, params, tokens, mask, [Tap(b, "resid_mid"), Tap(a)])
    assert capturing._capture._cache_size() == before > 0
    wide = [[Tap(i, "z") for i in layers] for layers in ((0, 1), (3, 1), (2, 3))]
    for taps in wide:
        capture(config, params, tokens, mask, taps)
    assert capturing._capture._cache_size() == before + 1


def test_memory_does_not_grow_with_depth():
    def temporary(n_layers, sites):
        config, params = tiny("gemma3", n_layers=n_layers)
        tokens, mask = map(jnp.asarray, ragged(config, 4, 64, "right"))
        wanted = {site: jnp.zeros(1, jnp.int32) for site in sites}
        lowered = capturing._capture.lower(config, params, tokens, mask, wanted, ())
        return lowered.compile().memory_analysis().temp_size_in_bytes

    buffer = 4 * 64 * 32 * 4
    one, same = temporary(2, ("resid_post",)), temporary(12, ("resid_post",))
    assert abs(same - one) < buffer / 4
    three = temporary(12, ("resid_post", "resid_mid", "attn_out"))
    assert three - one < 4 * buffer
    # All layers, as `run_with_cache` goes through them.
    through = temporary(2, ("final_norm",)), temporary(12, ("final_norm",))
    assert abs(through[1] - through[0]) < buffer / 4


def test_a_stream_holds_every_token_once(tmp_path):
    lm = tiny_lm("gemma3", tmp_path)
    rng = np.random.default_rng(1)
    rows = [rng.integers(3, 97, n).tolist() for n in (3, 40, 9, 1, 20, 17, 33, 8)]
    taps = [Tap(2), Tap(0, "resid_mid")]
    parts = list(stream(lm, rows, taps, batch_tokens=64))
    assert len(parts) > 2
    seen = []
    for part in parts:
        assert list(part) == taps
        for row in np.unique(part[Tap(2)].rows):
            seen.append(int(row))
            tokens = np.array([rows[row]], np.int32)
            alone = capture(lm.config, lm.params, tokens, np.ones_like(tokens, bool), taps)
            for tap in taps:
                own = part[tap].rows == row
                np.testing.assert_array_equal(part[tap].token_ids[own], rows[row])
                np.testing.assert_array_equal(part[tap].positions[own], np.arange(len(rows[row])))
                np.testing.assert_allclose(part[tap].values[own], alone[tap][0], atol=1e-5)
    assert sorted(seen) == list(range(len(rows)))


def test_last_tokens_are_in_the_rows_order(tmp_path, capsys):
    lm = tiny_lm("llama_gqa_tied", tmp_path)
    rng = np.random.default_rng(2)
    rows = [rng.integers(3, 97, n).tolist() for n in (30, 2, 9, 8, 1)]
    taps = [Tap(1), Tap(2, "final_norm")]
    both = last_token(lm, rows, taps, label="words")
    assert "words" in capsys.readouterr().err
    single = last_token(lm, rows, Tap(1))
    assert not capsys.readouterr().err
    np.testing.assert_array_equal(single, both[Tap(1)])
    assert single.dtype == np.float32
    for i, row in enumerate(rows):
        tokens = np.array([row], np.int32)
        alone = capture(lm.config, lm.params, tokens, np.ones_like(tokens, bool), taps)
        for tap in taps:
            np.testing.assert_allclose(both[tap][i], alone[tap][0, -1], atol=1e-5)


# Of lengths that fall into batches of several shapes, and not in their order.
LENGTHS = (9, 3, 20, 4, 1, 10, 17, 2, 12, 3)
RNG = np.random.default_rng(5)
VECTORS = RNG.normal(size=(len(LENGTHS), 32)).astype(np.float32)
SAE = {"w_enc": VECTORS[:5], "b_enc": np.ones(5), "w_dec": VECTORS[5:]}


def every_kind(shift=0):
    """Interventions that hold something of each row; another shift has other rows and layers."""
    n, layer = np.roll(np.arange(len(LENGTHS)), shift), (np.arange(4) + shift) % 4
    chosen = RNG.random((len(LENGTHS), 20)) < 0.5
    values = RNG.normal(size=(len(LENGTHS), 4, 32)).astype(np.float32)
    real = np.arange(4) < np.minimum(LENGTHS, 4)[:, None]
    first = (0, np.minimum(LENGTHS, 4))
    return [
        intervene.patch(values[2], True, layer=layer[0], positions=first, rows=n % 2),
        intervene.patch(values, real, layer=layer[1], site="attn_out", positions=(0, 4)),
        intervene.direction("set", VECTORS[0], layer=layer[1], positions=chosen, rows=n % 2 / 2),
        intervene.clamp(VECTORS[1], -n / 10.0, n / 10.0, layer=layer[2], positions=(1, 3 + n)),
        intervene.latents("add", RNG.random((len(LENGTHS), 5)), **SAE, layer=layer[3]),
        intervene.direction(
            "add",
            VECTORS[n],
            layer=layer[0],
            strength=1.0 + n,
            rows=n % 3 / 2,
            positions=(n % 4, 3 + n),
        ),
    ]


def test_interventions_on_rows_of_a_list_as_on_one_batch(tmp_path):
    lm = tiny_lm("gemma3", tmp_path)
    rows = [RNG.integers(3, 97, n).tolist() for n in LENGTHS]
    taps = [Tap(i) for i in range(4)]
    tokens, mask = pad(rows, len(rows), max(LENGTHS))
    edits = every_kind()
    whole = capture(lm.config, lm.params, tokens, mask, taps, edits)
    seen = np.zeros(len(rows), int)
    for part in stream(lm, rows, taps, batch_tokens=64, interventions=edits):
        for tap in taps:
            read = part[tap]
            expected = np.asarray(whole[tap])[read.rows, read.positions]
            np.testing.assert_allclose(read.values, expected, atol=1e-5 * abs(expected).max())
        assert len(np.unique(read.rows)) < len(rows)
        seen += np.bincount(read.rows, minlength=len(rows))
    assert tuple(seen) == LENGTHS
    plain = last_token(lm, rows, taps)
    last = last_token(lm, rows, taps, interventions=edits)
    for tap in taps:
        expected = np.asarray(whole[tap])[np.arange(len(rows)), np.array(LENGTHS) - 1]
        np.testing.assert_allclose(last[tap], expected, atol=1e-5 * abs(expected).max())
    assert (last[Tap(3)] != plain[Tap(3)]).any(axis=1).all()
    # Other layers, rows, positions and numbers of the same kinds compile nothing new.
    before = capturing._capture._cache_size()
    for shift in (1, 2):
        other = last_token(lm, rows, taps, interventions=every_kind(shift))
        assert (other[Tap(3)] != last[Tap(3)]).any(axis=1).all()
        list(stream(lm, rows, taps, batch_tokens=64, interventions=every_kind(shift)))
    assert capturing._capture._cache_size() == before


def test_interventions_that_do_not_fit_a_list_of_rows(monkeypatch, tmp_path):
    never_compiled(monkeypatch)
    lm = tiny_lm("gemma3", tmp_path)
    rows = [[3] * n for n in LENGTHS]
    for edit, message in (
        (intervene.direction("add", VECTORS[:4], layer=1), r"shape \(4, 32\), .* \(10, 32\)"),
        (intervene.ablate(layer=4), "layer 4"),
        (intervene.ablate(layer=1, positions=(0, [-1] * 10)), "ends before its start"),
        (intervene.patch(VECTORS[:3], True, layer=1), "row 0 has 9 tokens and .* gets 3"),
        (intervene.ablate(layer=1, rows=[1.0] * 9 + [np.nan]), "rows holds NaN"),
    ):
        with pytest.raises(UserError, match=message):
            next(stream(lm, rows, [Tap(1)], interventions=[edit]))
        with pytest.raises(UserError, match=message):
            last_token(lm, rows, Tap(1), interventions=[edit])


def test_batches_have_few_shapes_and_waste_little():
    rng = np.random.default_rng(3)
    rows = [[3] * n for n in rng.integers(1, 300, 500)]
    found = batches(rows, 2048)
    assert sorted(np.concatenate([b.rows for b in found])) == list(range(500))
    assert all(b.tokens.size <= 2048 for b in found)
    assert len({b.tokens.shape for b in found}) <= 30
    assert sum(b.tokens.size for b in found) < 1.45 * sum(map(len, rows))
    assert all(b.mask[: len(b.rows)].any(axis=1).all() for b in found)


@pytest.mark.parametrize("rows", [[2, 9, 10], [[2.7, 3.2]], [[[2], [3]]], [[2, [3]]], [None]])
def test_what_is_no_row_of_tokens(rows):
    with pytest.raises(UserError, match=r"Row 0 of the input is .*, which is no row of token ids"):
        check_rows(tiny("gemma3")[0], rows)


def test_a_text_is_no_row_of_tokens():
    with pytest.raises(UserError, match=r"Row 1 of the input is a text; give its tokens"):
        check_rows(tiny("gemma3")[0], [[3], "a text"])


def never_compiled(monkeypatch):
    def fail(*args):
        raise AssertionError("compiled before the input was checked")

    monkeypatch.setattr(capturing, "_dispatch", fail)


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ([], "No tap"),
        ([Tap(4)], "layer 4"),
        ([Tap(-1)], "layer -1"),
        ([Tap(1, "middle")], "'middle'"),
        ([Tap(1, "final_norm")], "no final_norm"),
    ],
)
def test_taps_that_do_not_exist(taps, message, monkeypatch):
    never_compiled(monkeypatch)
    config, params = tiny("gemma3")
    with pytest.raises(UserError, match=message):
        capture(config, params, np.ones((1, 4), np.int32), np.ones((1, 4), bool), taps)


TOKENS, MASK = np.full((2, 4), 3), np.ones((2, 4), bool)


@pytest.mark.parametrize(
    ("tokens", "mask", "message"),
    [
        (TOKENS[0], MASK[0], r"The tokens have shape \(4,\)"),
        (TOKENS, MASK[:, :3], r"mask has shape \(2, 3\) and the tokens \(2, 4\)"),
        (TOKENS, MASK[:1], r"mask has shape \(1, 4\)"),
        (TOKENS, MASK.astype(np.int32), "mask holds int32, not booleans"),
        (TOKENS.astype(np.float32), MASK, "tokens hold float32, not token ids"),
        (MASK, MASK, "tokens hold bool, not token ids"),
        (TOKENS.tolist(), MASK, "A list was given for the tokens"),
        (TOKENS, MASK.tolist(), "A list was given for the mask"),
    ],
)
def test_tokens_and_masks_of_another_shape_or_type(tokens, mask, message):
    config, _ = tiny("gemma3")
    with pytest.raises(UserError, match=message):
        check_tokens(config, tokens, mask)
    with pytest.raises(UserError, match=message):  # traced
        jax.eval_shape(lambda *arrays: check_tokens(config, *arrays), tokens, mask)


def test_batches_without_room(monkeypatch, tmp_path):
    never_compiled(monkeypatch)
    lm = tiny_lm("gemma3", tmp_path)
    for tokens in (0, -1, 2.5):
        with pytest.raises(UserError, match="whole number from 1"):
            # Unwrapped, as a user calls it: the tests check annotations at every call.
            next(inspect.unwrap(stream)(lm, [[3]], [Tap(1)], batch_tokens=tokens))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "no tokens"),
        ([3] * 129, "context of 128"),
        ([97], "outside 0 to 96"),
        ([-1], "outside"),
    ],
)
def test_rows_that_cannot_be_read(row, message, monkeypatch, tmp_path):
    never_compiled(monkeypatch)
    lm = tiny_lm("gemma3", tmp_path)
    with pytest.raises(UserError, match=message):
        next(stream(lm, [[3], row], [Tap(1)]))
    with pytest.raises(UserError, match=f"Row 1.*{message}"):
        last_token(lm, [[3], row], Tap(1))
    tokens = np.zeros((2, 130), np.int32)
    tokens[1, : len(row)] = row
    mask = np.arange(130) < np.array([[1], [len(row)]])
    with pytest.raises(UserError, match=message):
        capture(lm.config, lm.params, tokens, mask, [Tap(1)])


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (Tap(1), "is a single tap where a list is needed"),
        ("blocks.1.hook_resid_post", "is a single tap where a list is needed"),
        ((1, "resid_post"), "^1 among the taps is no Tap"),
        ([Tap(1), (1, "resid_post")], r"\(1, 'resid_post'\) among the taps is no Tap"),
        (["blocks.1.hook_resid_post"], "among the taps is no Tap; write it as Tap"),
        ([Tap(1.5)], "layer 1.5, which is no whole number"),
        ([Tap(None)], "layer None, which is no whole number"),
        ([Tap([0, 1])], r"layer \[0, 1\], which is no whole number"),
    ],
)
def test_what_is_no_list_of_taps(taps, message, monkeypatch, tmp_path):
    never_compiled(monkeypatch)
    lm = tiny_lm("gemma3", tmp_path)
    # Unwrapped, as a user calls them: the tests check annotations at every call.
    with pytest.raises(UserError, match=message):
        inspect.unwrap(capture)(lm.config, lm.params, TOKENS, MASK, taps)
    if not isinstance(taps, Tap):  # which `last_token` takes
        with pytest.raises(UserError, match=message):
            inspect.unwrap(last_token)(lm, [[3]], taps)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_pass_runs_no_layer_after_the_last_one_asked_for(parts, monkeypatch):
    config, params = tiny("gemma3_untied")
    tokens, mask = ragged(config, 4, 7, "right")
    rows = [slice(i, i + 4 // parts) for i in range(0, 4, 4 // parts)]
    run = []

    def counted(config, p, layer, *rest, block=decoder.block):
        jax.debug.callback(lambda layer: run.append(int(layer)), layer)
        return block(config, p, layer, *rest)

    monkeypatch.setattr(decoder, "block", counted)
    monkeypatch.setattr(capturing, "_parts", lambda batch, time: rows)
    capturing._capture.clear_cache()
    without = {name: array for name, array in params.items() if name != "unembed"}
    for taps in ([Tap(1)], [Tap(0)], [Tap(2)], [Tap(3)], [Tap(2), Tap(0)]):
        run.clear()
        jax.block_until_ready(capture(config, without, tokens, mask, taps))
        jax.effects_barrier()
        last = max(tap.layer for tap in taps)
        assert sorted(run) == sorted(list(range(last + 1)) * parts), taps
    capturing._capture.clear_cache()
