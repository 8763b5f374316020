"""Parity with PyTorch on the real weights, in English and Chinese, within and beyond the window."""

import jax
import numpy as np
import pytest
from parity_table import REAL_CHECKS, REAL_MODELS
from torch_models import run_reference

from emojax.lm import batching, decoder, sources
from emojax.lm.capture import Tap, capture
from emojax.lm.text import tokenize

pytestmark = [pytest.mark.model, pytest.mark.torch]

ENGLISH = (
    "The harbour was quiet when the letter came, and she read it twice before she understood "
    "that her brother was alive. She laughed, then wept, then ran down the stairs to tell the "
    "neighbours, who had already heard. "
)
CHINESE = (
    "信到的时候港口很安静，她读了两遍才明白哥哥还活着。她先是笑，然后哭，接着跑下楼去告诉邻居，"
    "而他们早已听说了。那天夜里没有人睡觉，大家围着火炉谈论往事，直到天亮。"
)


@pytest.mark.parametrize("source", REAL_MODELS)
def test_parity_on_real_weights(source, parity):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    lm = sources.load(source)
    reference = AutoModelForCausalLM.from_pretrained(
        lm.directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    long = [row[:600] for row in tokenize(lm, [ENGLISH * 20, CHINESE * 20])]
    assert all(len(row) == 600 for row in long)
    short = tokenize(lm, [ENGLISH, CHINESE])
    found = parity[source] = dict.fromkeys(REAL_CHECKS, 0.0)
    taps = [Tap(layer) for layer in range(lm.config.n_layers)]
    for rows in (long, short):
        time = max(map(len, rows))
        tokens, mask = batching.pad(rows, len(rows), time)
        keep = np.unique(np.linspace(0, time - 1, 24).astype(int))
        logits, layers = run_reference(reference, tokens, mask, keep)
        with jax.default_matmul_precision("highest"):
            read = capture(
                lm.config, lm.params, tokens, mask, [*taps, Tap(taps[-1].layer, "final_norm")]
            )
            h = read.pop(Tap(taps[-1].layer, "final_norm"))
            ours = decoder.unembed(lm.config, lm.params, h[:, keep])
        for row, language in enumerate(("English", "Chinese")):
            at, check = slice(row, row + 1), f"logits, {language}"
            new = error(np.asarray(ours)[at], logits[at], mask[at, keep])
            found[check] = float(np.maximum(found[check], new))  # keeps a NaN
        for tap, values in read.items():
            new = error(values, layers[tap.layer], mask)
            found[REAL_CHECKS[-1]] = float(np.maximum(found[REAL_CHECKS[-1]], new))
    assert all(value < 1e-4 for value in found.values()), found


def error(ours, theirs, mask):
    """The largest difference of a token, relative to that token's norm."""
    difference = np.linalg.norm(np.asarray(ours) - theirs, axis=-1)
    return (difference / np.linalg.norm(theirs, axis=-1))[mask].max()
