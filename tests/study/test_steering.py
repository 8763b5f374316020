"""Vectors → texts → measures on a model of random weights: what is kept, and what goes wrong."""

import dataclasses
import errno
import json
import math
import os
import shutil
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "steer"))

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steer_model import CONFIG, tiny_model
from synthetic_material import LATENTS, PLANTED, material

from emojax.emotion.concepts import CATEGORIES
from emojax.emotion.features import EmotionFeatures, Selection, Thresholds
from emojax.errors import UserError
from emojax.report import results as schema
from emojax.sae import coder
from emojax.sae.artefact import Artefact
from emojax.sae.coder import SaeConfig
from emojax.steer import vectors
from emojax.study import steering
from emojax.study.settings import Study, Writing

WRITING = Writing(
    prompts_en=("abc", "bcd"), prompts_zh=("窗外",), strength=0.5, max_new_tokens=4, unsteered=3
)
STUDY = Study(model="none", sae="none", writing=WRITING)
ROWS = WRITING.unsteered + 3 * len(CATEGORIES)


def selection(language):
    table = np.zeros((len(CATEGORIES), LATENTS))
    lists = tuple(np.arange(PLANTED * c, PLANTED * (c + 1)) for c in range(len(CATEGORIES)))
    return Selection(language, Thresholds(), *[table] * 5, table[0], lists)


def residuals(coded, seed):
    """The same words with residuals as wide as the model's."""
    dense = np.random.default_rng(seed).standard_normal((len(coded.words), CONFIG.d_model))
    return dataclasses.replace(coded, dense=dense.astype(np.float32))


@pytest.fixture(scope="module")
def inputs():
    """What a study hands to `steering.steer`, but for its settings and its folder."""
    config = SaeConfig(d_model=CONFIG.d_model, n_latents=LATENTS, k=4, model="tiny", layer=0)
    sae = coder.init(config, jnp.zeros(CONFIG.d_model), jax.random.key(0))
    both = {}
    for seed, language in enumerate(("en", "zh")):
        m = material(language, seed)
        both[language] = dataclasses.replace(
            m, concept=residuals(m.concept, seed), control=residuals(m.control, seed + 2)
        )
    lists = selection("en")
    found = EmotionFeatures({"en": lists, "zh": selection("zh")}, shared=lists.lists)
    return tiny_model(), Artefact(sae, sae, {}, {}, "a" * 64), found, both


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    output = tmp_path_factory.mktemp("steering")
    return steering.steer(STUDY, *inputs, output), output


@pytest.fixture
def output(finished, tmp_path):
    """A copy of the finished folder, to spoil."""
    return shutil.copytree(finished[1], tmp_path / "run")


@pytest.fixture
def prompts_written(monkeypatch):
    """The token ids of the prompts that the model was asked to continue."""
    asked = []

    def generate(lm, prompts, *rest):
        asked.append(prompts[0])
        return real(lm, prompts, *rest)

    real = steering.generate
    monkeypatch.setattr(steering, "generate", generate)
    return asked


def with_writing(**changes):
    return dataclasses.replace(STUDY, writing=dataclasses.replace(WRITING, **changes))


def test_every_prompt_has_its_unsteered_texts_and_each_methods(finished):
    found, _ = finished
    schema._check(found, schema.Steering, "steering")
    assert len(found["rows"]) == 3 * ROWS
    for prompt in range(3):
        methods = [row["method"] for row in found["rows"] if row["prompt"] == prompt]
        assert methods.count("none") == WRITING.unsteered
        for method in ("sae", "diffmean", "random"):
            assert methods.count(method) == len(CATEGORIES)
    sizes = {(s["language"], s["method"]): s["n_texts"] for s in found["summary"]}
    assert sizes["en", "none"] == 2 * WRITING.unsteered
    assert sizes["zh", "random"] == len(CATEGORIES)


def test_the_summary_is_of_the_rows(finished):
    found, _ = finished
    summary = next(s for s in found["summary"] if (s["language"], s["method"]) == ("en", "sae"))
    steered = [r for r in found["rows"] if r["method"] == "sae" and r["prompt"] in (0, 1)]
    ratios = []
    for row in steered:
        plain = [
            math.log(r["perplexity"])
            for r in found["rows"]
            if (r["method"], r["prompt"]) == ("none", row["prompt"])
        ]
        ratios.append(math.log(row["perplexity"]) - sum(plain) / len(plain))
    ratio = summary["perplexity_ratio"]
    assert ratio["value"] == pytest.approx(math.exp(sum(ratios) / len(ratios)))
    assert ratio["ci_low"] < ratio["value"] < ratio["ci_high"]
    assert ratio["covers"] == "prompts, emotions and unsteered texts of a prompt"
    repeated = [row["repetition"] for row in steered]
    assert summary["repetition"]["value"] == pytest.approx(np.mean(repeated))


