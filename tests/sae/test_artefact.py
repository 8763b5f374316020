import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from sae_toys import SAE, TRAIN, D, activations, language_model
from safetensors.numpy import load_file, save_file

from emojax.errors import UserError
from emojax.files import sha256
from emojax.sae import artefact, card, coder
from emojax.sae.corpus import DataConfig

PROVENANCE = {
    "model": {"name": "toy", "fingerprint": "f" * 64},
    "data": dataclasses.asdict(DataConfig()),
    "train": dataclasses.asdict(TRAIN),
    "corpora": [{"language": "en", "file": "novel.txt", "sha256": "0" * 64}],
    "tokens": {"train": 1_000_000, "heldout": 40_000},
    "versions": {"jax": "0.10.2"},
    "command": "python -m experiments.train_sae --config configs/toy.py",
}
MEASURED = {
    "tokens": 40_000,
    "massive_tokens": 12,
    "l0": 64.0,
    "fvu": {s: {"all": 0.1, "without_massive": 0.0987} for s in ("raw", "unit_norm")},
    "fvu_by_language": {"en": 0.11, "zh": 0.09},
    "l0_by_language": {"en": 61.5, "zh": 66.5},
    "dead": 3,
    "dead_share": 0.01,
    "dead_share_by_language": {"en": 0.0123, "zh": None},
    "density": {"log10_edges": [-2.0, -1.0, 0.0], "latents": [40, 21]},
    "density_by_language": {"en": [1033, 22], "zh": None},
}
LOSS = {
    "cross_entropy": {
        "clean": 3.0,
        "zero_ablated": 9.0,
        "trained": 3.1,
        "random": 5.0,
        "untrained": 6.0,
    },
    "recovered": {"trained": 0.98, "random": 0.6, "untrained": 0.5},
    "recovered_from_mean": {"trained": 0.97, "random": 0.5, "untrained": 0.4},
}
EVALUATION = {
    "trained": MEASURED,
    "random": MEASURED,
    "untrained": MEASURED,
    "loss": {"en": LOSS, "zh": LOSS},
}


@pytest.fixture
def saved(tmp_path):
    rng = np.random.default_rng(0)
    untrained = coder.init(SAE, jnp.asarray(rng.normal(size=D), jnp.float32))
    noise = jnp.asarray(0.1 * rng.normal(size=untrained.w_enc.shape), jnp.float32)
    trained = dataclasses.replace(
        untrained, w_enc=untrained.w_enc + noise, b_dec=untrained.b_dec + 1
    )
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 0.5}\n')
    directory = tmp_path / "artefact"
    artefact.save(directory, trained, untrained, PROVENANCE, EVALUATION, log)
    return directory, trained, untrained


def reseal(directory):
    """Makes the record fit a changed file: only what is inside is wrong then."""
    record = json.loads((directory / "config.json").read_text())
    record["files"] = {name: sha256(directory / name) for name in record["files"]}
    (directory / "config.json").write_text(json.dumps(record))


def test_what_is_loaded_is_what_was_saved_and_what_was_measured(saved):
    directory, trained, untrained = saved
    loaded = artefact.load(directory, language_model())
    exact = artefact.rounded(trained)
    for name in ("w_enc", "b_enc", "w_dec", "b_dec"):
        np.testing.assert_array_equal(getattr(loaded.sae, name), getattr(exact, name))
        np.testing.assert_array_equal(getattr(loaded.untrained, name), getattr(untrained, name))
    assert loaded.sae.config == trained.config
    assert loaded.evaluation == EVALUATION
    assert loaded.record["command"] == PROVENANCE["command"]
    assert loaded.fingerprint == sha256(directory / "sae.safetensors")
    x = jnp.asarray(activations(20))
    made, wanted = coder.reconstruct(loaded.sae, x), coder.reconstruct(trained, x)
    np.testing.assert_allclose(made, wanted, atol=2e-2 * float(abs(wanted).max()))


def test_the_model_card_says_what_was_measured(saved):
    made = (saved[0] / "README.md").read_text()
    for said in ("0.0987", "1,000,000 tokens", "0.9800", PROVENANCE["command"], "novel.txt"):
        assert said in made
    # Of the shipped dictionary's corpora alone is known what text they are.
    assert "19th" not in made and "other text was not measured." in made
    for row in (
        "| active latents per token (L0), en | 61.5 | 61.5 | 61.5 |",
        "| latents that never fire, en | 1.23% | 1.23% | 1.23% |",
        "| latents that never fire, zh | – | – | – |",
        "| share of tokens | all tokens | en |\n|---|---|---|\n| 0.01 to 0.1 | 40 | 1,033 |",
    ):
        assert row in made


