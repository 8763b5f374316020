import errno
import json
import os
import shutil
from pathlib import Path

import gguf as gguf_library
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny_gguf
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize
from tokenizers import Tokenizer

from emojax import files
from emojax.errors import UserError
from emojax.lm import decoder, gguf, gguf_file, weights
from emojax.lm.config import DecoderConfig
from emojax.lm.gguf_config import hf_config

pytestmark = pytest.mark.smoke


def _convert(path: Path, cache: Path) -> Path:
    return gguf.convert(path, files.sha256(path), cache)


@pytest.mark.parametrize("architecture", ["gemma3", "llama"])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_weights_come_back_in_hugging_face_layout(tmp_path: Path, architecture: str, kind: str):
    path = tmp_path / "tiny.gguf"
    expected = tiny_gguf.write(path, architecture, Kind[kind])
    found = safetensors.numpy.load_file(_convert(path, tmp_path) / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("architecture", ["gemma2", "gpt2", "gptneox", "qwen2", "qwen3"])
def test_other_architectures_become_models(tmp_path: Path, architecture: str):
    path = tmp_path / "tiny.gguf"
    expected = tiny_gguf.write(path, architecture, Kind.Q8_0)
    directory = _convert(path, tmp_path)
    found = safetensors.numpy.load_file(directory / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    config = DecoderConfig.from_hf(json.loads((directory / "config.json").read_text()))
    weights.load(directory, config)  # which compares every name and shape
    traits = (config.family, config.biases, config.qk_norm, config.attention_softcap)
    assert (
        traits
        == {
            "gemma2": ("gemma2", (), False, 20.0),
            "gpt2": ("gpt2", ("q", "k", "v", "o", "up", "down"), False, 0.0),
            "gptneox": ("gpt_neox", ("q", "k", "v", "o", "up", "down"), False, 0.0),
            "qwen2": ("qwen2", ("q", "k", "v"), False, 0.0),
            "qwen3": ("qwen3", (), True, 0.0),
        }[architecture]
    )


def test_qwen_tokens_are_those_of_transformers(tmp_path: Path):
    from transformers import Qwen2Tokenizer

    path = tmp_path / "tiny.gguf"
    tiny_gguf.write(path, "qwen2")
    ours = Tokenizer.from_file(str(_convert(path, tmp_path) / "tokenizer.json"))
    tokens, merges, _ = tiny_gguf.byte_level_vocabulary()
    vocabulary = {token: i for i, token in enumerate(tokens)}
    theirs = Qwen2Tokenizer(vocabulary, [tuple(merge.split(" ")) for merge in merges])
    for text in (" happy don't HAPPY'S", "12 3\n\n  happy", "e\u0301 快乐！\r\n\t x", "a  b?? \n"):
        assert ours.encode(text).ids == theirs(text).input_ids, text


# The byte-level vocabulary, with a word that no merges lead to.
LLAMA3 = {
    "tokenizer.ggml.pre": "llama-bpe",
    "tokenizer.ggml.tokens": [*tiny_gguf.byte_level_vocabulary()[0], "Ġsad"],
    "tokenizer.ggml.token_type": [*tiny_gguf.byte_level_vocabulary()[2], 1],
    "tokenizer.ggml.add_bos_token": None,
    "llama.vocab_size": 266,
}
# SentencePiece's vocabulary, as in files of Llama 1 and 2 and of Mistral.
LLAMA2 = dict(
    zip(("tokens", "scores", "token_type"), tiny_gguf.sentencepiece_vocabulary(), strict=True),
    model="llama",
    merges=None,
    pre=None,
    bos_token_id=2,
    eos_token_id=1,
    unknown_token_id=3,
    add_space_prefix=None,
    add_bos_token=None,
)
LLAMA2 = {f"tokenizer.ggml.{k}": v for k, v in LLAMA2.items()} | {"llama.vocab_size": None}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def _llama3(path: Path) -> dict[str, np.ndarray]:
    factors = tiny_gguf.rope_factors(10000.0, 8.0, 1.0, 4.0, 64)
    assert len({1.0, 8.0} & {*factors.tolist()}) == 2 and len({*factors.tolist()}) > 3
    return tiny_gguf.write(
        path, "llama", Kind.F32, metadata=LLAMA3, tensors={"rope_freqs.weight": factors}
    )


def test_llama_3_tokens(tmp_path: Path):
    path = tmp_path / "tiny.gguf"
    _llama3(path)
    tokenizer = Tokenizer.from_file(str(_convert(path, tmp_path) / "tokenizer.json"))
    for text, tokens in {
        " happy": ["Ġhappy"],
        " sad": ["Ġsad"],  # a token whole, though no merges lead to it
        "1234": ["12", "3", "4"],  # up to three digits are one word, of which 1 and 2 merge
        "<|im_end|>é": ["<|im_end|>", "Ã", "©"],
    }.items():
        found = tokenizer.encode(text)
        # As llama.cpp does for this kind where the file does not say.
        assert found.tokens == ["<|im_start|>", *tokens]
        assert tokenizer.decode(found.ids, skip_special_tokens=False) == "<|im_start|>" + text


@pytest.mark.torch
@pytest.mark.parametrize("version", [2, 3])
def test_llama_tokens_are_those_of_transformers(tmp_path: Path, version: int):
    pytest.importorskip("torch")
    from transformers import AutoTokenizer

    path = tmp_path / "tiny.gguf"
    _llama3(path) if version == 3 else tiny_gguf.write(path, "llama", metadata=LLAMA2)
    ours = Tokenizer.from_file(str(_convert(path, tmp_path) / "tokenizer.json"))
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    for text in {
        2: ("happiness, sad. Tea", "sad 快乐的\n\n"),
        3: (" happy don't HAPPY'S", "12 1234567\n\n  happy", "快乐！\r\n\t x", "a  b?? \n"),
    }[version]:
        ids = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text, add_special_tokens=False).ids == ids, text


@pytest.mark.torch
@pytest.mark.parametrize("architecture", ["gpt2", "gptneox", "llama"])
def test_logits_are_those_of_the_model_that_was_converted(tmp_path: Path, architecture: str):
    """The original in `transformers`: what GGUF permutes, transposes or says otherwise is undone.

    For Llama it has the rope of Llama 3, which the file holds as `rope_freqs.weight`.
    """
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    path = tmp_path / "tiny.gguf"
    llama = architecture == "llama"
    expected = _llama3(path) if llama else tiny_gguf.write(path, architecture, Kind.F32)
    directory = _convert(path, tmp_path)
    attributes = json.loads((directory / "config.json").read_text())
    config = DecoderConfig.from_hf(attributes)
    original = tmp_path / "original"
    original.mkdir()
    safetensors.numpy.save_file(expected, original / "model.safetensors", {"format": "pt"})
    attributes |= {"rope_parameters": LLAMA3_ROPE} if llama else {}
    (original / "config.json").write_text(json.dumps(attributes))
    tokens = np.random.default_rng(0).integers(3, 260, (2, 100))

    def run(directory: Path) -> np.ndarray:
        model, report = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
        assert not any(report.values()), report
        with torch.no_grad():
            return model(torch.tensor(tokens)).logits.numpy()

    logits = run(original)
    with jax.default_matmul_precision("highest"):
        ours = decoder.logits(
            config, weights.load(directory, config), jnp.asarray(tokens), jnp.ones((2, 100), bool)
        )
    assert np.abs(ours - logits).max() < 1e-5 * np.abs(logits).max()
    if llama:  # and `transformers` reads the directory alike
        assert np.abs(run(directory) - logits).max() < 1e-5 * np.abs(logits).max()


def test_scaled_ropes(tmp_path: Path):
    scaling = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    for architecture, kind in (("gemma3", "linear"), ("qwen2", "yarn")):
        path = tmp_path / f"{architecture}.gguf"
        fields = scaling | {"rope.scaling.type": kind, "rope.scaling.finetuned": True}
        if kind == "yarn":
            fields["rope.scaling.original_context_length"] = 16
        tiny_gguf.write(
            path, architecture, metadata={f"{architecture}.{k}": v for k, v in fields.items()}
        )
        config = DecoderConfig.from_hf(hf_config(gguf_file.read(path)))
        assert (config.ropes[0].kind, config.ropes[0].factor) == (kind, 8.0)
        if kind == "yarn":
            assert config.ropes[0].original_context == 16
        else:  # the windows' rope is not scaled
            assert config.ropes[1].kind == "default"


def test_sentencepiece_tokens_with_a_space_before_the_text(tmp_path: Path):
    """Llama's and Mistral's, which is what a file that does not say so means."""
    path = tmp_path / "tiny.gguf"
    tiny_gguf.write(path, "llama", metadata=LLAMA2)
    tokenizer = Tokenizer.from_file(str(_convert(path, tmp_path) / "tokenizer.json"))
    for text, tokens in {
        "happiness": ["▁happiness"],
        "happy sad": ["▁happy", "▁sad"],
        " happy": ["▁", "▁happy"],
        "sad\n\nsad": ["▁sad", "\n\n", "▁sad"],
        "快乐的": ["▁快乐", "<0xE7>", "<0x9A>", "<0x84>"],
    }.items():
        found = tokenizer.encode(text)
        assert found.tokens == ["<bos>", *tokens]
        # As in llama.cpp and in Llama's own tokenizer.json, a word after such a token too.
        assert tokenizer.decode(found.ids) == text.replace("\n\n", "\n\n ")


@pytest.mark.parametrize("kind", gguf_file._KINDS)
def test_every_type_is_dequantised_as_the_library_does(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gguf_file, "_CHUNK", 512)  # several pieces
    block, size = GGML_QUANT_SIZES[Kind[kind]]
    random = np.random.default_rng(1)
    shape = (6, 512)
    if kind in ("F32", "F16", "BF16"):
        values = random.normal(size=shape).astype(np.float32)
        data = gguf_library.quants.quantize(values, Kind[kind])
    else:
        blocks = random.integers(0, 256, (shape[0], shape[1] // block, size), dtype=np.uint8)
        # The scales are two bytes that any random ones would often make infinite.
        scale = np.array([0.01], np.float16).view(np.uint8)
        for start in (size - 2,) if kind == "Q6_K" else (0, 2) if kind[3] in "1K" else (0,):
            blocks[..., start : start + 2] = scale
        data = blocks.reshape(shape[0], -1)
    path = tmp_path / "one.gguf"
    writer = gguf_library.GGUFWriter(path, "llama")
    writer.add_tensor("x", data, raw_dtype=Kind[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    source = gguf_file.read(path)
    assert source.tensors["x"].shape == shape
    chunks = list(source.chunks("x"))
    assert len(chunks) == 6
    found = np.concatenate(chunks).reshape(shape)
    assert np.isfinite(found).all() and found.std() > 0
    np.testing.assert_array_equal(found, dequantize(data, Kind[kind]).reshape(shape))


def test_the_header_is_read_as_the_library_reads_it(tmp_path: Path):
    path = tmp_path / "tiny.gguf"
    tiny_gguf.write(path)
    ours, theirs = gguf_file.read(path), gguf_library.GGUFReader(path)
    fields = {k: v.contents() for k, v in theirs.fields.items() if not k.startswith("GGUF.")}
    assert ours.metadata == fields
    assert {
        name: (tensor.start, tensor.size, tensor.kind) for name, tensor in ours.tensors.items()
    } == {t.name: (t.data_offset, t.n_bytes, t.tensor_type) for t in theirs.tensors}


def test_gemma_config(tmp_path: Path):
    path = tmp_path / "tiny.gguf"
    tiny_gguf.write(path)
    attributes = json.loads((_convert(path, tmp_path) / "config.json").read_text())
    config = DecoderConfig.from_hf(attributes)
    assert config.windows == (16, 16, 16, 16, 16, 0, 16)
    assert config.norm_eps == 1e-6
    assert (config.bos_token_id, config.eos_token_ids) == (2, (1,))
    assert attributes["tie_word_embeddings"] is True
    assert attributes["query_pre_attn_scalar"] == tiny_gguf.HEAD_DIM


def test_llama_config_with_an_untied_head_and_two_ends(tmp_path: Path):
    path = tmp_path / "tiny.gguf"
    head = np.ones((265, tiny_gguf.D), np.float32)
    tiny_gguf.write(
        path,
        "llama",
        metadata={"tokenizer.ggml.eot_token_id": 0},
        tensors={"output.weight": head},
    )
    directory = _convert(path, tmp_path)
    attributes = json.loads((directory / "config.json").read_text())
    assert attributes["tie_word_embeddings"] is False
    assert attributes["eos_token_id"] == [0, 2]
    DecoderConfig.from_hf(attributes)
    weights = safetensors.numpy.load_file(directory / "model.safetensors")
    np.testing.assert_array_equal(weights["lm_head.weight"], head)


def test_sentencepiece_tokens(tmp_path: Path):
    path = tmp_path / "tiny.gguf"
    tiny_gguf.write(path)
    tokenizer = Tokenizer.from_file(str(_convert(path, tmp_path) / "tokenizer.json"))
    for text, tokens in {
        " happiness": ["▁happiness"],
        "happy sad": ["happy", "▁sad"],
        "快乐的": ["快乐", "<0xE7>", "<0x9A>", "<0x84>"],
        "sad\n\n\nsad": ["sad", "\n\n", "\n", "sad"],
        # A run of spaces is one token before any word is merged.
        "sad   sad": ["sad", "▁▁▁", "sad"],
        "<start_of_turn>sad": ["<start_of_turn>", "sad"],
    }.items():
        found = tokenizer.encode(text)
        assert found.tokens == ["<bos>", *tokens]
        assert tokenizer.decode(found.ids, skip_special_tokens=False) == "<bos>" + text


def test_byte_level_tokens(tmp_path: Path):
    path = tmp_path / "tiny.gguf"
    tiny_gguf.write(path, "llama")
    directory = _convert(path, tmp_path)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    for text, tokens in {
        " happy": ["Ġhappy"],
        "12": ["1", "2"],  # digits stand alone, whatever could be merged
        "<|im_end|>é": ["<|im_end|>", "Ã", "©"],
    }.items():
        found = tokenizer.encode(text)
        assert found.tokens == tokens
        assert tokenizer.decode(found.ids, skip_special_tokens=False) == text
    config = json.loads((directory / "tokenizer_config.json").read_text())
    assert config["chat_template"] == "{{ messages[0]['content'] }}"
    assert (config["bos_token"], config["eos_token"]) == ("<|im_start|>", "<|im_end|>")


def test_a_second_conversion_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "tiny.gguf"
    tiny_gguf.write(path)
    first = _convert(path, tmp_path)
    monkeypatch.setattr(gguf, "read", None)
    assert _convert(path, tmp_path) == first


def test_an_interrupted_conversion_leaves_nothing_and_a_damaged_one_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "tiny.gguf"
    tiny_gguf.write(path)
    chunks = gguf._hf_chunks

    def interrupted(source, name, config):
        if name == "blk.3.attn_q.weight":
            raise KeyboardInterrupt
        return chunks(source, name, config)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(gguf, "_hf_chunks", interrupted)
        _convert(path, tmp_path)
    assert [p for p in (tmp_path / "models").iterdir() if p.is_dir()] == []
    weights = _convert(path, tmp_path) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert gguf.converted(files.sha256(path), tmp_path) is None
    assert (_convert(path, tmp_path) / "model.safetensors").read_bytes() == whole


def test_a_full_disk_is_refused_before_and_reported_within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "tiny.gguf"
    tiny_gguf.write(path)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="MiB free"):
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**6))
        _convert(path, tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left"):
        patch.setattr(gguf, "_write_weights", full)
        _convert(path, tmp_path)
    assert [p for p in (tmp_path / "models").iterdir() if p.is_dir()] == []


def test_a_cache_that_cannot_be_written_to(tmp_path: Path):
    path = tmp_path / "tiny.gguf"
    tiny_gguf.write(path)
    with pytest.raises(UserError, match="cannot be written to"):
        _convert(path, path)  # a file where a folder is needed


@pytest.mark.parametrize(
    ("architecture", "metadata", "named"),
    [
        ("llama", {"general.architecture": "mamba"}, "general.architecture 'mamba'"),
        ("llama", {"split.count": 3}, "one of 3 parts"),
        ("llama", {"llama.expert_count": 8}, "llama.expert_count = 8"),
        ("llama", {"llama.rope.scaling.type": "longrope"}, "llama.rope.scaling.type = longrope"),
        ("llama", {"llama.rope.scaling.type": "linear"}, "llama.rope.scaling.factor"),
        ("llama", {"llama.rope.scaling.yarn_ext_factor": 2.0}, "yarn_ext_factor = 2.0"),
        ("llama", {"general.architecture": "mistral3"}, "general.architecture 'mistral3'"),
        ("llama", {"llama.rope.dimension_count": 16}, "llama.rope.dimension_count = 16"),
        ("llama", {"llama.attention.head_count": [4] * 7}, "llama.attention.head_count"),
        ("llama", {"llama.embedding_length": None}, "lacks the attribute llama.embedding_length"),
        ("llama", {"tokenizer.ggml.pre": "tekken"}, "tokenizer.ggml.pre 'tekken'"),
        ("llama", {"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model 'bert'"),
        ("llama", {"tokenizer.ggml.merges": None}, "lacks tokenizer.ggml.merges"),
        ("llama", {"tokenizer.ggml.merges": ["zz yy"]}, "cannot be built"),
        ("llama", {"tokenizer.ggml.bos_token_id": 9999}, "cannot be built"),
        ("gemma3", {"tokenizer.ggml.scores": [0.0]}, "cannot be built"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, architecture, metadata, named):
    path = tmp_path / "tiny.gguf"
    tiny_gguf.write(path, architecture, metadata=metadata)
    with pytest.raises(UserError) as error:
        _convert(path, tmp_path)
    assert named in str(error.value) and str(path) in str(error.value)
    assert not list(tmp_path.glob("models/gguf*"))


def test_a_tensor_that_is_not_known_is_named(tmp_path: Path):
    path = tmp_path / "tiny.gguf"
    tiny_gguf.write(path, "qwen2", tensors={"rope_freqs.weight": np.ones(4, np.float32)})
    with pytest.raises(UserError, match=r"rope_freqs\.weight"):
        _convert(path, tmp_path)


def test_a_type_that_is_not_supported_is_named(tmp_path: Path):
    path = tmp_path / "tiny.gguf"
    tiny_gguf.write(path, "llama", tensors={"blk.0.odd.weight": np.ones(4, np.int8)})
    with pytest.raises(UserError, match=r"blk\.0\.odd\.weight .* type I8"):
        gguf_file.read(path)


def test_a_tokenizer_that_breaks_words_is_refused(tmp_path: Path):
    path = tmp_path / "tiny.gguf"
    tokens, scores, types = tiny_gguf.sentencepiece_vocabulary()
    more = 10_000
    tokens += [f"<unused{i}>" for i in range(more)]
    tiny_gguf.write(
        path,
        metadata={
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": scores + [-1000.0] * more,
            "tokenizer.ggml.token_type": types + [3] * more,
        },
    )
    with pytest.raises(UserError, match="breaks English into pieces"):
        _convert(path, tmp_path)


def test_missing_foreign_truncated_and_corrupt_files(tmp_path: Path):
    path = tmp_path / "tiny.gguf"
    with pytest.raises(UserError, match="No such file"):
        gguf_file.read(path)
    path.write_bytes(b"PK\3\4 some wheel")
    with pytest.raises(UserError, match="not a GGUF file"):
        gguf_file.read(path)
    tiny_gguf.write(path)
    whole = path.read_bytes()
    for size in (4, 10, 24, 700, 5000, len(whole) // 2, len(whole) - 33):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="truncated"):
            gguf_file.read(path)
    random = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(whole)
        for at in random.integers(4, 8000, 4):
            broken[at] = random.integers(256)
        path.write_bytes(broken)
        try:  # either it is seen, or the damage is in a value or a name
            hf_config(gguf_file.read(path))
        except UserError as error:
            assert str(path) in str(error)
    path.write_bytes(whole[:4] + b"\1\0\0\0" + whole[8:])
    with pytest.raises(UserError, match="version 1"):
        gguf_file.read(path)


@pytest.mark.torch
@pytest.mark.parametrize("architecture", ["gemma3", "llama"])
def test_transformers_loads_what_is_written(tmp_path: Path, architecture: str):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = tmp_path / "tiny.gguf"
    expected = tiny_gguf.write(path, architecture, Kind.F32)
    directory = _convert(path, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(directory)
    found = model.state_dict()
    for name, value in expected.items():
        assert torch.equal(found[name], torch.from_numpy(value)), name
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer("the word happy").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the word happy"
    assert (ids[0] == tokenizer.bos_token_id) == (architecture == "gemma3")


@pytest.mark.torch  # only because `transformers` reads GGUF files with it
@pytest.mark.parametrize("given", [None, True])
def test_a_space_before_every_text_as_in_transformers(tmp_path: Path, given: bool | None):
    pytest.importorskip("torch")
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    path = tmp_path / "tiny.gguf"
    fields = {"tokenizer.ggml.add_space_prefix": given, "tokenizer.ggml.add_bos_token": None}
    tiny_gguf.write(path, metadata=fields)
    ours = Tokenizer.from_file(str(_convert(path, tmp_path) / "tokenizer.json"))
    # By the architecture it would take Gemma's way, where the field has no meaning.
    theirs, _ = convert_gguf_tokenizer("llama", get_gguf_tokenizer(str(path))[1])
    for text in ("happiness", "the word happy, sad", "快乐的 word", "", "Te, the"):
        found = ours.encode(text, add_special_tokens=False)
        assert found.ids == theirs.encode(text, add_special_tokens=False).ids, text
        assert ours.decode(found.ids) == text
    for text, tokens in {
        "happy sad": ["▁happy", "▁sad"],
        # As SentencePiece and llama.cpp have it, whatever the text begins with.
        " sad": ["▁", "▁sad"],
        "<start_of_turn>sad": ["<start_of_turn>", "▁sad"],
    }.items():
        assert ours.encode(text).tokens == ["<bos>", *tokens]
