"""A GGUF file as a Hugging Face directory, so that everything else reads only one format."""

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from tqdm import tqdm

from emojax import files
from emojax.errors import UserError
from emojax.lm import gguf_tokenizer, tensor_file
from emojax.lm.gguf_config import ROPE_FREQS, hf_config
from emojax.lm.gguf_file import Gguf, read

# Part of the converted directory's name: raise it when what is written changes.
_LAYOUT = 1
_MANIFEST = "emojax.json"
_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_MLP_NORM = {"ffn_norm": "post_attention_layernorm"}
_GPT2_LAYER = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_NEOX_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "attention.query_key_value",
    "attn_output": "attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}


@dataclasses.dataclass(frozen=True)
class _Names:
    """Hugging Face's names of an architecture's tensors, by GGUF's.

    Attributes:
      layer: those within a layer.
      top: those outside.
      layers: where Hugging Face keeps the layers.
      biased: which of them have a bias too, in GGUF's names.
    """

    layer: Mapping[str, str]
    top: Mapping[str, str] = dataclasses.field(default_factory=lambda: _TOP)
    layers: str = "model.layers"
    biased: tuple[str, ...] = ()


_NAMES = {
    "gemma2": _Names(_LAYER | _POST_NORMS),
    "gemma3": _Names(_LAYER | _POST_NORMS | _QK_NORMS),
    "gpt2": _Names(
        _GPT2_LAYER,
        {
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        "transformer.h",
        (*_GPT2_LAYER, "output_norm"),
    ),
    "gptneox": _Names(
        _NEOX_LAYER,
        {
            "token_embd": "gpt_neox.embed_in",
            "output_norm": "gpt_neox.final_layer_norm",
            "output": "embed_out",
        },
        "gpt_neox.layers",
        (*_NEOX_LAYER, "output_norm"),
    ),
    "llama": _Names(_LAYER | _MLP_NORM),
    "qwen2": _Names(_LAYER | _MLP_NORM, biased=("attn_q", "attn_k", "attn_v")),
    "qwen3": _Names(_LAYER | _MLP_NORM | _QK_NORMS),
}


def _hf_name(source: Gguf, name: str) -> str:
    architecture = source.metadata["general.architecture"]
    names = _NAMES[architecture]
    stem, _, kind = name.rpartition(".")
    parts = stem.split(".")
    if kind in (("weight", "bias") if parts[-1] in names.biased else ("weight",)):
        if stem in names.top:
            return f"{names.top[stem]}.{kind}"
        if len(parts) == 3 and parts[0] == "blk" and parts[1].isdigit() and parts[2] in names.layer:
            return f"{names.layers}.{parts[1]}.{names.layer[parts[2]]}.{kind}"
    raise UserError(
        f"{source.path} ({architecture}) has the tensor {name}, which is not supported; "
        "use a model without it."
    )


def _transposed(config: Mapping[str, Any], name: str) -> bool:
    """Whether Hugging Face stores a matrix [in, out]: GPT-2 alone does, but for the vocabulary."""
    return config["model_type"] == "gpt2" and name.startswith("blk.") and "norm" not in name


def _hf_chunks(source: Gguf, name: str, config: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """A tensor's elements in Hugging Face's layout, float32, in pieces."""
    chunks, family = source.chunks(name), config["model_type"]
    shape = source.tensors[name].shape

    def whole(*axes: int) -> np.ndarray:
        return np.concatenate(list(chunks)).reshape(axes)

    if family.startswith("gemma") and name.endswith("norm.weight"):
        # Stored as the factor 1 + w; Hugging Face stores w.
        yield from (chunk - np.float32(1) for chunk in chunks)
    elif family == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
        # Within a head, GGUF interleaves the two halves that the rotary embedding pairs.
        pairs = whole(-1, config["head_dim"] // 2, 2, shape[1])
        yield np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(-1)
    elif family == "gpt_neox" and ".attn_qkv." in name:
        # GGUF has all heads' q, then k, then v; Hugging Face has each head's three together.
        parts = whole(3, config["num_attention_heads"], -1)
        yield np.ascontiguousarray(parts.swapaxes(0, 1)).reshape(-1)
    elif _transposed(config, name) and len(shape) == 2:
        yield np.ascontiguousarray(whole(*shape).T).reshape(-1)
    else:
        yield from chunks


def _write_weights(source: Gguf, config: Mapping[str, Any], path: Path, bar: tqdm) -> None:
    """Streams the tensors into one float32 safetensors file."""
    architecture = source.metadata["general.architecture"]
    stored = dict(source.tensors)
    if architecture == "llama":
        stored.pop(ROPE_FREQS, None)  # which the config took

    def data() -> Iterator[np.ndarray]:
        for name in stored:
            for chunk in _hf_chunks(source, name, config):
                yield chunk
                bar.update(chunk.nbytes)

    tensors = {
        _hf_name(source, name): ("F32", t.shape[::-1] if _transposed(config, name) else t.shape)
        for name, t in stored.items()
    }
    tensor_file.write(path, tensors, data())


def converted(sha256: str, cache: Path) -> Path | None:
    """The cached Hugging Face directory of the GGUF file with this SHA-256, if it is whole."""
    directory = _directory(sha256, cache)
    try:
        sizes = json.loads((directory / _MANIFEST).read_text())["sizes"]
        whole = all((directory / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return None
    return directory if whole else None


def _directory(sha256: str, cache: Path) -> Path:
    return cache / "models" / f"gguf-{sha256[:24]}-{_LAYOUT}"


def convert(path: Path, sha256: str, cache: Path) -> Path:
    """Writes the GGUF file as a Hugging Face directory in the cache, unless it is there already.

    The directory has `config.json`, `model.safetensors` (float32, Hugging Face's names and layout),
    `tokenizer.json` and `tokenizer_config.json`; `transformers` can load it. It is made under
    another name and renamed when it is complete; a second process waits for the first.

    Args:
      path: a GGUF file.
      sha256: its SHA-256, which names the directory.
      cache: the cache folder.

    Raises:
      UserError: the file is not readable, supported, or whole, or the cache cannot take it.
    """
    if (done := converted(sha256, cache)) is not None:
        return done
    source = read(path)
    config = hf_config(source)
    directory = _directory(sha256, cache)
    files.writable_dir(directory.parent)
    partial = directory.with_name(f".{directory.name}.partial")
    with filelock.FileLock(directory.with_name(f".{directory.name}.lock")):
        if (done := converted(sha256, cache)) is not None:
            return done
        shutil.rmtree(partial, ignore_errors=True)
        try:
            size = 4 * sum(math.prod(tensor.shape) for tensor in source.tensors.values())
            files.require_room(directory.parent, size + 2**26)
            partial.mkdir()
            (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            with tqdm(desc=f"reading {path.name}", total=size, unit="B", unit_scale=True) as bar:
                gguf_tokenizer.write(source.metadata, path, partial)
                _write_weights(source, config, partial / "model.safetensors", bar)
            sizes = {file.name: file.stat().st_size for file in partial.iterdir()}
            manifest = {"gguf": path.name, "gguf_sha256": sha256, "sizes": sizes}
            (partial / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
            shutil.rmtree(directory, ignore_errors=True)
            partial.rename(directory)
        except OSError as error:
            raise UserError(
                f"{directory} could not be written ({error.strerror}); mend that and run again."
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return directory