def test_a_transcoder_s_card_says_why_it_has_no_losses():
    transcoder = {"site": "resid_mid", "target_site": "mlp_out", "input_scale": "mean_norm"}
    sae = dataclasses.asdict(dataclasses.replace(SAE, **transcoder))
    made = card.render(PROVENANCE | {"sae": sae}, EVALUATION | {"loss": {}})
    assert "no cross entropy and no KL" in made
    assert "reads one site (resid_mid) and makes another (mlp_out)" in made
    assert "recovered" not in made


def test_a_card_shows_what_an_older_artefact_was_measured_for():
    """FVU alone by language, and no random dictionary."""
    late = ("l0_by_language", "dead_share_by_language", "density_by_language")
    older = {name: value for name, value in MEASURED.items() if name not in late}
    record = PROVENANCE | {"sae": dataclasses.asdict(SAE)}
    evaluation = {"trained": older, "untrained": older, "loss": EVALUATION["loss"]}
    made = card.render(record, evaluation)
    assert "| | trained | untrained |\n|---|---|---|\n" in made
    assert "| FVU, unit vectors without massive tokens, zh | 0.0900 | 0.0900 |" in made
    assert "(L0), en" not in made


def test_the_shipped_dictionary_has_a_card():
    shipped = artefact.load("gemma3_270m")
    fvu = shipped.evaluation["trained"]["fvu"]["raw"]["all"]
    made = card.render(shipped.record, shipped.evaluation)
    assert f"| FVU, raw units, all tokens | {fvu:.4f} |" in made
    assert "novels of the 19th" in made
    assert made == (artefact.find("gemma3_270m") / "README.md").read_text()


