import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import ragged, tiny, tiny_lm

from emojax.errors import UserError
from emojax.lm import decoder, intervene
from emojax.lm import generate as generating
from emojax.lm.generate import GenerateSettings, generate

pytestmark = pytest.mark.smoke

GREEDY = GenerateSettings(max_new_tokens=20, temperature=0.0, stop_tokens=())
DRAWN = dataclasses.replace(GREEDY, temperature=1.0)
ROWS = [[2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13], [2, 50], [2, 9, 8, 7, 6]]


@pytest.fixture(params=["gemma3", "llama_gqa_tied"])
def lm(request, tmp_path):
    return tiny_lm(request.param, tmp_path)


def log_softmax(lm, row):
    tokens = jnp.asarray([row])
    logits = decoder.logits(lm.config, lm.params, tokens, jnp.ones_like(tokens, bool))
    return np.asarray(jax.nn.log_softmax(logits[0]))


def test_greedy_is_what_full_passes_give(lm):
    written = generate(lm, ROWS, GREEDY)
    for row, new, logprobs in zip(ROWS, written.tokens, written.logprobs, strict=True):
        assert len(new) == len(logprobs) == 20
        full = log_softmax(lm, row + new)[len(row) - 1 : -1]
        assert new == full.argmax(axis=-1).tolist()
        np.testing.assert_allclose(logprobs, full.max(axis=-1), atol=1e-5)
    assert written.texts[1] == " ".join(map(str, written.tokens[1]))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["gemma3", "gpt2"])  # the others: test_parity
def test_cached_steps_are_the_full_pass(name, side):
    config, params = tiny(name)
    tokens, mask = map(jnp.asarray, ragged(config, 3, 12, side))
    new = jnp.asarray(np.random.default_rng(5).integers(3, 97, (3, 9)))
    mask = jnp.concatenate([mask, jnp.ones((3, 9), bool)], axis=1)
    tokens = jnp.concatenate([tokens, new], axis=1)
    prefill = jax.jit(generating.prefill, static_argnums=(0, 4))
    step = jax.jit(generating.decode_step, static_argnums=(0, 3))
    layers = decoder.by_layer(params) if side == "left" else params
    with jax.default_matmul_precision("highest"):
        full = decoder.logits(config, params, tokens, mask)
        h, cache = prefill(config, params, tokens[:, :12], mask[:, :12], 21)
        last = [int(np.flatnonzero(row[:12])[-1]) for row in mask]
        found = decoder.unembed(config, params, h)
        np.testing.assert_allclose(found, full[jnp.arange(3), jnp.asarray(last)], atol=1e-5)
        for slot in range(12, 21):
            h, cache = step(config, layers, tokens[:, slot], 21, cache)
            found = decoder.unembed(config, params, h)
            np.testing.assert_allclose(found, full[:, slot], atol=1e-5)
    np.testing.assert_array_equal(cache.lengths, mask.sum(axis=1))


