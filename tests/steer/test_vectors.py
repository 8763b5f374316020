import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file
from steer_model import CONFIG, tiny_model

from emojax.errors import UserError
from emojax.lm.generate import GenerateSettings, generate
from emojax.steer import vectors
from emojax.steer.vectors import Source, SteeringVector

pytestmark = pytest.mark.smoke

D_MODEL = 6


def place(**changes):
    return {"layer": 3, "site": "resid_post", "fingerprint": "f" * 8} | changes


def test_a_direction_has_norm_one_and_cannot_be_changed():
    vector = SteeringVector("joy", np.array([3.0, 4.0]), 1, "resid_post", Source("random"))
    np.testing.assert_allclose(vector.direction, [0.6, 0.8], rtol=1e-6)
    with pytest.raises(ValueError, match="read-only"):
        vector.direction[0] = 1


@pytest.mark.parametrize(
    ("direction", "problem"),
    [([0.0, 0.0], "zero"), ([np.nan, 1.0], "not finite"), ([np.inf, 1.0], "not finite")],
)
def test_a_direction_without_a_direction_is_refused(direction, problem):
    with pytest.raises(UserError, match=f"joy is {problem}"):
        SteeringVector("joy", np.array(direction), 1, "resid_post", Source("random"))


def test_latents_are_weighted_summed_and_set_apart():
    w_dec = np.eye(D_MODEL, dtype=np.float32)
    joy, fear = vectors.from_latents(w_dec, {"joy": {0: 3.0, 1: 4.0}, "fear": {2: 9.0}}, **place())
    # Unit sums (.6, .8, 0) and (0, 0, 1): with two emotions each is half their difference.
    expected = np.array([0.6, 0.8, -1, 0, 0, 0]) / np.sqrt(2)
    np.testing.assert_allclose(joy.direction, expected, atol=1e-6)
    np.testing.assert_allclose(fear.direction, -expected, atol=1e-6)
    assert joy.source == Source("sae", (0, 1), (3.0, 4.0), "f" * 8)


def test_a_latent_that_all_emotions_share_does_not_steer():
    w_dec = np.eye(D_MODEL, dtype=np.float32)
    found = vectors.from_latents(
        w_dec, {"joy": {0: 1.0, 5: 1.0}, "fear": {1: 1.0, 5: 1.0}}, **place()
    )
    for vector in found:
        assert vector.direction[5] == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(
    ("latents", "problem"),
    [
        ({"joy": {0: 1.0}, "fear": {}}, "fear has no latents"),
        ({"joy": {0: 1.0}, "fear": {D_MODEL: 1.0}}, f"fear names latent {D_MODEL}"),
        ({"joy": {0: 1.0}}, "joy is zero"),
    ],
)
def test_latents_that_make_no_direction_are_refused(latents, problem):
    with pytest.raises(UserError, match=problem):
        vectors.from_latents(np.eye(D_MODEL, dtype=np.float32), latents, **place())


def test_diff_mean_finds_a_planted_direction_despite_massive_norms():
    random = np.random.default_rng(0)
    planted = np.eye(D_MODEL)[:2]
    noise = random.normal(size=(4, 40, D_MODEL)) * 0.1
    concepts = {"joy": planted[0] + noise[0], "fear": planted[1] + noise[1]}
    controls = {"joy": noise[2] + 0.3, "fear": noise[3] + 0.3}
    concepts["joy"][0] = 1e6 * np.eye(D_MODEL)[5]
    joy, fear = vectors.diff_mean(concepts, controls, **place())
    assert joy.direction @ (planted[0] - planted[1]) / np.sqrt(2) > 0.95
    assert fear.direction @ joy.direction == pytest.approx(-1, abs=1e-5)
    assert joy.source.method == "diffmean"


def test_diff_mean_wants_controls_for_every_emotion():
    words = np.ones((2, D_MODEL))
    with pytest.raises(UserError, match="emotion fear has not both"):
        vectors.diff_mean({"joy": words, "fear": words}, {"joy": words}, **place())


def test_random_directions_depend_on_the_seed_alone():
    one, again, other = (
        vectors.random_directions(["joy", "fear"], 64, 3, "resid_post", seed) for seed in (1, 1, 2)
    )
    assert [v.fingerprint for v in one] == [v.fingerprint for v in again]
    assert one[0].fingerprint != other[0].fingerprint
    assert abs(one[0].direction @ one[1].direction) < 0.5


