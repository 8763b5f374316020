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