def test_a_damaged_file_is_named(saved):
    directory, *_ = saved
    data = bytearray((directory / "sae.safetensors").read_bytes())
    data[-1] ^= 1
    (directory / "sae.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"sae\.safetensors is missing or damaged"):
        artefact.load(directory)
    (directory / "evaluation.json").unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        artefact.load(directory)


def test_an_unknown_format_is_refused(saved):
    directory, *_ = saved
    record = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(UserError, match="format 99"):
        artefact.load(directory)
    (directory / "config.json").write_text("not json")
    with pytest.raises(UserError, match="cannot be read"):
        artefact.load(directory)
    (directory / "config.json").write_text(json.dumps({"format": 1, "sae": {"width": 3}}))
    with pytest.raises(UserError, match="not as emojax writes it"):
        artefact.load(directory)


def test_wrong_tensors_are_named_all_at_once(saved):
    directory, *_ = saved
    arrays = load_file(directory / "sae.safetensors")
    arrays["w_enc"] = arrays["w_enc"][:-1].copy()
    arrays["b_enc"][3] = np.nan
    del arrays["b_dec"]
    arrays["extra"] = arrays["b_enc"]
    save_file(arrays, directory / "sae.safetensors")
    reseal(directory)
    said = r"b_dec is missing; b_enc has values.*extra is unknown; w_enc is \(63, 16\)"
    with pytest.raises(UserError, match=said):
        artefact.load(directory)


def test_a_model_of_another_width_or_depth_is_refused(saved):
    directory, trained, _ = saved
    with pytest.raises(UserError, match=r"width 16 \(toy\) but wide has width 24"):
        artefact.load(directory, language_model(d_model=24, name="wide"))
    deep = dataclasses.replace(trained.config, layer=2)
    with pytest.raises(UserError, match="layers 0 to 1"):
        artefact.check_fits(deep, language_model())


def test_an_unknown_name_lists_the_shipped_ones():
    with pytest.raises(UserError, match=r"no dictionary at nowhere.*shipped one"):
        artefact.load("nowhere")


def test_a_failed_save_leaves_no_config(tmp_path, saved, monkeypatch):
    _, trained, untrained = saved
    (tmp_path / "log").write_text("")
    monkeypatch.setattr(artefact, "require_room", _full)
    with pytest.raises(UserError, match="no room"):
        artefact.save(tmp_path / "x", trained, untrained, PROVENANCE, EVALUATION, tmp_path / "log")
    assert not (tmp_path / "x" / "config.json").exists()


def test_a_crash_while_another_is_written_leaves_nothing_that_looks_whole(saved, monkeypatch):
    directory, _, untrained = saved
    log = directory / "training_log.jsonl"

    def crash(*_):
        raise RuntimeError("power cut")

    monkeypatch.setattr(artefact, "write_card", crash)
    with pytest.raises(RuntimeError):
        artefact.save(directory, untrained, untrained, PROVENANCE, EVALUATION, log)
    assert not (directory / "config.json").exists()


def _full(path, size):
    raise UserError("no room")


def test_the_shipped_dictionary_is_whole_small_and_better_than_untrained():
    shipped = artefact.load("gemma3_270m")
    sae = shipped.sae
    assert sum(p.stat().st_size for p in artefact.find("gemma3_270m").iterdir()) <= 12 * 2**20
    assert (sae.config.d_model, sae.config.layer, sae.config.site) == (640, 9, "resid_post")
    np.testing.assert_allclose(np.linalg.norm(sae.w_dec, axis=1), 1, atol=1e-3)
    trained, untrained = shipped.evaluation["trained"], shipped.evaluation["untrained"]
    assert trained["l0"] <= sae.config.k
    better = trained["fvu"]["unit_norm"]["without_massive"]
    assert better < 0.5 * untrained["fvu"]["unit_norm"]["without_massive"]
    for language in ("en", "zh"):
        recovered = shipped.evaluation["loss"][language]["recovered"]
        assert recovered["trained"] > recovered["untrained"]


def test_the_shipped_dictionary_still_gives_its_codes():
    """Against TopK in float64 from the file alone: a change of the format would show here."""
    sae = artefact.load("gemma3_270m").sae
    w = load_file(artefact.find("gemma3_270m") / "sae.safetensors")
    w = {name: array.astype(np.float64) for name, array in w.items()}
    x = np.random.default_rng(0).normal(size=(50, 640)) @ w["w_dec"].T[:, :640]
    pre = (x / np.linalg.norm(x, axis=1, keepdims=True) - w["b_dec"]) @ w["w_enc"].T + w["b_enc"]
    wanted = np.where(pre >= np.sort(pre, axis=1)[:, [-64]], np.maximum(pre, 0), 0)
    codes = coder.encode(sae, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(coder.dense(codes, 4096), wanted, rtol=1e-3, atol=2e-5)


def test_thresholds_are_kept(saved, tmp_path):
    directory, trained, untrained = saved
    config = dataclasses.replace(trained.config, architecture="matryoshka", prefixes=(8, 16))
    sae = dataclasses.replace(trained, config=config, threshold=trained.b_enc + 0.25)
    log = directory / "training_log.jsonl"
    artefact.save(tmp_path / "m", sae, untrained, PROVENANCE, EVALUATION, log)
    loaded = artefact.load(tmp_path / "m")
    assert loaded.sae.config == config
    assert loaded.untrained.config.architecture == "topk"
    np.testing.assert_array_equal(loaded.sae.threshold, sae.threshold)
    assert "Matryoshka with k = 4" in (tmp_path / "m" / "README.md").read_text()
    arrays = load_file(tmp_path / "m" / "sae.safetensors")
    del arrays["threshold"]
    save_file(arrays, tmp_path / "m" / "sae.safetensors")
    reseal(tmp_path / "m")
    with pytest.raises(UserError, match="threshold is missing"):
        artefact.load(tmp_path / "m")


def test_an_artefact_in_a_bucket_is_the_same(saved, bucket):
    directory, trained, untrained = saved
    log = directory / "training_log.jsonl"
    artefact.save(bucket / "sae", trained, untrained, PROVENANCE, EVALUATION, log)
    here, there = artefact.load(directory), artefact.load("gs://bucket/sae")
    assert there.record == here.record
    assert there.evaluation == here.evaluation
    np.testing.assert_array_equal(there.sae.w_enc, here.sae.w_enc)
    (bucket / "sae" / "evaluation.json").write_text("{}")
    with pytest.raises(UserError, match=r"gs://bucket/sae/evaluation\.json is missing or damaged"):
        artefact.load(bucket / "sae")
    with pytest.raises(UserError, match="no dictionary at gs://bucket/other"):
        artefact.load("gs://bucket/other")
