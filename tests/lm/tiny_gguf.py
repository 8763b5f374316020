"""Tiny GGUF files with random weights, and the Hugging Face weights that they stand for."""

import functools
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize

D, FF, HEADS, KV, HEAD_DIM, LAYERS = 64, 96, 4, 2, 32, 7
WORDS = ("happy", "happiness", "sad", "word", "the", "快乐", "词语")


def sentencepiece_vocabulary() -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types as in Gemma's GGUF: bytes, runs of newlines and spaces, pieces."""
    rows = [(t, -1000.0, 3) for t in ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>")]
    rows += [(t, -1000.0, 4) for t in ("\n", "\n\n", "  ", "   ")]
    rows += [(f"<0x{i:02X}>", 0.0, 6) for i in range(256)]
    pieces = {}
    for word in WORDS:
        for text in ("▁" + word, word):
            for end in range(2, len(text) + 1):
                pieces[text[:end]] = None
    pieces = list(pieces) + sorted({c for word in WORDS for c in word} | {"▁"} | set("Te,."))
    rows += [(piece, -float(i), 1) for i, piece in enumerate(pieces)]
    tokens, scores, types = map(list, zip(*rows, strict=True))
    return tokens, scores, types


@functools.cache
def _byte_characters() -> tuple[str, ...]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    return tuple(sorted(ByteLevel.alphabet()))


def byte_level_vocabulary() -> tuple[list[str], list[str], list[int]]:
    """Tokens, merges and types as in SmolLM2's GGUF."""
    merges = ["Ġ h", "Ġh a", "p p", "Ġha pp", "Ġhapp y", "1 2"]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_byte_characters()]
    types = [3, 3, 3] + [1] * 256
    tokens += [merge.replace(" ", "") for merge in merges]
    return tokens, merges, types + [1] * len(merges)


