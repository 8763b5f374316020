"""A GGUF file as a Hugging Face directory, so that everything else reads only one format.

The format is specified at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf`
library supplies its constants and the dequantisation; its reader makes several arrays per word of
the vocabulary (28 s for Gemma-3's 262,144), hence the short one here.
"""

import dataclasses
import json
import math
import mmap
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize
from jaxtyping import Float
from tqdm import tqdm

from emojax import files
from emojax.errors import UserError
from emojax.lm import gguf_tokenizer, tensor_file

# Part of the converted directory's name: raise it when what is written changes.
_LAYOUT = 1
_MANIFEST = "emojax.json"
# Elements dequantised at a time: in a core's cache it is four times as fast as whole tensors.
_CHUNK = 2**18
_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
_KINDS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in the file: `shape` has rows first, `start` and `size` are in bytes."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class Gguf:
    """A GGUF file's metadata, and its tensors by name."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def chunks(self, name: str) -> Iterator[Float[np.ndarray, " elements"]]:
        """The tensor's elements, dequantised to float32, in row-major order, in pieces."""
        tensor = self.tensors[name]
        block, block_bytes = GGML_QUANT_SIZES[tensor.kind]
        piece = _CHUNK // block * block_bytes
        with self.path.open("rb") as file:
            file.seek(tensor.start)
            left = tensor.size
            while left:
                data = np.fromfile(file, np.uint8, min(piece, left))
                left -= data.size
                # One row, since `dequantize` works on sixteen rows at a time.
                yield dequantize(data.reshape(1, -1), tensor.kind).reshape(-1)


def read(path: Path) -> Gguf:
    """Reads the header of a GGUF file (versions 2 and 3, little-endian).

    Raises:
      UserError: the file is missing, not GGUF, truncated, corrupt, or holds a tensor of a type that
        is not supported; the message names it.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise UserError(
                    f"{path} is not a GGUF file (it does not begin with GGUF); give another one."
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                parsed = _Header(path, data).parse()
    except OSError as error:
        raise UserError(
            f"The model file {path} cannot be read ({error.strerror}); give a GGUF file."
        ) from None
    except (struct.error, ValueError, OverflowError, MemoryError) as error:
        raise UserError(
            f"The header of {path} is truncated or corrupt ({error}); fetch the file again."
        ) from None
    ends = max((tensor.start + tensor.size for tensor in parsed.tensors.values()), default=0)
    if ends > size:
        raise UserError(
            f"{path} is truncated: it has {size:,} bytes of at least {ends:,}; fetch it again."
        )
    return parsed


class _Header:
    """A cursor over a GGUF header; every method reads one thing and moves on."""

    def __init__(self, path: Path, data: mmap.mmap):
        self._path = path
        self._data = data
        self._at = 4

    def parse(self) -> Gguf:
        (version,) = self._numbers("I")
        if version not in (2, 3):
            raise UserError(
                f"{self._path} has GGUF version {version}, which is not supported; "
                "convert it to version 3 (little-endian)."
            )
        n_tensors, n_fields = self._numbers("Q", 2)
        metadata = {}
        for _ in range(n_fields):
            key = self._string()
            metadata[key] = self._value(GGUFValueType(*self._numbers("I")))
        infos = [self._tensor() for _ in range(n_tensors)]
        alignment = metadata.get("general.alignment", 32)
        base = -(-self._at // alignment) * alignment
        tensors = {
            name: dataclasses.replace(tensor, start=base + tensor.start) for name, tensor in infos
        }
        if len(tensors) != n_tensors:
            raise ValueError("a tensor's name stands there twice")
        return Gguf(self._path, metadata, tensors)

    def _numbers(self, code: str, count: int = 1) -> tuple[Any, ...]:
        size = struct.calcsize(f"<{code}") * count
        if size > len(self._data) - self._at:
            raise ValueError("it ends within a value")
        values = struct.unpack_from(f"<{count}{code}", self._data, self._at)
        self._at += size
        return values

    def _string(self) -> str:
        (size,) = self._numbers("Q")
        if size > len(self._data) - self._at:
            raise ValueError("it ends within a string")
        self._at += size
        return self._data[self._at - size : self._at].decode()

    def _value(self, kind: GGUFValueType) -> Any:
        if kind == GGUFValueType.STRING:
            return self._string()
        if kind != GGUFValueType.ARRAY:
            return self._numbers(_SCALARS[kind])[0]
        kind = GGUFValueType(*self._numbers("I"))
        (count,) = self._numbers("Q")
        if kind == GGUFValueType.STRING:
            return [self._string() for _ in range(count)]
        if kind == GGUFValueType.ARRAY:
            raise ValueError("it holds an array of arrays")
        return list(self._numbers(_SCALARS[kind], count))

    def _tensor(self) -> tuple[str, Tensor]:
        name = self._string()
        (n_axes,) = self._numbers("I")
        shape = tuple(reversed(self._numbers("Q", n_axes)))
        (number,) = self._numbers("I")
        (start,) = self._numbers("Q")
        known = {kind.value: kind for kind in GGMLQuantizationType}
        if number not in known or known[number].name not in _KINDS:
            raise UserError(
                f"The tensor {name} in {self._path} has the type "
                f"{known[number].name if number in known else number}, which is not supported; "
                f"use a file with {', '.join(_KINDS)}."
            )
        block, block_bytes = GGML_QUANT_SIZES[known[number]]
        elements = math.prod(shape)
        if elements % block:
            raise ValueError(f"the tensor {name} is not made of whole blocks")
        return name, Tensor(shape, known[number], start, elements // block * block_bytes)


class _Metadata:
    """Takes an architecture's attributes one by one, so that what is left over is known."""

    def __init__(self, source: Gguf):
        self.architecture = source.metadata.get("general.architecture")
        self._path = source.path
        prefix = f"{self.architecture}."
        self._left = {k: v for k, v in source.metadata.items() if k.startswith(prefix)}

    def take(self, name: str, default: Any = None) -> Any:
        key = f"{self.architecture}.{name}"
        value = self._left.pop(key, default)
        if value is None:
            raise UserError(f"{self._path} lacks the attribute {key}; use a complete GGUF file.")
        if isinstance(value, list):
            raise UserError(
                f"{self._path} has a different {key} for each layer, which is not supported; "
                "use a model without it."
            )
        # Through float32's shortest decimal: 1e-06, not 9.999999974752427e-07.
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def refuse_the_rest(self) -> None:
        if self._left:
            key = min(self._left)
            raise UserError(
                f"{self._path} has the attribute {key} = {self._left[key]!r}, which is not "
                "supported; use a model without it."
            )