def test_windows_bound_the_memory_of_their_layers():
    def numbers(slots):
        config, params = tiny("gemma3")
        tokens = jnp.ones((2, 4), jnp.int32)
        prefill = functools.partial(generating.prefill, config, params)
        _, cache = jax.eval_shape(lambda t: prefill(t, t > 0, slots), tokens)
        return [sum(a.size for a in pair) for pair in (cache.whole, cache.ring)], cache

    (whole, ring), cache = numbers(100)
    assert [a.shape for a in cache.whole] == [(2, 2, 2, 100, 16)] * 2
    assert [a.shape for a in cache.ring] == [(2, 2, 2, 8, 16)] * 2
    assert numbers(10_000)[0] == [100 * whole, ring]
    # Where all slots are within the windows there is nothing to save.
    assert numbers(8)[0] == [2 * whole * 8 // 100, 0]


def test_a_row_does_not_depend_on_the_others(lm):
    together = generate(lm, ROWS, DRAWN, seeds=[7, 8, 9])
    for row, seed, new in zip(ROWS, (7, 8, 9), together.tokens, strict=True):
        assert generate(lm, [row], DRAWN, seeds=[seed]).tokens == [new]
    backwards = generate(lm, ROWS[::-1], DRAWN, seeds=[9, 8, 7])
    assert backwards.tokens == together.tokens[::-1]


def test_seeds_count_up_from_the_first(lm):
    settings = dataclasses.replace(DRAWN, seed=3)
    assert generate(lm, ROWS, settings) == generate_equal(lm, [3, 4, 5])
    same = generate(lm, [ROWS[0]] * 2, settings)
    assert same.tokens[0] != same.tokens[1]
    same = generate(lm, [ROWS[0]] * 2, settings, seeds=[1, 1])
    assert same.tokens[0] == same.tokens[1]


def generate_equal(lm, seeds):
    """Compares equal to a generation with the same tokens."""
    tokens = generate(lm, ROWS, DRAWN, seeds=seeds).tokens

    class Same:
        def __eq__(self, other):
            return other.tokens == tokens

    return Same()


def test_stop_tokens_end_their_row_only(lm):
    free = generate(lm, ROWS, GREEDY)
    stop = free.tokens[0][4]
    written = generate(lm, ROWS, dataclasses.replace(GREEDY, stop_tokens=(96, stop)))
    for new, whole, logprobs in zip(written.tokens, free.tokens, written.logprobs, strict=True):
        cut = whole.index(stop) + 1 if stop in whole else len(whole)
        assert new == whole[:cut] and len(logprobs) == cut


def test_the_models_own_stop_token_is_the_default(lm):
    free = generate(lm, ROWS, GREEDY)
    config = dataclasses.replace(lm.config, eos_token_ids=(free.tokens[1][0],))
    written = generate(
        dataclasses.replace(lm, config=config), ROWS, dataclasses.replace(GREEDY, stop_tokens=None)
    )
    assert written.tokens[1] == free.tokens[1][:1]


@pytest.mark.parametrize("how", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_narrow_choices_are_greedy(lm, how):
    written = generate(lm, ROWS, dataclasses.replace(DRAWN, **how))
    assert written.tokens == generate(lm, ROWS, GREEDY).tokens


def test_other_settings_and_interventions_do_not_compile_again(lm):
    vector = np.ones(lm.config.d_model)
    edit = intervene.direction("add", vector, layer=1)
    generate(lm, ROWS, DRAWN, [edit])
    before = generating._generate._cache_size()
    other = GenerateSettings(
        max_new_tokens=30, temperature=0.5, top_k=3, top_p=0.8, repetition_penalty=1.3, seed=9
    )
    edit = intervene.direction("project_out", vector, layer=0, rows=[0, 1, 0], phase="generated")
    written = generate(lm, ROWS, other, [edit])
    assert generating._generate._cache_size() == before
    assert all(len(new) <= 30 for new in written.tokens)


def test_rows_are_steered_on_their_own(lm):
    vector = np.random.default_rng(0).normal(size=lm.config.d_model)
    free = generate(lm, [ROWS[0]] * 3, GREEDY)
    for strength in (np.zeros(3), np.array([0.0, 0.0, 8.0])):
        edit = intervene.direction("add", vector, layer=1, strength=strength, unit="fraction")
        steered = generate(lm, [ROWS[0]] * 3, GREEDY, [edit])
        for i in range(3):
            assert (steered.tokens[i] == free.tokens[i]) == (strength[i] == 0)
            if strength[i] == 0:
                np.testing.assert_array_equal(steered.logprobs[i], free.logprobs[i])


def test_what_changes_nothing_is_bit_identical(lm):
    config = lm.config
    wide = {site: np.ones(decoder.site_width(config, site)) for site in decoder.SITES}
    last, ones = config.n_layers - 1, wide["resid_post"]
    sae = {"w_enc": np.eye(3, len(ones)), "b_enc": np.ones(3), "w_dec": np.eye(3, len(ones))}
    edits = [
        intervene.direction("add", vector, layer=last, site=site, strength=0.0)
        for site, vector in wide.items()
    ]
    edits += [
        intervene.direction("scale", ones, layer=1, strength=1.0),
        intervene.clamp(ones, -1e6, 1e6, layer=1),
        intervene.patch(ones[None], False, layer=1, positions=(0, 0)),
        intervene.latents("scale", 5.0, **sae, layer=1, threshold=1e9),
    ]
    before, after = generate(lm, ROWS, GREEDY), generate(lm, ROWS, GREEDY, edits)
    assert after.tokens == before.tokens
    for now, then in zip(after.logprobs, before.logprobs, strict=True):
        np.testing.assert_array_equal(now, then)


def test_phases_and_positions_of_a_generation(lm):
    """Setting the final norm to a token's embedding makes that token win where the edit acts."""
    embed = np.asarray(lm.params["embed"])
    target = int(np.argmax(np.linalg.norm(embed, axis=1)))
    last = lm.config.n_layers - 1

    def written(**where):
        edit = intervene.direction(
            "set", 99 * embed[target], layer=last, site="final_norm", **where
        )
        return np.array(generate(lm, ROWS, GREEDY, [edit]).tokens)

    def forced(**where):
        return written(**where) == target

    free = np.array(generate(lm, ROWS, GREEDY).tokens) == target
    assert not free.all(axis=1).any()
    assert forced().all()
    # The first new token comes from the prompt's last, all others from generated ones.
    prompt, generated = written(phase="prompt"), forced(phase="generated")
    assert (prompt[:, 0] == target).all()
    follows = np.array(generate(lm, [[*row, target] for row in ROWS], GREEDY).tokens)
    assert (prompt[:, 1:] == follows[:, :-1]).all()
    assert generated[:, 1:].all() and (generated[:, 0] == free[:, 0]).all()
    # New token i of a row comes from its token at position length - 1 + i.
    start = np.array([len(row) + 2 for row in ROWS])
    ranged = forced(positions=(start, start + 2))
    assert ranged[:, 3:5].all() and (ranged[:, :3] == free[:, :3]).all()


def test_prefill_never_holds_all_logits():
    config, params = tiny("gemma3", n_layers=1)
    wide = dataclasses.replace(config, vocab_size=50_000)
    params = params | {"embed": jnp.zeros((50_000, 32))}
    tokens = jnp.ones((4, 64), jnp.int32)
    vector = jnp.ones(4)
    compiled = generating._generate.lower(
        wide,
        32,
        params,
        params,
        tokens,
        jnp.ones((4, 64), bool),
        jnp.asarray(8),
        generating.Run(
            jax.vmap(jax.random.key)(jnp.arange(4)),
            jnp.full(8, -1),
            generating.Sampling(vector[0], jnp.int32(0), vector[0], vector[0]),
            (),
        ),
    ).compile()
    all_logits = 4 * 64 * 50_000 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < all_logits / 2


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompt"),
        ([[2], []], "Row 1 of the input has no tokens"),
        ([[2] * 120], "120 tokens .and 20 to generate.*context of 128"),
        ([[2, 500]], "outside 0 to 96"),
    ],
)
def test_prompts_that_cannot_be_read(prompts, message, tmp_path, monkeypatch):
    monkeypatch.setattr(generating, "_generate", None)
    with pytest.raises(UserError, match=message):
        generate(tiny_lm("gemma3", tmp_path), prompts, GREEDY)