@pytest.mark.parametrize(
    "saved",
    [
        vectors.from_latents(
            np.eye(D_MODEL, dtype=np.float32),
            {"joy": {0: 1.0, 3: 0.5}, "fear": {1: 2.0}},
            **place(),
        ),
        vectors.random_directions([f"emotion {i}" for i in range(50)], 640, 3, "resid_post", 0),
    ],
    ids=["latents", "random"],
)
def test_saved_vectors_come_back_as_they_were(tmp_path, saved):
    vectors.save(saved, tmp_path / "new folder" / "joy.safetensors")
    loaded = vectors.load(tmp_path / "new folder" / "joy.safetensors")
    assert [(v.emotion, v.source, v.fingerprint) for v in loaded] == [
        (v.emotion, v.source, v.fingerprint) for v in saved
    ]


def resaved(path, **changes):
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata, directions = file.metadata(), file.get_tensor("directions")
    save_file({"directions": directions}, path, metadata | changes)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-8]),
        lambda path: path.unlink(),
        lambda path: save_file({"directions": np.ones((2, 4), np.float32)}, path),
        lambda path: resaved(path, version="9"),
        lambda path: resaved(path, vectors="{"),
        lambda path: resaved(path, vectors="[]"),
    ],
    ids=["truncated", "missing", "foreign", "version", "json", "count"],
)
def test_damaged_vectors_are_refused_by_name(tmp_path, damage):
    path = tmp_path / "steering.safetensors"
    vectors.save(vectors.random_directions(["joy", "fear"], 4, 3, "resid_post", 0), path)
    damage(path)
    with pytest.raises(UserError, match=f"steering vectors in {path}"):
        vectors.load(path)


def test_every_row_has_its_own_vector_and_none_is_bit_identical():
    lm = tiny_model()
    joy, fear = vectors.random_directions(["joy", "fear"], CONFIG.d_model, 1, "resid_post", 0)
    settings = GenerateSettings(max_new_tokens=4, temperature=0.0)
    prompts = [[1, 2, 3]] * 3
    plain = generate(lm, prompts, settings)
    together = generate(lm, prompts, settings, [vectors.stack([None, joy, fear], 0.8)])
    alone = generate(lm, prompts[:1], settings, [vectors.stack([fear], 0.8)])
    np.testing.assert_array_equal(together.logprobs[0], plain.logprobs[0])
    np.testing.assert_allclose(together.logprobs[2], alone.logprobs[0], rtol=1e-5)
    assert abs(together.logprobs[1][0] - plain.logprobs[1][0]) > 1e-4
    assert abs(together.logprobs[1][0] - together.logprobs[2][0]) > 1e-4


def test_vectors_that_do_not_fit_each_other_or_the_model_are_refused():
    lm = tiny_model()
    joy, fear = vectors.random_directions(["joy", "fear"], CONFIG.d_model, 1, "resid_post", 0)
    (late,) = vectors.random_directions(["late"], CONFIG.d_model, 0, "resid_post", 0)
    (wide,) = vectors.random_directions(["wide"], CONFIG.d_model + 1, 1, "resid_post", 0)
    with pytest.raises(UserError, match="joy and late differ in layer"):
        vectors.stack([joy, fear, late], 0.1)
    with pytest.raises(UserError, match="No row"):
        vectors.stack([None], 0.1)
    with pytest.raises(UserError, match=f"{CONFIG.d_model + 1} wide and tiny is {CONFIG.d_model}"):
        vectors.promoted_tokens(lm, [wide], 3)
    with pytest.raises(UserError, match="does not fit"):
        generate(lm, [[1, 2]], GenerateSettings(max_new_tokens=1), [vectors.stack([wide], 0.1)])


def test_a_direction_promotes_the_token_that_it_unembeds_to():
    lm = tiny_model()
    embeddings = np.asarray(lm.params["embed"])
    chosen = [
        SteeringVector("joy", embeddings[t], 1, "resid_post", Source("random")) for t in (5, 9)
    ]
    promoted = vectors.promoted_tokens(lm, chosen, 3)
    assert [tokens[0] for tokens in promoted] == ["<5>", "<9>"]
    assert [len(tokens) for tokens in promoted] == [3, 3]
    assert vectors.promoted_tokens(lm, [], 3) == []