def test_unsteered_texts_differ_and_a_push_of_nothing_is_each_in_turn(inputs, tmp_path):
    found = steering.steer(with_writing(strength=0.0), *inputs, tmp_path)
    for prompt in range(3):
        texts = {
            method: [
                r["text"] for r in found["rows"] if (r["prompt"], r["method"]) == (prompt, method)
            ]
            for method in ("none", "sae", "random")
        }
        assert len(set(texts["none"])) == WRITING.unsteered
        turns = [texts["none"][i % WRITING.unsteered] for i in range(len(CATEGORIES))]
        assert texts["sae"] == texts["random"] == turns


def test_the_vectors_are_left_beside_the_results(finished):
    found, output = finished
    loaded = vectors.load(output / steering.VECTORS)
    assert len(loaded) == 3 * len(CATEGORIES)
    own = [v for v in loaded if v.source.method == "sae"]
    assert [(v.emotion, v.fingerprint) for v in own] == [
        (v["emotion"], v["fingerprint"]) for v in found["vectors"]
    ]


def test_a_rerun_reads_the_kept_texts(inputs, finished, output, prompts_written):
    assert steering.steer(STUDY, *inputs, output) == finished[0]
    assert prompts_written == []


def test_only_what_changed_is_written_again(inputs, output, prompts_written):
    steering.steer(with_writing(prompts_en=("abc", "new")), *inputs, output)
    assert len(prompts_written) == 1
    for changes in ({"max_new_tokens": 3}, {"temperature": 0.5}):
        prompts_written.clear()
        steering.steer(with_writing(**changes), *inputs, output)
        assert len(prompts_written) == 3


def test_an_older_layout_is_written_again(inputs, output, prompts_written, monkeypatch):
    monkeypatch.setattr(steering, "_LAYOUT", steering._LAYOUT + 1)
    steering.steer(STUDY, *inputs, output)
    assert len(prompts_written) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: kept[: len(kept) // 2],
        lambda kept: b"",
        lambda kept: b"\xff" + kept,
        lambda kept: b"[]",
        lambda kept: b'{"texts": 1}',
        lambda kept: kept.replace(b'"perplexity"', b'"perplexing"'),
        lambda kept: json.dumps(json.loads(kept)[::-1]).encode(),
    ],
    ids=["half", "empty", "not UTF-8", "no texts", "no list", "unknown field", "order"],
)
def test_damaged_texts_are_written_again(inputs, finished, output, prompts_written, damage):
    path = sorted(output.glob("cache/texts-*.json"))[0]
    kept = path.read_bytes()
    path.write_bytes(damage(kept))
    assert steering.steer(STUDY, *inputs, output) == finished[0]
    assert len(prompts_written) == 1
    assert path.read_bytes() == kept


def test_a_disk_without_room_is_one_sentence(inputs, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="0 MiB free"):
        steering.steer(STUDY, *inputs, tmp_path)
    assert list(tmp_path.rglob("*.*")) == []


def test_a_disk_that_fills_up_is_one_sentence_and_spoils_nothing(inputs, output, monkeypatch):
    def write_bytes(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = {path: path.read_bytes() for path in output.rglob("*.*")}
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(UserError, match=r"texts-.*No space left"):
        steering.steer(with_writing(prompts_zh=("门",)), *inputs, output)
    with pytest.raises(UserError, match=r"steering\.safetensors .*No space left"):
        steering.steer(STUDY, *inputs, output)
    assert {path: path.read_bytes() for path in output.rglob("*.*")} == before


def test_no_unsteered_texts_and_an_emotion_without_latents_are_refused(inputs, tmp_path):
    with pytest.raises(UserError, match=r"writing\.unsteered is 0"):
        steering.steer(with_writing(unsteered=0), *inputs, tmp_path)
    lm, trained, found, both = inputs
    lists = (*found.read("en")[:-1], np.array([], int))
    poor = dataclasses.replace(
        found,
        selections={
            language: dataclasses.replace(selected, lists=lists)
            for language, selected in found.selections.items()
        },
    )
    with pytest.raises(UserError, match=f"emotion {CATEGORIES[-1]} has no latents"):
        steering.steer(STUDY, lm, trained, poor, both, tmp_path)
    assert list(tmp_path.iterdir()) == []