def _common(take: Callable[..., Any], source: Gguf) -> dict[str, Any]:
    tokenizer = {
        k.removeprefix("tokenizer.ggml."): v
        for k, v in source.metadata.items()
        if k.startswith("tokenizer.ggml.")
    }
    ends = [tokenizer[k] for k in ("eos_token_id", "eot_token_id") if k in tokenizer]
    heads = take("attention.head_count")
    return {
        "vocab_size": source.tensors["token_embd.weight"].shape[0],
        "hidden_size": take("embedding_length"),
        "intermediate_size": take("feed_forward_length"),
        "num_hidden_layers": take("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": take("attention.head_count_kv", heads),
        "max_position_embeddings": take("context_length"),
        "rms_norm_eps": take("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in source.tensors,
        "bos_token_id": tokenizer.get("bos_token_id"),
        "eos_token_id": ends[0] if len(ends) == 1 else sorted(set(ends)) or None,
        "pad_token_id": tokenizer.get("padding_token_id"),
        "dtype": "float32",
    }


def _llama(take: Callable[..., Any], source: Gguf) -> dict[str, Any]:
    common = _common(take, source)
    head_dim = take("attention.key_length", common["hidden_size"] // common["num_attention_heads"])
    _expect(source, "rope.dimension_count", take("rope.dimension_count", head_dim), head_dim)
    _expect(source, "attention.value_length", take("attention.value_length", head_dim), head_dim)
    _expect(source, "vocab_size", take("vocab_size", common["vocab_size"]), common["vocab_size"])
    return common | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": take("rope.freq_base", 10000.0),
        },
    }


def _qwen2(take: Callable[..., Any], source: Gguf) -> dict[str, Any]:
    return _common(take, source) | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "use_sliding_window": False,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": take("rope.freq_base", 10000.0),
        },
    }


def _qwen3(take: Callable[..., Any], source: Gguf) -> dict[str, Any]:
    head_dim = take("attention.key_length", 128)
    _expect(source, "attention.value_length", take("attention.value_length", head_dim), head_dim)
    return _qwen2(take, source) | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": head_dim,
        "attention_bias": False,
    }


def _gemma2(take: Callable[..., Any], source: Gguf) -> dict[str, Any]:
    # GGUF has no attribute for the query's scale; the 27B model (46 layers) alone differs.
    return _gemma(take, source, odd_one=46) | {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "attn_logit_softcapping": take("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": take("final_logit_softcapping", 30.0),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": take("rope.freq_base", 10000.0),
        },
    }


