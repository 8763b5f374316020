import json

import jax
import numpy as np
import pytest
from tiny_models import ragged, tiny

from emojax.errors import UserError
from emojax.lm import intervene
from emojax.lm.capture import Tap, capture
from emojax.lm.intervention_files import load, save

pytestmark = pytest.mark.smoke

RNG = np.random.default_rng(0)
SAE = {
    "w_enc": RNG.normal(size=(5, 32)),
    "b_enc": RNG.normal(size=5),
    "w_dec": RNG.normal(size=(5, 32)),
}
EVERY_KIND = (
    intervene.direction(
        "add", RNG.normal(size=(3, 32)), layer=2, strength=[1, 2, 3], unit="fraction", rows=0.5
    ),
    intervene.clamp(RNG.normal(size=32), low=-1.0, layer=0, positions=(np.arange(3), 9)),
    intervene.ablate(layer=1, site="z", positions=np.arange(6) % 2 == 0, phase="prompt"),
    intervene.patch(
        RNG.normal(size=(3, 7, 48)),
        np.arange(7) < [[7], [2], [5]],
        layer=3,
        site="mlp_hidden",
        rows=[1, 0, 0],
        positions=(0, 7),
    ),
    intervene.latents("clamp", np.arange(5), **SAE, layer=1, unit_norm=True, phase="both"),
)


def outcome(interventions):
    config, params = tiny("gemma3")
    tokens, mask = ragged(config, 3, 10, "right")
    tap = Tap(3, "final_norm")
    return np.asarray(capture(config, params, tokens, mask, [tap], interventions)[tap])


def test_what_is_loaded_does_the_very_same(tmp_path):
    content = save(tmp_path / "mine", EVERY_KIND)
    loaded = load(tmp_path / "mine")
    np.testing.assert_array_equal(outcome(loaded), outcome(EVERY_KIND))
    assert save(tmp_path / "again", loaded) == content
    for name in ("interventions.json", "interventions.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "mine" / name).read_bytes()
    assert [tuple(p.shape) for p in jax.tree.leaves(loaded[1].positions)] == [(3,), ()]
    assert save(tmp_path / "other", EVERY_KIND[:1]) != content
    assert load(str(tmp_path / "other"))[0].site == "resid_post"


def test_words_are_those_that_make_an_intervention(tmp_path):
    save(tmp_path, EVERY_KIND[:2])
    records = json.loads((tmp_path / "interventions.json").read_text())["interventions"]
    place = {"kind": "direction", "site": "resid_post", "phase": "both"}
    assert records == [
        place | {"layer": 2, "mode": "add", "unit": "fraction"},
        place | {"layer": 0, "mode": "clamp", "unit": "raw"},
    ]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (intervene.ablate(layer=1.5), "layer 1.5, which is no whole number"),
        (intervene.ablate(layer=None), "layer None, which is no whole number"),
        (intervene.ablate(layer=1, site="resid"), "site 'resid', which does not exist"),
        (intervene.ablate(np.full(32, np.nan), layer=1), "vector holds NaN"),
        (intervene.ablate([[1.0], [1.0, 2.0]], layer=1), "vector is not an array of numbers"),
        (intervene.ablate(layer=1, positions=(0, None)), "None is no position"),
        (intervene.ablate(layer=1, positions=(0, 1, 2)), "a tuple of 3"),
    ],
)
def test_what_no_model_could_load_is_not_saved(edit, message, tmp_path):
    with pytest.raises(UserError, match=f"Intervention 2 of 2.*{message}"):
        save(tmp_path / "mine", [*EVERY_KIND[:1], edit])
    assert not (tmp_path / "mine").exists()


def test_another_strength_has_another_hash(tmp_path):
    hashes = {
        save(tmp_path / "a", [intervene.direction("add", np.ones(32), layer=1, strength=s)])
        for s in (1.0, 2.0)
    }
    assert len(hashes) == 2


def spoil(folder, change):
    """Changes the JSON and makes its hash fit again, as someone else's version might write it."""
    import hashlib

    path = folder / "interventions.json"
    record = json.loads(path.read_text())
    change(record)
    text = json.dumps(record.get("interventions"), sort_keys=True, separators=(",", ":"))
    data = (folder / "interventions.safetensors").read_bytes()
    record["sha256"] = hashlib.sha256(text.encode() + b"\n" + data).hexdigest()
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(format=2), "has format 2 and this version reads format 1"),
        (lambda r: r.update(model="x"), "unknown field 'model'"),
        (lambda r: r["interventions"][0].update(gain=1), "intervention 1 has the unknown field"),
        (lambda r: r["interventions"][0].pop("site"), "lacks the field 'site'"),
        (lambda r: r["interventions"][0].update(mode="multiply"), "has mode 'multiply'"),
        (lambda r: r["interventions"][1].update(kind="code"), "intervention 2 is of no known kind"),
        (lambda r: r["interventions"].pop(), "unknown array 4."),
        (lambda r: r["interventions"].append(r["interventions"][0]), "lacks the array 5."),
    ],
)
def test_what_this_version_does_not_know(change, message, tmp_path):
    save(tmp_path, EVERY_KIND)
    spoil(tmp_path, change)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_damaged_files(tmp_path):
    with pytest.raises(UserError, match=r"interventions\.json cannot be read"):
        load(tmp_path)
    save(tmp_path, EVERY_KIND)
    arrays = tmp_path / "interventions.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match="is damaged"):
        load(tmp_path)
    (tmp_path / "interventions.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load(tmp_path)
