"""A tiny random model and dictionary, with which a study's steps run in seconds."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "lm"))

import jax.numpy as jnp
import tiny_gguf

from emojax.lm import sources
from emojax.lm.capture import Tap
from emojax.lm.model import LanguageModel
from emojax.sae import coder
from emojax.sae.artefact import Artefact
from emojax.sae.coder import SaeConfig
from emojax.study.settings import Reading, Study, Writing

TAP = Tap(3, "resid_post")
STUDY = Study(
    model="tiny",
    sae="tiny",
    languages=("en",),
    reading=Reading(templates_en=("The word {}", "It is {}"), words_per_language=100),
    writing=Writing(prompts_en=("The word",), max_new_tokens=4),
)


def language_model(folder: Path) -> LanguageModel:
    tiny_gguf.write(folder / "tiny.gguf")
    return sources.load(folder / "tiny.gguf", cache=folder)


def dictionary() -> Artefact:
    config = SaeConfig(tiny_gguf.D, n_latents=128, k=8, model="tiny", layer=TAP.layer)
    sae = coder.init(config, jnp.zeros(tiny_gguf.D))
    measured = {
        "l0": 8.0,
        "fvu": {"raw": {"all": 0.5, "without_massive": 0.6}},
        "dead_share": 0.0,
        "tokens": 10,
    }
    return Artefact(
        sae=sae,
        untrained=sae,
        record={"tokens": {"train": 100}, "model": {"fingerprint": "tiny"}},
        evaluation={"trained": measured, "untrained": measured, "loss": {}},
        fingerprint="ab" * 32,
    )