def _gemma3(take: Callable[..., Any], source: Gguf) -> dict[str, Any]:
    # As above; here it is the 27B model's 62 layers.
    shared = _gemma(take, source, odd_one=62)
    return shared | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "layer_types": [
            "sliding_attention" if (i + 1) % 6 else "full_attention"
            for i in range(shared["num_hidden_layers"])
        ],
        "rope_parameters": {
            "full_attention": {
                "rope_type": "default",
                "rope_theta": take("rope.freq_base", 1000000.0),
            },
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": take("rope.freq_base_swa", 10000.0),
            },
        },
    }


def _gemma(take: Callable[..., Any], source: Gguf, odd_one: int) -> dict[str, Any]:
    common = _common(take, source)
    head_dim = take("attention.key_length", 256)
    _expect(source, "attention.value_length", take("attention.value_length", head_dim), head_dim)
    scalar = common["hidden_size"] // common["num_attention_heads"]
    return common | {
        "head_dim": head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "query_pre_attn_scalar": scalar if common["num_hidden_layers"] == odd_one else head_dim,
        "sliding_window": take("attention.sliding_window"),
    }


_CONFIGS: dict[str, Callable[..., dict[str, Any]]] = {
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
}


def _expect(source: Gguf, name: str, value: Any, expected: Any) -> None:
    if value != expected:
        raise UserError(
            f"{source.path} has {source.metadata['general.architecture']}.{name} = {value}, and "
            f"only {expected} is supported; use another model."
        )


def hf_config(source: Gguf) -> dict[str, Any]:
    """The dictionary of the `config.json` that says the same as the file's metadata.

    Raises:
      UserError: the architecture or an attribute of it is not supported or missing; it is named.
    """
    metadata = _Metadata(source)
    if metadata.architecture not in _CONFIGS:
        raise UserError(
            f"{source.path} has general.architecture {metadata.architecture!r}, which is not "
            f"supported; use one of {', '.join(_CONFIGS)}."
        )
    if "token_embd.weight" not in source.tensors:
        raise UserError(f"{source.path} lacks the tensor token_embd.weight; fetch it again.")
    config = _CONFIGS[metadata.architecture](metadata.take, source)
    metadata.refuse_the_rest()
    return {name: value for name, value in config.items() if value is not None}


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
_LAYERS = {
    "gemma2": _LAYER | _POST_NORMS,
    "gemma3": _LAYER | _POST_NORMS | _QK_NORMS,
    "llama": _LAYER | _MLP_NORM,
    "qwen2": _LAYER | _MLP_NORM,
    "qwen3": _LAYER | _MLP_NORM | _QK_NORMS,
}


def _hf_name(source: Gguf, name: str) -> str:
    architecture = source.metadata["general.architecture"]
    stem, _, kind = name.rpartition(".")
    if stem in _TOP and kind == "weight":
        return f"{_TOP[stem]}.weight"
    parts = stem.split(".")
    biased = architecture == "qwen2" and parts[-1] in ("attn_q", "attn_k", "attn_v")
    kinds = ("weight", "bias") if biased else ("weight",)
    if kind in kinds and len(parts) == 3 and parts[0] == "blk" and parts[1].isdigit():
        layer = _LAYERS[architecture].get(parts[2])
        if layer is not None:
            return f"model.layers.{parts[1]}.{layer}.{kind}"
    raise UserError(
        f"{source.path} ({architecture}) has the tensor {name}, which is not supported; "
        "use a model without it."
    )


def _hf_chunks(source: Gguf, name: str, config: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """A tensor's elements in Hugging Face's layout, float32, in pieces."""
    chunks = source.chunks(name)
    if config["model_type"].startswith("gemma") and name.endswith("norm.weight"):
        # Stored as the factor 1 + w; Hugging Face stores w.
        yield from (chunk - np.float32(1) for chunk in chunks)
    elif config["model_type"] == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
        # Within a head, GGUF interleaves the two halves that the rotary embedding pairs.
        shape = source.tensors[name].shape
        pairs = np.concatenate(list(chunks)).reshape(-1, config["head_dim"] // 2, 2, shape[1])
        yield np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(-1)
    else:
        yield from chunks


def _write_weights(source: Gguf, config: Mapping[str, Any], path: Path, bar: tqdm) -> None:
    """Streams the tensors into one float32 safetensors file."""

    def data() -> Iterator[np.ndarray]:
        for name in source.tensors:
            for chunk in _hf_chunks(source, name, config):
                yield chunk
                bar.update(chunk.nbytes)

    tensors = {_hf_name(source, n): ("F32", t.shape) for n, t in source.tensors.items()}
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
