import dataclasses
import datetime
import hashlib
import subprocess
from importlib import resources
from pathlib import Path

import pytest
import synthetic_material
import tiny_study

from emojax.emotion import norms
from emojax.report import results as schema
from emojax.study import provenance


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory):
    return tiny_study.language_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def material():
    return {"en": synthetic_material.material("en", 0)}


def sha256(name: str) -> str:
    return hashlib.sha256((resources.files("emojax") / name).read_bytes()).hexdigest()


def made(lm, material) -> schema.Run:
    started = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    trained = tiny_study.dictionary()
    return provenance.run(
        tiny_study.STUDY, lm, trained, material, "python", started, {"steer": 1.5}
    )


def test_a_run_says_versions_seeds_settings_and_hashes(lm, material):
    run = made(lm, material)
    schema._check(run, schema.Run, "run")
    for package in ("python", "jax", "wordfreq", "transformers"):
        assert run["versions"][package][0].isdigit()
    assert run["seeds"]["study"] == tiny_study.STUDY.seed
    assert run["config"]["languages"] == ["en"]
    assert run["started"] == "2026-01-02T00:00:00+00:00"
    assert run["peak_memory_gib"] > 0.01
    found = {source["role"]: source for source in run["sources"]}
    assert found["language model"]["sha256"] == lm.fingerprint
    assert found["sparse autoencoder"]["sha256"] == tiny_study.dictionary().fingerprint
    assert found["English ratings"]["sha256"] == sha256("data/glasgow_norms.csv")
    assert found["English ratings"]["url"].startswith("https://doi.org/")
    assert found["English words of each emotion"]["sha256"] == sha256("data/concepts_en.toml")
    assert not any("Chinese" in role for role in found)


def test_a_norm_of_the_users_own_is_named_with_its_hash(lm, material, tmp_path: Path):
    path = tmp_path / "warriner.csv"
    path.write_text("word,valence,arousal\ntable,5,4\n")
    own = dataclasses.replace(
        material["en"], norms=norms.read(path, "en", "word", "valence", "arousal")
    )
    found = {source["role"]: source for source in made(lm, {"en": own})["sources"]}
    assert found["English ratings"]["name"] == "warriner"
    assert found["English ratings"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found["English ratings"]["url"] is None


def test_the_model_and_the_dictionary_have_the_schema(lm):
    trained = tiny_study.dictionary()
    model = provenance.model(lm, trained)
    schema._check(model, schema.Model, "model")
    assert (model["n_layers"], model["layer"]) == (7, 3)
    sae = provenance.sae(lm, trained)
    assert sae["measured_on_these_weights"] is False  # it was made for another model
    schema._check(sae, schema.Sae, "sae")
    assert sae["trained"]["loss_recovered"] is None


def test_the_commit_of_a_checkout_and_of_none(tmp_path: Path):
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=n", "-c", "user.email=e@e", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert provenance._commit(tmp_path) == {}
    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "first")
    head = git("rev-parse", "HEAD")
    assert provenance._commit(tmp_path) == {"emojax commit": head}
    (tmp_path / "file").write_text("two")
    assert provenance._commit(tmp_path) == {"emojax commit": f"{head}-dirty"}
    (tmp_path / "inner").mkdir()
    assert provenance._commit(tmp_path / "inner") == {}


def test_notes_say_what_one_language_leaves_out():
    alone = " ".join(provenance.notes(tiny_study.STUDY))
    assert "studied English alone" in alone
    assert "study.judge" in alone
    both = dataclasses.replace(tiny_study.STUDY, languages=("en", "zh"))
    assert "alone" not in " ".join(provenance.notes(both))