def hf_weights(architecture: str, vocabulary: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under Hugging Face's names, in its layout."""
    random = np.random.default_rng(seed)
    if architecture in ("gpt2", "gptneox"):
        return _layer_norm_weights(architecture, vocabulary, random)
    # Qwen 2's heads always share out the width.
    head_dim = D // HEADS if architecture == "qwen2" else HEAD_DIM

    def normal(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32) * 0.2

    weights = {"model.embed_tokens.weight": normal(vocabulary, D), "model.norm.weight": normal(D)}
    for i in range(LAYERS):
        layer = {
            "self_attn.q_proj": normal(HEADS * head_dim, D),
            "self_attn.k_proj": normal(KV * head_dim, D),
            "self_attn.v_proj": normal(KV * head_dim, D),
            "self_attn.o_proj": normal(D, HEADS * head_dim),
            "mlp.gate_proj": normal(FF, D),
            "mlp.up_proj": normal(FF, D),
            "mlp.down_proj": normal(D, FF),
            "input_layernorm": normal(D),
            "post_attention_layernorm": normal(D),
        }
        if architecture in ("gemma3", "qwen3"):
            layer |= {
                "self_attn.q_norm": normal(HEAD_DIM),
                "self_attn.k_norm": normal(HEAD_DIM),
            }
        if architecture in ("gemma2", "gemma3"):
            layer |= {
                "pre_feedforward_layernorm": normal(D),
                "post_feedforward_layernorm": normal(D),
            }
        named = {f"{name}.weight": value for name, value in layer.items()}
        if architecture == "qwen2":
            named |= {
                f"self_attn.{name}_proj.bias": normal(heads * D // HEADS)
                for name, heads in (("q", HEADS), ("k", KV), ("v", KV))
            }
        weights |= {f"model.layers.{i}.{name}": value for name, value in named.items()}
    return weights


def _layer_norm_weights(
    architecture: str, vocabulary: int, random: np.random.Generator
) -> dict[str, np.ndarray]:
    """GPT-2's or GPT-NeoX's; GPT-2 has its matrices [in, out]."""
    if architecture == "gpt2":
        outer = {"transformer.wte": (vocabulary, D), "transformer.wpe": (128, D)}
        last, layers, norms = "transformer.ln_f", "transformer.h", ("ln_1", "ln_2")
        qkv, out, up, down = "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"
    else:
        outer = {"gpt_neox.embed_in": (vocabulary, D), "embed_out": (vocabulary, D)}
        last, layers = "gpt_neox.final_layer_norm", "gpt_neox.layers"
        norms = ("input_layernorm", "post_attention_layernorm")
        qkv, out = "attention.query_key_value", "attention.dense"
        up, down = "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"
    matrices = {qkv: (3 * D, D), out: (D, D), up: (FF, D), down: (D, FF)}
    shapes = {f"{name}.weight": shape for name, shape in outer.items()}
    shapes |= {f"{last}.{kind}": (D,) for kind in ("weight", "bias")}
    for i in range(LAYERS):
        for norm in norms:
            shapes |= {f"{layers}.{i}.{norm}.{kind}": (D,) for kind in ("weight", "bias")}
        for matrix, shape in matrices.items():
            name = f"{layers}.{i}.{matrix}"
            stored = shape[::-1] if architecture == "gpt2" else shape
            shapes |= {f"{name}.weight": stored, f"{name}.bias": shape[:1]}
    return {n: random.normal(size=s).astype(np.float32) * 0.2 for n, s in shapes.items()}


def _gguf_name(architecture: str, name: str) -> str:
    """The name that llama.cpp's converter gives a tensor."""
    arch = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == architecture)
    names = gguf.get_tensor_name_map(arch, LAYERS)
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    assert found is not None, name
    return found


def _permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """Llama's Q and K rows as llama.cpp's convert_hf_to_gguf.py stores them."""
    rows = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return rows.swapaxes(1, 2).reshape(weights.shape)


def _by_part(qkv: np.ndarray) -> np.ndarray:
    """GPT-NeoX's q, k and v of every head as llama.cpp stores them: all q, all k, all v."""
    return qkv.reshape(HEADS, 3, -1).swapaxes(0, 1).reshape(qkv.shape)


def rope_factors(theta: float, factor: float, low: float, high: float, original: int) -> np.ndarray:
    """Llama 3's `rope_freqs.weight`, frequency by frequency as llama.cpp's converter writes it."""
    found = []
    for i in range(0, HEAD_DIM, 2):
        wavelength = 2 * np.pi * theta ** (i / HEAD_DIM)
        smooth = (original / wavelength - low) / (high - low)
        if wavelength < original / high:
            found.append(1.0)
        elif wavelength > original / low:
            found.append(factor)
        else:
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


def write(
    path: Path,
    architecture: str = "gemma3",
    kind: Kind = Kind.Q8_0,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Writes a tiny model; matrices quantised to `kind`, norms as float32.

    `metadata` replaces fields (None leaves one out); `tensors` adds tensors under GGUF's names.
    Returns the Hugging Face weights that a right conversion gives.
    """
    fields: dict[str, Any] = {
        f"{architecture}.{name}": value
        for name, value in {
            "block_count": LAYERS,
            "context_length": 128,
            "embedding_length": D,
            "feed_forward_length": FF,
            "attention.head_count": HEADS,
            "attention.head_count_kv": KV,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "attention.key_length": HEAD_DIM,
            "attention.value_length": HEAD_DIM,
            "rope.freq_base": 10000.0,
        }.items()
    }
    if architecture in ("gpt2", "gptneox", "qwen2"):
        for name in ("key_length", "value_length"):
            del fields[f"{architecture}.attention.{name}"]
    if architecture in ("gpt2", "gptneox"):
        for name in ("attention.head_count_kv", "attention.layer_norm_rms_epsilon"):
            del fields[f"{architecture}.{name}"]
        fields[f"{architecture}.attention.layer_norm_epsilon"] = 1e-5
    if architecture == "gpt2":
        del fields["gpt2.rope.freq_base"]
    if architecture == "gptneox":
        fields["gptneox.rope.dimension_count"] = D // HEADS // 2
        fields["gptneox.use_parallel_residual"] = True
    if architecture == "gemma2":
        fields |= {"gemma2.attn_logit_softcapping": 20.0, "gemma2.final_logit_softcapping": 10.0}
    if architecture.startswith("gemma"):
        tokens, scores, types = sentencepiece_vocabulary()
        fields |= {
            f"{architecture}.attention.sliding_window": 16,
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.bos_token_id": 2,
            "tokenizer.ggml.eos_token_id": 1,
            "tokenizer.ggml.unknown_token_id": 3,
            "tokenizer.ggml.padding_token_id": 0,
            "tokenizer.ggml.add_bos_token": True,
        }
    else:
        tokens, merges, types = byte_level_vocabulary()
        if architecture == "llama":
            fields |= {
                "llama.rope.dimension_count": HEAD_DIM,
                "llama.vocab_size": len(tokens),
            }
        fields |= {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": {"llama": "smollm", "gpt2": "gpt-2", "gptneox": "olmo"}.get(
                architecture, "qwen2"
            ),
            "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.padding_token_id": 2,
            "tokenizer.ggml.add_bos_token": False,
            "tokenizer.chat_template": "{{ messages[0]['content'] }}",
        }
    fields |= {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_space_prefix": False,
    }
    fields |= metadata or {}

    writer = gguf.GGUFWriter(path, fields.pop("general.architecture", architecture))
    for key, value in fields.items():
        _add(writer, key, value)
    expected = {}
    vocabulary = len(fields["tokenizer.ggml.tokens"])
    for name, value in hf_weights(architecture, vocabulary).items():
        stored = value
        heads = {"q_proj": HEADS, "k_proj": KV}.get(name.split(".")[-2])
        if architecture == "llama" and heads:
            stored = _permuted(value, heads)
        if "query_key_value" in name:
            stored = _by_part(value)
        if transposed := architecture == "gpt2" and ".h." in name and value.ndim == 2:
            stored = value.T
        gemma_norm = architecture.startswith("gemma") and "norm" in name
        if gemma_norm:
            stored = value + np.float32(1)
        if value.ndim == 1:
            writer.add_tensor(_gguf_name(architecture, name), stored)
            expected[name] = stored - np.float32(1) if gemma_norm else value
        else:
            data = quantize(stored, kind)
            writer.add_tensor(_gguf_name(architecture, name), data, raw_dtype=kind)
            # Blocks run along rows and only rows are permuted, so the two commute.
            back = dequantize(quantize(stored if transposed else value, kind), kind)
            expected[name] = np.ascontiguousarray(back.T) if transposed else back
    for name, value in (tensors or {}).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif value is not None:
        writer.add_array(key, value)
