import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sae_toys import SAE, TRAIN, corpora, language_model

from emojax.config import Config, override
from emojax.errors import UserError
from emojax.lm import sources
from emojax.sae import artefact, pipeline
from emojax.sae.corpus import DataConfig
from emojax.study.settings import Study

CONFIG = Config(
    study=Study(model="toy", sae="toy"),
    sae=SAE,
    data=DataConfig(tokens=6000, heldout_tokens=600, row_tokens=32, heldout_share=0.1),
    train=TRAIN,
)


@pytest.fixture(autouse=True)
def toy_model(monkeypatch):
    monkeypatch.setattr(sources, "load", lambda name: language_model())


def start(tmp_path, texts, name="artefact", config=CONFIG):
    return pipeline.run(
        config,
        texts,
        out=tmp_path / "out",
        artefact=tmp_path / name,
        store_dir=tmp_path / "store",
        command="python -m experiments.train_sae",
    )


def test_from_text_to_an_artefact_twice_the_same(tmp_path):
    texts = corpora(tmp_path)
    evaluation = start(tmp_path, texts)
    trained, untrained = evaluation["trained"], evaluation["untrained"]
    unit = [m["fvu"]["unit_norm"]["all"] for m in (trained, untrained)]
    assert unit[0] < unit[1]
    loaded = artefact.load(tmp_path / "artefact", language_model())
    assert loaded.evaluation == json.loads(json.dumps(evaluation))
    assert loaded.record["tokens"]["train"] >= 6000
    assert [source["file"] for source in loaded.record["corpora"]] == [p.name for _, p in texts]
    # All stages are finished: the second run only measures and writes.
    again = start(tmp_path, texts, "again")
    assert again == evaluation
    other = artefact.load(tmp_path / "again")
    np.testing.assert_array_equal(other.sae.w_enc, loaded.sae.w_enc)


def test_a_width_that_is_not_the_models_is_refused_before_capture(tmp_path):
    with pytest.raises(UserError, match=r"sae\.d_model=16"):
        start(tmp_path, corpora(tmp_path), config=override(CONFIG, ["sae.d_model=17"]))
    with pytest.raises(UserError, match="layer"):
        start(tmp_path, corpora(tmp_path), config=override(CONFIG, ["sae.layer=5"]))
    assert not (tmp_path / "store").exists()


def test_the_command_refuses_bad_input_in_one_line(tmp_path):
    root = Path(__file__).parents[2]
    for flags, said in (
        (["--corpus", "en=missing.txt"], "The corpus missing.txt cannot be read"),
        (["--corpus", "en=a.txt", "--set", "sae.q=3"], "names no field 'q'"),
    ):
        command = [sys.executable, "-m", "experiments.train_sae", "--config"]
        command += [str(root / "configs/gemma3_270m.py"), "--out", str(tmp_path / "out"), *flags]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("error: ")
        assert said in done.stderr
