"""A dictionary of a site that is not as wide as the residual stream."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from sae_toys import STREAM, TRAIN, D, corpora, language_model, load, streamed, text_rows, train_one
from test_pipeline import CONFIG

from emojax.config import override
from emojax.errors import UserError
from emojax.lm import sources
from emojax.lm.capture import Tap, capture
from emojax.sae import artefact, store

WIDE = Tap(1, "mlp_hidden")
D_FF = 32


@pytest.fixture(scope="module")
def lm():
    return language_model()


def test_a_dictionary_of_the_mlp_s_units_is_trained_measured_and_read(lm, tmp_path, monkeypatch):
    """Of a model in bfloat16, which its record and its store say."""
    monkeypatch.setattr(sources, "load", load)
    wide = ["sae.site=mlp_hidden", "sae.layer=1", "activations.model_dtype=bfloat16"]
    short = override(CONFIG, [*wide, "train.epochs=1", "data.tokens=3000"])
    run = functools.partial(
        train_one,
        corpora=corpora(tmp_path),
        out=tmp_path / "out",
        artefact=tmp_path / "artefact",
        store_dir=tmp_path / "store",
    )
    with pytest.raises(UserError, match=r"mlp_hidden of toy is 32 wide; set sae\.d_model=32"):
        run(short)
    found = run(override(short, [f"sae.d_model={D_FF}"]))
    fvu = [found[name]["fvu"]["unit_norm"]["all"] for name in ("trained", "untrained")]
    assert fvu[0] < fvu[1]
    # Spliced in where it reads, in front of the last matrix.
    for language in found["loss"].values():
        losses = language["cross_entropy"]
        assert len({losses[name] for name in ("clean", "zero_ablated", "mean_ablated")}) == 3
        assert language["kl"]["trained"] < language["kl"]["zero_ablated"]
    loaded = artefact.load(tmp_path / "artefact", lm)
    assert loaded.sae.w_dec.shape == (CONFIG.sae.n_latents, D_FF)
    assert loaded.record["model"]["dtype"] == "bfloat16"
    state = json.loads((tmp_path / "store" / "store.json").read_text())
    assert state["holds"]["model_dtype"] == "bfloat16"
    narrow = dataclasses.replace(lm, config=dataclasses.replace(lm.config, d_ff=24))
    with pytest.raises(UserError, match="activations of width 32"):
        artefact.check_fits(loaded.sae.config, narrow)


def test_sites_of_several_widths_are_stored_side_by_side(lm, tmp_path):
    rows, taps = text_rows(40), [Tap(1), WIDE]
    held = store.capture_taps(lm, taps, {"train": rows}, tmp_path, limit_gib=1.0, chunk_tokens=64)
    tokens = np.array([rows.tokens[3]], np.int32)
    direct = capture(lm.config, lm.params, tokens, np.ones_like(tokens, bool), taps)
    for tap, width in ((Tap(1), D), (WIDE, D_FF)):
        split = held.splits(tap)["train"]
        assert split.width == width
        sample = split.read(0, split.tokens)
        own = np.flatnonzero(sample.rows == 3)
        own = own[np.argsort(sample.positions[own])]
        raw = sample.values[own].astype(np.float32) * sample.norms[own, None]
        wanted = np.asarray(direct[tap][0, 1:])
        np.testing.assert_allclose(raw, wanted, rtol=2e-3, atol=2e-3 * np.abs(wanted).max())


def test_a_stream_is_as_wide_as_its_site_and_a_transcoder_s_two_are_alike(lm):
    source = streamed(lm, text_rows(200, (30,)), TRAIN, tokens=4000, taps=(WIDE,))
    assert source.width == D_FF
    assert next(source.batches(TRAIN.batch_tokens, seed=0)).x.shape == (TRAIN.batch_tokens, D_FF)
    said = "read mlp_hidden, which is 32 wide, and write mlp_out, which is 16 wide"
    with pytest.raises(UserError, match=said):
        taps = (WIDE, Tap(1, "mlp_out"))
        streamed(lm, text_rows(9), TRAIN, tokens=4000, taps=taps, config=STREAM)