def test_bad_settings_seeds_and_interventions(tmp_path, monkeypatch):
    monkeypatch.setattr(generating, "_generate", None)
    lm = tiny_lm("gemma3", tmp_path)
    for name, value in (
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("repetition_penalty", 0.0),
        ("seed", -1),
        ("seed", 2**32),
    ):
        with pytest.raises(UserError, match=name):
            GenerateSettings(**{name: value})
    with pytest.raises(UserError, match="2 seeds for 3 prompts"):
        generate(lm, ROWS, GREEDY, seeds=[1, 2])
    for seeds in (5, [0.2, 0.7, 0.9], ["1", "2", "3"]):
        with pytest.raises(UserError, match="give a whole number for each prompt"):
            generating.checked_seeds(seeds, 3)
    for seed in (-1, 2**32):
        with pytest.raises(UserError, match=f"A row's seed is {seed};"):
            generate(lm, ROWS, GREEDY, seeds=[1, seed, 2])
    with pytest.raises(UserError, match=f"A row's seed is {2**32};"):
        generate(lm, ROWS, dataclasses.replace(GREEDY, seed=2**32 - 1))
    with pytest.raises(UserError, match="NaN"):
        generate(lm, ROWS, GREEDY, [intervene.ablate(np.full(32, np.nan), layer=0)])


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("max_new_tokens", 4.0, "a whole number"),
        ("top_k", 2.5, "a whole number"),
        ("seed", None, "a whole number"),
        ("temperature", "0.8", "a number"),
        ("top_p", None, "a number"),
        ("stop_tokens", 5, "a tuple of token ids"),
        ("stop_tokens", "end", "a tuple of token ids"),
        ("stop_tokens", ("\n",), "a tuple of token ids"),
        ("stop_tokens", (1.0,), "a tuple of token ids"),
    ],
)
def test_settings_of_another_type(name, value, rule):
    settings = GenerateSettings()
    object.__setattr__(settings, name, value)  # the tests check annotations when one is made
    with pytest.raises(UserError, match=f"setting {name} is .*; make it {rule}"):
        settings.__post_init__()


def test_settings_that_do_not_fit_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(generating, "_generate", None)
    lm = tiny_lm("gemma3", tmp_path)
    for token in (-1, 97):
        with pytest.raises(UserError, match=f"stop token {token} is outside 0 to 96"):
            generate(lm, ROWS, dataclasses.replace(GREEDY, stop_tokens=(3, token)))
    # Unwrapped, as a user calls it: the tests check annotations at every call.
    begin = inspect.unwrap(generating.begin)
    with pytest.raises(UserError, match=r"The settings are a list; .*interventions=\[\.\.\.\]"):
        begin(lm, ROWS, [intervene.ablate(layer=0)], (), None)
    for prompts in ("happy", ROWS[0]):
        with pytest.raises(UserError, match="is a single one; put it in brackets"):
            begin(lm, prompts, GREEDY, (), None)
