import ast
import shlex
from pathlib import Path

import pytest

from emojax import config
from emojax.errors import UserError

CONFIGS = Path(__file__).parent.parent / "configs"
GEMMA = CONFIGS / "gemma3_270m.py"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_every_config_loads(path):
    loaded = config.load(path)
    assert loaded.sae.model == loaded.study.model


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_the_docstring_trains_on_a_laptop_a_gpu_and_a_pod(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text is not None
    lines = text.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line) for line in lines if "experiments.train_sae" in line]
    assert len(commands) == 3
    for words in commands:
        assert words[:3] == ["python", "-m", "experiments.train_sae"]
        assert words[3:5] == ["--config", f"configs/{path.stem}.py"]
        sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        loaded = config.load(path, sets)
        shards = (loaded.train.data_shards, loaded.train.latent_shards)
        assert shards == ((2, 8) if words is commands[-1] else (1, 1))
        assert ("--distributed" in words) == (words is commands[-1])
        assert loaded.train.batch_tokens % shards[0] == 0
        assert loaded.sae.n_latents % shards[1] == 0
    # Of a pod no host needs a disk, and each captures from a copy on its own four devices.
    # Its image has no `models/`: weights are a package of it, or lie on the share.
    named = loaded.study.model
    assert loaded.sae.model == (f"/shared/{named}" if named.startswith("models/") else named)
    assert loaded.activations.streamed
    assert loaded.activations.model_dtype == "bfloat16"
    assert loaded.activations.model_shards in (1, 4)
    assert loaded.activations.buffer_tokens >= 2 * loaded.train.batch_tokens
    places = [words[words.index(name) + 1] for name in ("--out", "--store")]
    assert all(place.startswith(f"gs://BUCKET/{path.stem}") for place in places)


def test_overrides_are_typed_by_the_annotation():
    changed = config.load(
        GEMMA,
        [
            "sae.k=32",
            "data.tokens=2_000_000",
            "data.weights=0.25,0.75",
            "data.languages=en,zh",
            "train.learning_rate=1e-3",
            "study.sae=elsewhere",
        ],
    )
    assert changed.sae.k == 32
    assert changed.data.tokens == 2_000_000
    assert changed.data.weights == (0.25, 0.75)
    assert changed.train.learning_rate == 1e-3
    assert changed.study.sae == "elsewhere"
    assert config.override(changed, ["train.learning_rate=none"]).train.learning_rate is None
    assert config.load(GEMMA).sae.k != 32


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sae.kk=3", "names no field 'kk'; choose one of d_model"),
        ("nothing.k=3", "names no field 'nothing'"),
        ("sae.k=three", "not of the type int"),
        ("sae.k=3.5", "not of the type int"),
        ("train.learning_rate=fast", "not of the type"),
        ("data.weights=a,b", "not of the type"),
        ("sae.k", "has no value"),
        ("sae=3", "needs a field"),
        ("sae.k.x=3", "goes too deep"),
        ("sae.k=0", "k is 0"),
        ("train.learning_rate=nan", "learning rate is nan"),
    ],
)
def test_bad_overrides_are_named(text, said):
    with pytest.raises(UserError, match=said):
        config.load(GEMMA, [text])


def test_booleans_are_words():
    assert config.parse(bool, "true") is True
    assert config.parse(bool, "False") is False
    with pytest.raises(ValueError, match="1"):
        config.parse(bool, "1")


def test_bad_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"missing\.py is missing"):
        config.load(tmp_path / "missing.py")
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(UserError, match=r"broken\.py fails \(ZeroDivisionError"):
        config.load(tmp_path / "broken.py")
    (tmp_path / "empty.py").write_text("CONFIG = 3")
    with pytest.raises(UserError, match="defines no CONFIG"):
        config.load(tmp_path / "empty.py")
